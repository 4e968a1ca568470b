"""Layers shared by every learned world: linear, block-linear, convolution, RMSNorm, MLP, EMA copy.

Initialisation and order (layer, RMSNorm, SiLU) follow DreamerV3 (Hafner et al., Nature 2025).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.accel import fused

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
        return fused.rms_norm(x, self.scale, self.eps)


class NormSiLU(nn.Module):
    """silu(RMSNorm(x)) over the last axis."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = RMSNorm(features)

    def forward(self, x: Tensor) -> Tensor:
        return fused.norm_silu(x, self.norm.scale, self.norm.eps)


class MLP(nn.Sequential):
    """`layers` times (Linear, RMSNorm, SiLU): [..., in] -> [..., units]."""

    def __init__(self, in_features: int, units: int, layers: int) -> None:
        widths = [in_features] + [units] * layers
        super().__init__(
            *(nn.Sequential(Linear(a, b), NormSiLU(b)) for a, b in itertools.pairwise(widths))
        )
        self.out_features = widths[-1]


class ReluMLP(nn.Sequential):
    """`layers` times (linear, ReLU), then linear: [..., in] -> [..., out].

    Weights begin as PyTorch draws them or, with glorot, Glorot uniform and biases at 0.
    """

    def __init__(
        self, in_features: int, units: int, layers: int, out_features: int, glorot: bool = False
    ) -> None:
        widths = [in_features] + [units] * layers + [out_features]
        parts: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            linear = nn.Linear(a, b)
            if glorot:
                nn.init.xavier_uniform_(linear.weight)
                nn.init.zeros_(linear.bias)
            parts += [linear, nn.ReLU()]
        super().__init__(*parts[:-1])
        self._linears = tuple(parts[::2])

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Sequential`, with a third of its calls: for small layers these are the time."""
        for i, layer in enumerate(self._linears):
            x = F.linear(x if i == 0 else x.relu_(), layer.weight, layer.bias)  # type: ignore[arg-type]
        return x


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

    blocks = 1  # of pixels in the result of `in_blocks`

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 4, 2, padding=1)

    def reset_parameters(self) -> None:
        """Draw the weight anew; 4 of the 16 taps meet each output pixel."""
        init_weight(self.weight, 4 * self.in_channels)
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def in_blocks(self, x: Tensor) -> Tensor:
        """[N, cin, h, w] -> [N, 2 h, 2 w, cout]: every pixel a block of its own."""
        out: Tensor = self(x)
        return out.permute(0, 2, 3, 1)


class UpsampleConv2d(Conv2d):
    """Every pixel repeated 2 x 2 times, then a convolution of odd width k.

    Computed without the repetition: of k neighbours of a fine pixel, those that repeat one coarse
    pixel share a product with the sum of their weights. So each of the four fine pixels of a coarse
    one is a small convolution of the coarse image, and all four are one with four times the
    channels: for k = 5 of width 3, with 36 products instead of 100.

        fine     ...  2i-2  2i-1 | 2i    2i+1 | 2i+2  2i+3 ...
        coarse   ...     i-1     |     i      |     i+1    ...
        at 2i          w0 + w1      w2 + w3       w4
        at 2i+1          w0         w1 + w2     w3 + w4
    """

    blocks = 2
    sums: Tensor

    def __init__(self, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__(channels_in, channels_out, kernel)
        reach = kernel // 2
        self.reach = (reach + 1) // 2  # in coarse pixels
        sums = torch.zeros(2, 2 * self.reach + 1, kernel)  # which weights meet a coarse pixel
        for fine in range(2):
            for tap in range(kernel):
                sums[fine, (fine + tap - reach) // 2 + self.reach, tap] = 1.0
        self.register_buffer("sums", sums, persistent=False)

    def in_blocks(self, x: Tensor) -> Tensor:
        """[N, cin, h, w] -> [N, h, w, 2 * 2 * cout], see `fused.unblock`."""
        weight = torch.einsum("axt, byu, octu -> abocxy", self.sums, self.sums, self.weight)
        assert self.bias is not None
        y = F.conv2d(x, weight.flatten(0, 2), self.bias.repeat(4), padding=self.reach)
        return y.permute(0, 2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return fused.unblock(self.in_blocks(x), 2).permute(0, 3, 1, 2)


class Unpatch(nn.Module):
    """[N, cin, h, w] -> [N, cout, k h, k w]: each place becomes a patch of k x k pixels of its
    own. A transposed convolution with stride and kernel k, as one matrix product (three times as
    fast on a CPU)."""

    def __init__(self, channels_in: int, channels_out: int, k: int) -> None:
        super().__init__()
        self.blocks = k
        self.out = Linear(channels_in, k * k * channels_out)

    def in_blocks(self, x: Tensor) -> Tensor:
        """[N, cin, h, w] -> [N, h, w, k * k * cout], see `fused.unblock`."""
        out: Tensor = self.out(x.permute(0, 2, 3, 1))
        return out

    def forward(self, x: Tensor) -> Tensor:
        return fused.unblock(self.in_blocks(x), self.blocks).permute(0, 3, 1, 2)  # channels-last


class ChannelNormSiLU(nn.Module):
    """silu(RMSNorm) over the channels of [N, C, h, w]; fastest on channels-last memory."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = NormSiLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def pooled(self, x: Tensor) -> Tensor:
        """The same of the largest of each 2 x 2 pixels: [N, C, h, w] -> [N, C, h / 2, w / 2]."""
        norm = self.norm.norm
        y = fused.pool_norm_silu(x.permute(0, 2, 3, 1), norm.scale, norm.eps)
        return y.permute(0, 3, 1, 2)

    def unblocked(self, x: Tensor, blocks: int) -> Tensor:
        """The same of pixels in blocks: [N, h, w, s * s * C] -> [N, C, h s, w s]."""
        norm = self.norm.norm
        return fused.norm_silu(x, norm.scale, norm.eps, blocks).permute(0, 3, 1, 2)


class PoolStage(nn.Sequential):
    """Convolution, max-pool of 2 x 2 pixels, norm, SiLU; the last three in one pass."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__(
            Conv2d(channels_in, channels_out, kernel),
            nn.MaxPool2d(2),
            ChannelNormSiLU(channels_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        conv, _, norm = self
        return norm.pooled(conv(x))  # type: ignore[operator]


class EMACopy(nn.Module):
    """A frozen copy of a module that follows it: w <- w + rate * (source - w) at every update."""

    def __init__(self, source: nn.Module, rate: float) -> None:
        super().__init__()
        self.module = copy.deepcopy(source).requires_grad_(False)
        self.rate = rate

    @torch.no_grad()
    def update(self, source: nn.Module, moves: Tensor | None = None) -> None:
        """Move one step towards the source, parameters in the same order; not where the scalar
        tensor `moves` is False."""
        rate = self.rate if moves is None else self.rate * moves
        for p, target in zip(self.module.parameters(), source.parameters(), strict=True):
            p.lerp_(target, rate)

    def forward(self, *args: Any) -> Tensor:
        out: Tensor = self.module(*args)
        return out


@contextmanager
def held(*modules: nn.Module) -> Iterator[None]:
    """No gradient reaches the weights of these modules from what they compute inside; it still
    flows through them."""
    weights = [p for module in modules for p in module.parameters() if p.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def count_parameters(module: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
