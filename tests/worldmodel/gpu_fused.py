"""The Triton kernels of `worldmodel.accel.gpu` against their plain definitions in float64.

`test_gpu.py` runs this file in a process of its own; see `gpu_doubles`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.worldmodel.gpu_doubles import DEVICE, launched, pretend
from worldmodel.accel import fused, gpu

# Of the largest number: rounding in the type that lies in memory, and some for sums of it.
EXACT = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":
        pretend(monkeypatch)


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=g)).to(DEVICE)


def pixels(*shape: int) -> Tensor:
    g = torch.Generator().manual_seed(3)
    return torch.randint(256, shape, generator=g, dtype=torch.uint8).to(DEVICE)


def agrees(
    function: Callable[..., Tensor], x: Tensor, *others: Tensor, dtype: torch.dtype, count: int
) -> None:
    """The value and every gradient equal those of the definition in float64, by `count` launches;
    x in this type, the others in float32."""
    inputs, results = [x.to(dtype), *others], []
    for exact in (False, True):
        leaves = [t.detach().clone().double() if exact else t.detach().clone() for t in inputs]
        for leaf in leaves:
            leaf.requires_grad_()
        with launched(pytest.MonkeyPatch()) as names:
            out = function(*leaves)
            weight = draw(*out.shape, seed=9).to(out.dtype)
            results.append([out, *torch.autograd.grad((out * weight).sum(), leaves)])
        assert len(names) == (0 if exact else count)
    for ours, plain in zip(*results, strict=True):
        error = (ours.double() - plain).abs().max() / plain.abs().max()
        assert error < EXACT[dtype], (ours.shape, error)


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 64), (300, 8), (2, 5000)])
def test_norm_silu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    scale = 1 + draw(shape[-1], seed=1)
    agrees(
        lambda x, s: fused.norm_silu(x, s, 1e-4), draw(*shape, scale=3.0), scale,
        dtype=dtype, count=2,
    )  # fmt: skip


@pytest.mark.parametrize("blocks", [2, 4])
def test_norm_silu_of_pixels_in_blocks(blocks: int) -> None:
    x, scale = draw(3, 2, 5, blocks**2 * 6), 1 + draw(6, seed=1)
    agrees(lambda x, s: fused.norm_silu(x, s, 1e-4, blocks), x, scale, dtype=torch.float32, count=2)


def test_programs_that_take_several_turns_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "NUMBERS", 16)
    monkeypatch.setattr(gpu, "MOST", 3)
    x, scale = draw(17, 7), 1 + draw(7, seed=1)
    agrees(lambda x, s: fused.norm_silu(x, s, 1e-4), x, scale, dtype=torch.float32, count=2)
    x, scale = draw(2, 4, 6, 5), 1 + draw(5, seed=1)
    agrees(lambda x, s: fused.pool_norm_silu(x, s, 1e-4), x, scale, dtype=torch.float32, count=2)
    x, target = draw(2, 4, 4, 4 * 3), pixels(2, 8, 8, 3)  # 64 pixels in chunks of 16
    agrees(
        lambda x: fused.image_loss(x, draw(8, 8, 3, seed=1).to(x.dtype), target, 2), x,
        dtype=torch.float32, count=2,
    )  # fmt: skip


def test_memory_of_any_order() -> None:
    x, scale = draw(4, 6, 5).transpose(0, 2), torch.ones(4, device=DEVICE)
    ours, plain = fused.norm_silu(x, scale, 1e-4), fused.norm_silu(x.contiguous(), scale, 1e-4)
    assert torch.equal(ours, plain)


@pytest.mark.parametrize("dtype", EXACT)
def test_pool_norm_silu(dtype: torch.dtype) -> None:
    x, scale = draw(3, 6, 4, 5), 1 + draw(5, seed=1)
    agrees(lambda x, s: fused.pool_norm_silu(x, s, 1e-4), x, scale, dtype=dtype, count=2)
    x = torch.zeros(1, 4, 4, 2, device=DEVICE)
    x[0, 0, 1, 0] = x[0, 1, 0, 0] = 1.0  # among equals the first takes the gradient
    scale = torch.ones(2, device=DEVICE)
    agrees(lambda x, s: fused.pool_norm_silu(x, s, 1e-4), x, scale, dtype=dtype, count=2)


def test_odd_images_are_pooled_by_the_definition() -> None:
    scale = torch.ones(5, device=DEVICE)
    out = fused.pool_norm_silu(draw(2, 5, 7, 5), scale, 1e-4)
    expected = fused.pool_norm_silu(draw(2, 5, 7, 5).double(), scale.double(), 1e-4)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_image_loss(blocks: int, dtype: torch.dtype) -> None:
    x = draw(5, 8 // blocks, 16 // blocks, blocks**2 * 6, scale=2.0)
    target, centre = pixels(5, 8, 16, 6), draw(8, 16, 6, seed=1)

    def loss(x: Tensor) -> Tensor:
        exact = x.dtype == torch.float64
        if not exact:
            return fused.image_loss(x, centre, target, blocks)
        image = torch.sigmoid(fused.unblock(x, blocks) + centre)  # the definition is in float32
        return (image - target / 255.0).square().sum((1, 2))

    agrees(loss, x, dtype=dtype, count=2)


def test_two_hot_mean() -> None:
    half = torch.arange(1.0, 6.0) ** 3
    bins = torch.cat([-half.flip(0), torch.zeros(1), half]).to(DEVICE)
    logits = draw(7, 9, 11, scale=4.0)
    with launched(pytest.MonkeyPatch()) as names:
        mean = fused.two_hot_mean(logits, bins)
        same = fused.two_hot_mean(torch.full((3, 11), 0.7, device=DEVICE), bins)
    assert names == ["two_hot_mean"] * 2
    expected = (torch.softmax(logits.double(), -1) * bins).sum(-1)
    torch.testing.assert_close(mean.double(), expected, rtol=1e-5, atol=1e-4)
    assert not same.any()  # exactly
    assert fused.two_hot_mean(logits.requires_grad_(), bins).requires_grad


@pytest.mark.parametrize("repeats", [1, 2])
def test_two_hot_log_prob(repeats: int) -> None:
    g = torch.Generator().manual_seed(2)
    above = torch.randint(1, 11, (repeats, 7, 9), generator=g).to(DEVICE)
    weight = torch.rand(repeats, 7, 9, generator=g).to(DEVICE)

    def log_prob(logits: Tensor) -> Tensor:
        return fused.two_hot_log_prob(logits, above, weight.to(logits.dtype))

    agrees(log_prob, draw(7, 9, 11, scale=4.0), dtype=torch.float32, count=2)


def test_nothing_hides_a_nan() -> None:
    for bad in (math.nan, math.inf):
        x = draw(2, 4, 4, 16)
        x[1, 2, 2, 3] = bad
        target, one = pixels(2, 4, 4, 16), torch.ones(16, device=DEVICE)
        bins = torch.arange(-7.0, 8.0, device=DEVICE)
        assert not torch.isfinite(fused.norm_silu(x, one, 1e-4)[1, 2, 2, 3])
        assert not torch.isfinite(fused.pool_norm_silu(x, one, 1e-4)[1, 1, 1, 3])
        above = torch.full((1, 2, 4, 4), 8, device=DEVICE)
        weight = torch.rand(1, 2, 4, 4, device=DEVICE)
        assert not torch.isfinite(fused.two_hot_log_prob(x, above, weight)[0, 1, 2, 2])
        assert not torch.isfinite(fused.two_hot_mean(x[..., :-1], bins)[1, 2, 2])
        if math.isnan(bad):  # the sigmoid of infinity is 1
            assert not torch.isfinite(fused.image_loss(x, x[0] * 0, target, 1)[1, 3])


def test_extremes_saturate() -> None:
    x = torch.tensor([[-1e4, 1e4], [1e4, -1e4]], device=DEVICE)
    out = fused.norm_silu(x, torch.full((2,), 1e6, device=DEVICE), 1e-4)
    expected = torch.tensor([[0.0, 1e6], [1e6, 0.0]], device=DEVICE)
    torch.testing.assert_close(out, expected)


def test_a_gpu_on_which_triton_fails_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.works(DEVICE)

    def fails(*args: object, **options: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(gpu, "launch", fails)
    with pytest.warns(RuntimeWarning, match="cannot run .* Failed to find C compiler"):
        assert not gpu.works(DEVICE)
