"""Layers: initialisation, norms and shapes, by hand or in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.nets import (
    MLP,
    BlockLinear,
    ChannelNormSiLU,
    Conv2d,
    EMACopy,
    Linear,
    NormSiLU,
    RMSNorm,
    Unpatch,
    UpConv2d,
    count_parameters,
)

# A unit normal cut at +-2 has variance 1 - 2 * 2 phi(2) / (2 Phi(2) - 1).
_PHI = math.exp(-2.0) / math.sqrt(2 * math.pi)
CUT_STD = math.sqrt(1 - 4 * _PHI / math.erf(math.sqrt(2)))


def norm(x: np.ndarray, scale: np.ndarray | float = 1.0) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-4) * scale


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def array(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def close(x: Tensor, y: np.ndarray, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    np.testing.assert_allclose(array(x), y, rtol, atol)


# Initialisation


def check_weight(weight: Tensor, fan_in: int, outscale: float = 1.0) -> None:
    std = outscale / math.sqrt(fan_in)
    assert weight.std().item() == pytest.approx(std, rel=0.02)
    assert abs(weight.mean().item()) < 0.02 * std
    cut = 2 * std / CUT_STD
    assert 0.99 * cut < weight.abs().max().item() <= cut * (1 + 1e-4)


def test_the_cut_normal_loses_a_factor_of_1_1368() -> None:
    lost = 1 / CUT_STD
    assert lost == pytest.approx(1.1368, abs=1e-4)


@pytest.mark.parametrize("outscale", [1.0, 0.01])
def test_linear_starts_with_the_width_of_its_input(outscale: float) -> None:
    torch.manual_seed(0)
    layer = Linear(100, 400, outscale)
    check_weight(layer.weight, 100, outscale)
    assert torch.equal(layer.bias, torch.zeros(400))


def test_outscale_zero_gives_zero_weights() -> None:
    assert not Linear(8, 255, 0.0).weight.any()


def test_block_linear_starts_with_the_whole_input_width() -> None:
    torch.manual_seed(0)
    layer = BlockLinear(400, 800, 8)
    assert layer.weight.shape == (8, 50, 100)
    check_weight(layer.weight, 400)
    assert not layer.bias.any()


def test_convolutions_start_with_the_inputs_of_one_output_pixel() -> None:
    torch.manual_seed(0)
    layer = Conv2d(32, 64, 5)
    check_weight(layer.weight, 5 * 5 * 32)
    up = UpConv2d(64, 64)
    check_weight(up.weight, 4 * 64)
    for conv in (layer, up):
        assert conv.bias is not None
        assert not conv.bias.any()


def test_layers_keep_the_size_of_unit_inputs() -> None:
    torch.manual_seed(0)
    for layer, shape in [
        (Linear(256, 256), (2000, 256)),
        (Conv2d(16, 64, 5), (8, 16, 32, 32)),
        (UpConv2d(32, 64), (8, 32, 16, 16)),
    ]:
        out = layer(torch.randn(*shape))
        inner = out if out.dim() == 2 else out[..., 2:-2, 2:-2]
        assert inner.std().item() == pytest.approx(1.0, abs=0.06)


# Norms


def test_rms_norm_by_hand() -> None:
    layer = RMSNorm(2)
    assert torch.equal(layer.scale, torch.ones(2))
    with torch.no_grad():
        layer.scale.copy_(torch.tensor([1.0, 10.0]))
    out = layer(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    rms = math.sqrt(12.5 + 1e-4)
    close(out, np.array([[3 / rms, 40 / rms], [0, 0]]))


def test_rms_norm_floor_is_1e_4() -> None:
    # An input of root mean square 0.01 is at the floor: divided by sqrt(1e-4 + 1e-4).
    out = RMSNorm(3)(torch.full((3,), 0.01))
    close(out, np.full(3, math.sqrt(0.5)))


def test_rms_norm_of_bfloat16_is_computed_in_float32() -> None:
    x = torch.randn(4, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    out = RMSNorm(512)(x)
    assert out.dtype == torch.bfloat16
    close(out, norm(array(x)), rtol=2**-8)  # one rounding, at the end


def test_norm_silu_and_its_form_for_channels() -> None:
    x = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))  # [N, C, h, w]
    layer = ChannelNormSiLU(5)
    expected = silu(norm(array(x.permute(0, 2, 3, 1))))
    close(layer(x).permute(0, 2, 3, 1), expected)
    close(NormSiLU(5)(x.permute(0, 2, 3, 1)), expected)


# Layers


def test_block_linear_mixes_within_blocks_only() -> None:
    torch.manual_seed(0)
    layer = BlockLinear(6, 4, 2)
    nn.init.normal_(layer.bias)
    x = torch.randn(5, 7, 2, 3)
    out = layer(x)
    w, b = array(layer.weight), array(layer.bias)
    for g in range(2):
        close(out[..., g, :], array(x)[..., g, :] @ w[g] + b[2 * g : 2 * g + 2])
    assert layer(x[0, 0]).shape == (2, 2)  # no leading axes


def test_block_linear_refuses_sizes_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match=r"10 inputs and 16 outputs .* blocks=8"):
        BlockLinear(10, 16, 8)


def test_mlp_is_linear_norm_silu_in_this_order() -> None:
    torch.manual_seed(0)
    mlp = MLP(3, 4, 2)
    for p in mlp.parameters():
        nn.init.normal_(p)
    x = torch.randn(6, 3)
    y = array(x)
    layers = [m for m in mlp.modules() if isinstance(m, Linear | RMSNorm)]
    for linear, scale in zip(layers[::2], layers[1::2], strict=True):
        assert isinstance(linear, Linear)
        assert isinstance(scale, RMSNorm)
        y = silu(norm(y @ array(linear.weight).T + array(linear.bias), array(scale.scale)))
    close(mlp(x), y)
    assert mlp.out_features == 4
    assert MLP(3, 4, 0).out_features == 3  # no layer: the input itself


@pytest.mark.parametrize(("kernel", "stride"), [(5, 1), (3, 1), (4, 2)])
def test_convolutions_keep_or_halve_the_size(kernel: int, stride: int) -> None:
    out = Conv2d(3, 2, kernel, stride)(torch.zeros(1, 3, 32, 48))
    assert out.shape == (1, 2, 32 // stride, 48 // stride)


def test_upconvolution_doubles_the_size() -> None:
    assert UpConv2d(3, 2)(torch.zeros(1, 3, 4, 6)).shape == (1, 2, 8, 12)


def test_unpatch_is_a_transposed_convolution_without_overlap() -> None:
    torch.manual_seed(0)
    layer, x = Unpatch(5, 3, 4), torch.randn(2, 5, 3, 2)
    weight = layer.out.weight.view(4, 4, 3, 5).permute(3, 2, 0, 1)  # [cin, cout, i, j]
    with torch.no_grad():
        layer.out.bias.copy_(torch.arange(3.0).repeat(16))
    expected = F.conv_transpose2d(x, weight, torch.arange(3.0), stride=4)
    assert layer(x).shape == (2, 3, 12, 8)
    assert torch.allclose(layer(x), expected, atol=1e-5)


# EMA copy and counting


def test_ema_copy_starts_equal_and_moves_by_its_rate() -> None:
    source = Linear(1, 1)
    nn.init.constant_(source.weight, 1.0)
    copy = EMACopy(source, 0.25)
    nn.init.constant_(source.weight, 5.0)
    nn.init.constant_(source.bias, -1.0)
    assert copy(torch.ones(1, 1)).item() == 1.0
    copy.update(source)  # 1 + (5 - 1) / 4 = 2, and 0 - 1/4
    assert copy(torch.ones(1, 1)).item() == pytest.approx(2.0 - 0.25)
    copy.update(source)  # 2 + 3/4, and -1/4 - 3/16
    assert copy(torch.ones(1, 1)).item() == pytest.approx(2.75 - 0.4375)
    assert source.weight.item() == 5.0


def test_ema_copy_has_nothing_to_train() -> None:
    source = MLP(3, 4, 2)
    copy = EMACopy(source, 0.02)
    x = torch.zeros(1, 3, requires_grad=True)
    copy(x).sum().backward()
    assert all(p.grad is None for p in copy.parameters())
    assert count_parameters(copy) == 0
    assert count_parameters(source) == (3 * 4 + 4 + 4) + (4 * 4 + 4 + 4)
