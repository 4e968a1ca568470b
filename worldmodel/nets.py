"""Layers shared by every learned world: linear, block-linear, convolution, RMSNorm, MLP, EMA copy.

Initialisation and order (layer, RMSNorm, SiLU) follow DreamerV3 (Hafner et al., Nature 2025).
"""

from __future__ import annotations

import copy
import itertools
import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

# Standard deviation of a unit normal cut at two deviations is 0.8796 = 1 / 1.1368.
_TRUNC_CORRECTION = 1.1368


@torch.no_grad()
def init_weight(weight: Tensor, fan_in: int, outscale: float = 1.0) -> None:
    """Fill with a truncated normal of standard deviation outscale / sqrt(fan_in), in place."""
    if outscale == 0.0:
        weight.zero_()
        return
    std = _TRUNC_CORRECTION * outscale / math.sqrt(fan_in)
    nn.init.trunc_normal_(weight, 0.0, std, -2 * std, 2 * std)


class Linear(nn.Linear):
    """[..., in] -> [..., out] with the package's initialisation; bias starts at 0."""

    def __init__(self, in_features: int, out_features: int, outscale: float = 1.0) -> None:
        self.outscale = outscale
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        """Draw the weight anew."""
        init_weight(self.weight, self.in_features, self.outscale)
        nn.init.zeros_(self.bias)


class BlockLinear(nn.Module):
    """Block-diagonal linear layer: block g of the input alone feeds block g of the output.

    [..., G, I] -> [..., G, O]. fan_in of the initialisation is the whole input width G * I.
    """

    def __init__(self, in_features: int, out_features: int, blocks: int) -> None:
        super().__init__()
        if in_features % blocks or out_features % blocks:
            raise ValueError(
                f"BlockLinear: {in_features} inputs and {out_features} outputs must both divide "
                f"by blocks={blocks}. Choose sizes that are multiples of it."
            )
        self.blocks = blocks
        self.weight = nn.Parameter(
            torch.empty(blocks, in_features // blocks, out_features // blocks)
        )
        self.bias = nn.Parameter(torch.zeros(out_features))
        init_weight(self.weight, in_features)

    def forward(self, x: Tensor) -> Tensor:
        lead = x.shape[:-2]
        x = x.reshape(-1, self.blocks, self.weight.shape[1]).transpose(0, 1)  # [G, N, I]
        bias = self.bias.view(self.blocks, 1, -1)
        out = torch.baddbmm(bias, x, self.weight)  # [G, N, O]
        return out.transpose(0, 1).reshape(*lead, self.blocks, self.weight.shape[2])


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, computed in float32; scale starts at 1."""

    def __init__(self, features: int, eps: float = 1e-4) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        y = F.rms_norm(x.float(), (x.shape[-1],), self.scale.float(), self.eps)
        return y.to(x.dtype)


class NormSiLU(nn.Module):
    """silu(RMSNorm(x)) over the last axis."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = RMSNorm(features)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(x))


class MLP(nn.Sequential):
    """`layers` times (Linear, RMSNorm, SiLU): [..., in] -> [..., units]."""

    def __init__(self, in_features: int, units: int, layers: int) -> None:
        widths = [in_features] + [units] * layers
        super().__init__(
            *(nn.Sequential(Linear(a, b), NormSiLU(b)) for a, b in itertools.pairwise(widths))
        )
        self.out_features = widths[-1]


class Conv2d(nn.Conv2d):
    """Convolution with padding that keeps ceil(size / stride), and the package's initialisation."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            channels_in, channels_out, kernel, stride, padding=(kernel - stride + 1) // 2
        )

    def reset_parameters(self) -> None:
        """Draw the weight anew."""
        kh, kw = self.kernel_size
        init_weight(self.weight, kh * kw * self.in_channels)
        assert self.bias is not None
        nn.init.zeros_(self.bias)


class UpConv2d(nn.ConvTranspose2d):
    """Transposed convolution that doubles the size (kernel 4, stride 2)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 4, 2, padding=1)

    def reset_parameters(self) -> None:
        """Draw the weight anew; 4 of the 16 taps meet each output pixel."""
        init_weight(self.weight, 4 * self.in_channels)
        assert self.bias is not None
        nn.init.zeros_(self.bias)


class Unpatch(nn.Module):
    """[N, cin, h, w] -> [N, cout, k h, k w]: each place becomes a patch of k x k pixels of its
    own. A transposed convolution with stride and kernel k, as one matrix product (three times as
    fast on a CPU)."""

    def __init__(self, channels_in: int, channels_out: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.out = Linear(channels_in, k * k * channels_out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.out(x.permute(0, 2, 3, 1))  # [N, h, w, k k cout]
        y = rearrange(y, "n h w (i j c) -> n (h i) (w j) c", i=self.k, j=self.k)
        return y.permute(0, 3, 1, 2)  # channels-last memory


class ChannelNormSiLU(nn.Module):
    """silu(RMSNorm) over the channels of [N, C, h, w]; fastest on channels-last memory."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = NormSiLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class EMACopy(nn.Module):
    """A frozen copy of a module that follows it: w <- w + rate * (source - w) at every update."""

    def __init__(self, source: nn.Module, rate: float) -> None:
        super().__init__()
        self.module = copy.deepcopy(source).requires_grad_(False)
        self.rate = rate

    @torch.no_grad()
    def update(self, source: nn.Module) -> None:
        """Move one step towards the source, parameters in the same order."""
        torch._foreach_lerp_(list(self.module.parameters()), list(source.parameters()), self.rate)

    def forward(self, *args: Tensor) -> Tensor:
        out: Tensor = self.module(*args)
        return out


def count_parameters(module: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
