"""Loops in machine code against their plain definitions in float64, gradients included."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from worldmodel.accel import fused, kernels
from worldmodel.nets import ChannelNormSiLU, PoolStage, UpsampleConv2d

Function = Callable[..., Tensor]


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pixels(*shape: int) -> Tensor:
    g = torch.Generator().manual_seed(3)
    return torch.randint(256, shape, generator=g, dtype=torch.uint8)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many threads share the work, however little it is."""
    monkeypatch.setattr("worldmodel.accel.threads.ALONE", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)
    return int(request.param)


def agrees(function: Function, *inputs: Tensor, rest: tuple = ()) -> None:
    """The value and every gradient equal those of the definition in float64, twice bit by bit."""
    results = []
    for dtype in (torch.float32, torch.float32, torch.float64):
        leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
        assert fused.in_loops(*leaves) == (dtype == torch.float32)
        out = function(*leaves, *rest)
        weight = draw(*out.shape, seed=9).to(dtype)
        results.append([out, *torch.autograd.grad((out * weight).sum(), leaves)])
    for first, second, plain in zip(*results, strict=True):
        assert torch.equal(first, second)
        scale = plain.abs().max().item()
        torch.testing.assert_close(first.double(), plain, rtol=2e-5, atol=2e-6 * scale)


@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 64), (2, 3, 5, 12), (1, 2), (300, 8)])
def test_norm_silu(shape: tuple[int, ...], threads: int) -> None:
    scale = 1 + draw(shape[-1], seed=1)
    agrees(fused.norm_silu, draw(*shape, scale=3.0), scale, rest=(1e-4,))


def test_norm_silu_of_pixels_in_blocks(threads: int) -> None:
    x, scale = draw(3, 2, 5, 2 * 2 * 6), 1 + draw(6, seed=1)
    agrees(fused.norm_silu, x, scale, rest=(1e-4, 2))
    out = fused.norm_silu(x, scale, 1e-4, 2)
    assert out.shape == (3, 4, 10, 6)
    one = fused.norm_silu(x[1, 1, 3].view(2, 2, 6), scale, 1e-4)  # the block (1, 3) of image 1
    torch.testing.assert_close(out[1, 2:4, 6:8], one)


def test_norm_silu_reads_memory_of_any_order() -> None:
    x = draw(4, 6, 5).transpose(0, 2)
    scale = torch.ones(4)
    torch.testing.assert_close(
        fused.norm_silu(x, scale, 1e-4), fused.norm_silu(x.contiguous(), scale, 1e-4)
    )
    layer = ChannelNormSiLU(5)
    for image in (draw(2, 5, 4, 4), draw(2, 4, 4, 5).permute(0, 3, 1, 2)):
        expected = fused.norm_silu(image.double().permute(0, 2, 3, 1), torch.ones(5), 1e-4)
        torch.testing.assert_close(layer(image), expected.permute(0, 3, 1, 2).float())


def test_pool_norm_silu(threads: int) -> None:
    agrees(fused.pool_norm_silu, draw(3, 6, 4, 5), 1 + draw(5, seed=1), rest=(1e-4,))


def test_among_equal_pixels_the_first_takes_the_gradient() -> None:
    x = torch.zeros(1, 4, 4, 2)
    x[0, 0, 1, 0] = x[0, 1, 0, 0] = 1.0
    agrees(fused.pool_norm_silu, x, torch.ones(2), rest=(1e-4,))


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_image_loss(blocks: int, threads: int) -> None:
    h, w = 8 // blocks, 16 // blocks
    x, target = draw(5, h, w, blocks**2 * 6, scale=2.0), pixels(5, 8, 16, 6)
    centre = draw(8, 16, 6, seed=1)

    def loss(x: Tensor) -> Tensor:
        return fused.image_loss(x, centre.to(x.dtype), target, blocks)

    assert loss(x).shape == (5, 6)
    agrees(loss, x)


def test_image_input(threads: int) -> None:
    images, mean = pixels(5, 4, 4, 3), torch.rand(4, 4, 3)
    expected = images.float() / 255 - mean
    assert torch.equal(fused.image_input(images, mean), expected)  # to the last bit
    assert torch.equal(fused.image_input(images[:, ::2], mean[::2]), expected[:, ::2])


def test_two_hot_mean(threads: int) -> None:
    logits, half = draw(7, 9, 11, scale=4.0), torch.arange(1.0, 6.0) ** 3
    bins = torch.cat([-half.flip(0), torch.zeros(1), half])
    mean = fused.two_hot_mean(logits, bins)
    expected = (torch.softmax(logits.double(), -1) * bins).sum(-1)
    torch.testing.assert_close(mean.double(), expected, rtol=1e-5, atol=1e-4)
    assert not fused.two_hot_mean(torch.full((3, 11), 0.7), bins).any()
    learned = fused.two_hot_mean(logits.requires_grad_(), bins)
    torch.testing.assert_close(learned, mean, rtol=1e-5, atol=1e-4)
    assert learned.requires_grad


