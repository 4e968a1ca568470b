"""The functions of `accel.fused` on a CUDA GPU, by Triton kernels (`accel.gpu_kernels`).

How much a program does follows from the width of its rows alone: a measured choice would slow the
first update down and could not be captured in a CUDA graph.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from worldmodel.accel import gpu_kernels as kernels

NUMBERS = 2048  # that a program handles at once, where its rows are narrower
MOST = 1024  # programs that leave partial sums


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Run a kernel as so many programs, on the device of its first tensor."""
    with torch.cuda.device_of(args[0]):
        kernel[grid](*args, **options)


def works(device: torch.device | str) -> bool:
    """Whether a kernel runs there; warns where none does. Triton compiles with a C compiler of the
    system's, which may be missing."""
    try:
        with torch.no_grad():
            norm_silu(torch.ones(1, 2, device=device), torch.ones(2, device=device), 1e-4, 1)
    except Exception as error:  # of many kinds, by what is missing
        warnings.warn(
            f"Triton cannot run its kernels on {device} ({type(error).__name__}: {error}). Updates "
            "will use plain PyTorch, which takes longer. It needs a C compiler (gcc) and the "
            "headers of Python (python3-dev).",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def power(number: int) -> int:
    """The power of two from `number` on: the blocks of a kernel are of such sizes."""
    return 1 << (number - 1).bit_length()


def sizes(width: int, rows: int) -> dict[str, int]:
    """How many of `rows` rows of so many numbers a program handles at once, by how many warps."""
    wide = power(width)
    high = max(1, min(NUMBERS // wide, power(rows)))
    return {"ROWS": high, "WIDE": wide, "num_warps": min(max(wide * high // 512, 1), 16)}


def programs(rows: int, size: dict[str, int]) -> tuple[int]:
    """As many as handle all rows."""
    return (math.ceil(rows / size["ROWS"]),)


def norm_silu(x: Tensor, scale: Tensor, eps: float, blocks: int) -> Tensor:
    """See `worldmodel.accel.fused.norm_silu`."""
    out: Tensor = _NormSiLU.apply(x, scale, eps, blocks)
    return out


class _NormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, eps: float, s: int) -> Tensor:
        x, c = x.contiguous(), len(scale)
        rows, w = x.numel() // c, 1 if s == 1 else x.shape[-2]
        out = x.new_empty(x.shape if s == 1 else (x.shape[0], x.shape[1] * s, w * s, c))
        size = sizes(c, rows)
        args = x, scale.contiguous(), out, rows, c, eps, w, s
        launch(kernels.norm_silu, programs(rows, size), *args, **size)
        ctx.save_for_backward(x, scale)
        ctx.rest = rows, c, eps, w, s
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        dx, sums, grid, size = _for_back(x, scale)
        args = grad.contiguous(), x, scale.contiguous(), dx, sums
        launch(kernels.norm_silu_back, grid, *args, *ctx.rest, **size)
        return dx, sums.sum(0).to(scale.dtype), None, None


def _for_back(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, tuple[int], dict[str, int]]:
    """A tensor like x, partial sums [programs, C], the programs, and their sizes."""
    rows = x.numel() // len(scale)
    size = sizes(len(scale), rows)
    count = min(*programs(rows, size), MOST)
    sums = scale.new_empty(count, len(scale), dtype=torch.float32)
    return torch.empty_like(x), sums, (count,), size


def pool_norm_silu(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """See `worldmodel.accel.fused.pool_norm_silu`."""
    out: Tensor = _PoolNormSiLU.apply(x, scale, eps)
    return out


class _PoolNormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        n, h, w, c = x.shape
        most = x.new_empty(n, h // 2, w // 2, c)
        which, out = torch.empty_like(most, dtype=torch.uint8), torch.empty_like(most)
        rows = most.numel() // c
        size = sizes(c, rows)
        args = x.contiguous(), scale.contiguous(), most, which, out, rows, c, eps, w // 2
        launch(kernels.pool_norm_silu, programs(rows, size), *args, **size)
        ctx.save_for_backward(most, which, scale)
        ctx.eps = eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        most, which, scale = ctx.saved_tensors
        n, h, w, c = most.shape
        _, sums, grid, size = _for_back(most, scale)
        dx = grad.new_empty(n, 2 * h, 2 * w, c)
        args = grad.contiguous(), most, which, scale.contiguous(), dx, sums, n * h * w, c, ctx.eps
        launch(kernels.pool_norm_silu_back, grid, *args, w, **size)
        return dx, sums.sum(0).to(scale.dtype), None


def image_loss(x: Tensor, centre: Tensor, target: Tensor, blocks: int) -> Tensor:
    """See `worldmodel.accel.fused.image_loss`."""
    out: Tensor = _ImageLoss.apply(x, centre, target, blocks)
    return out


class _ImageLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, centre: Tensor, target: Tensor, s: int) -> Tensor:
        x, centre, target = x.contiguous(), centre.contiguous(), target.contiguous()
        n, h, w, blocks = x.shape
        pixels, c = h * w * s * s, blocks // (s * s)
        size = sizes(c, pixels)
        chunk = 4 * size["ROWS"]
        ctx.rest = pixels, c, w, chunk, s
        ctx.size, ctx.grid = size, (n, math.ceil(pixels / chunk))
        sums = x.new_empty(*ctx.grid, c, dtype=torch.float32)
        args = x, centre, target, sums, sums, *ctx.rest
        launch(kernels.image_loss, ctx.grid, *args, BACK=False, **size)
        ctx.save_for_backward(x, centre, target)
        return sums.sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, centre, target = ctx.saved_tensors
        dx = torch.empty_like(x)
        args = x, centre, target, grad.contiguous(), dx, *ctx.rest
        launch(kernels.image_loss, ctx.grid, *args, BACK=True, **ctx.size)
        return dx, None, None, None


def two_hot_mean(logits: Tensor, bins: Tensor) -> Tensor:
    """See `worldmodel.accel.fused.two_hot_mean`; without gradient."""
    out = logits.new_empty(logits.shape[:-1], dtype=torch.float32)
    size = sizes(len(bins), out.numel())
    args = logits.contiguous(), bins.contiguous(), out, out.numel(), len(bins)
    launch(kernels.two_hot_mean, programs(out.numel(), size), *args, **size)
    return out


def two_hot_log_prob(logits: Tensor, above: Tensor, weight: Tensor) -> Tensor:
    """See `worldmodel.accel.fused.two_hot_log_prob`."""
    out: Tensor = _TwoHotLogProb.apply(logits, above, weight)
    return out


class _TwoHotLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, above: Tensor, weight: Tensor) -> Tensor:
        logits, above, weight = logits.contiguous(), above.contiguous(), weight.contiguous()
        norm = logits.new_empty(logits.shape[:-1], dtype=torch.float32)
        out = torch.empty_like(weight, dtype=torch.float32)
        ctx.rest = norm.numel(), logits.shape[-1], len(above)
        ctx.size = sizes(logits.shape[-1], norm.numel())
        args = logits, above, weight, norm, out, *ctx.rest
        launch(kernels.two_hot_log_prob, programs(norm.numel(), ctx.size), *args, **ctx.size)
        ctx.save_for_backward(logits, above, weight, norm)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, above, weight, norm = ctx.saved_tensors
        dx = torch.empty_like(logits)
        args = grad.contiguous(), logits, above, weight, norm, dx, *ctx.rest
        grid = programs(norm.numel(), ctx.size)
        launch(kernels.two_hot_log_prob_back, grid, *args, **ctx.size)
        return dx, None, None