def test_two_hot_log_prob(threads: int) -> None:
    logits = draw(7, 9, 11, scale=4.0)
    g = torch.Generator().manual_seed(2)
    above = torch.randint(1, 11, (2, 7, 9), generator=g)
    weight = torch.rand(2, 7, 9, generator=g)

    def log_prob(logits: Tensor) -> Tensor:
        return fused.two_hot_log_prob(logits, above, weight.to(logits.dtype))

    agrees(log_prob, logits)
    logs = torch.log_softmax(logits[3, 4], -1)
    low, share = int(above[1, 3, 4]) - 1, weight[1, 3, 4]
    expected = (1 - share) * logs[low] + share * logs[low + 1]
    torch.testing.assert_close(log_prob(logits)[1, 3, 4], expected)


def test_exponentials_are_exact_to_a_few_bits_and_saturate() -> None:
    x = torch.linspace(-80, 80, 4001)
    half = torch.stack([x, torch.zeros_like(x)], -1)  # sigmoid as a softmax of two
    log = fused.two_hot_log_prob(half, torch.ones(1, 4001, dtype=torch.long), torch.zeros(1, 4001))[
        0
    ]
    torch.testing.assert_close(
        log.double(), torch.nn.functional.logsigmoid(x.double()), rtol=2e-6, atol=1e-6
    )
    big = torch.tensor([[1e30, -1e30], [-1e4, 1e4]])
    out = fused.norm_silu(big[1:], torch.full((2,), 1e6), 1e-4)
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out, torch.tensor([[0.0, 1e6]]))


def test_nothing_hides_a_nan() -> None:
    for bad in (math.nan, math.inf):
        x = draw(2, 4, 4, 16)
        x[1, 2, 2, 3] = bad
        target, one = pixels(2, 4, 4, 16), torch.ones(16)
        assert not torch.isfinite(fused.norm_silu(x, one, 1e-4)[1, 2, 2, 3])
        assert not torch.isfinite(fused.pool_norm_silu(x, one, 1e-4)[1, 1, 1, 3])
        above = torch.full((1, 2, 4, 4), 8)
        weight = torch.rand(1, 2, 4, 4)
        assert not torch.isfinite(fused.two_hot_log_prob(x, above, weight)[0, 1, 2, 2])
        assert not torch.isfinite(fused.two_hot_mean(x[..., :-1], torch.arange(-7.0, 8.0))[1, 2, 2])
        if math.isnan(bad):  # the sigmoid of infinity is 1
            assert not torch.isfinite(fused.image_loss(x, x[0] * 0, target, 1)[1, 3])


def test_other_types_and_exported_graphs_use_the_definition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, x = ChannelNormSiLU(5), draw(2, 5, 4, 4)
    expected = layer(x)

    def forbidden(*args: object) -> None:
        raise AssertionError("a kernel was called")

    monkeypatch.setattr(kernels, "norm_silu", forbidden)
    with pytest.raises(AssertionError, match="a kernel"):
        layer(x)
    graph = torch.export.export(layer, (x,))
    torch.testing.assert_close(graph.module()(x), expected)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert layer(x[:0]).shape == (0, 5, 4, 4)


# Layers made of them


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_upsampling_and_convolution_are_one_convolution(kernel: int) -> None:
    torch.manual_seed(0)
    layer = UpsampleConv2d(3, 2, kernel).double()
    torch.nn.init.normal_(layer.bias)  # type: ignore[arg-type]
    x = draw(2, 3, 4, 5).double().requires_grad_()
    plain = torch.nn.functional.conv2d(
        torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest"),
        layer.weight, layer.bias, padding=kernel // 2,
    )  # fmt: skip
    out = layer(x)
    torch.testing.assert_close(out, plain)
    leaves = [x, layer.weight, layer.bias]
    weight = draw(*out.shape, seed=5).double()
    for a, b in zip(
        torch.autograd.grad((out * weight).sum(), leaves),
        torch.autograd.grad((plain * weight).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_a_pool_stage_is_its_layers_one_after_another() -> None:
    torch.manual_seed(0)
    stage, x = PoolStage(3, 6, 5), draw(2, 3, 8, 8)
    plain = torch.nn.Sequential(*stage)
    torch.testing.assert_close(stage(x), plain(x))
    assert [name for name, _ in stage.named_parameters()] == [
        "0.weight", "0.bias", "2.norm.norm.scale",
    ]  # fmt: skip
