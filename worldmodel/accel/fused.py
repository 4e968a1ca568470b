"""Functions that one pass over memory computes, each with its plain definition.

On a CPU in float32 they run as loops in machine code (`accel.kernels`, loaded at the first
call), on a CUDA GPU as Triton kernels (`accel.gpu`, likewise); everywhere else, in graphs that
are exported or compiled, and for other types, as the plain PyTorch definition beside them. All give
the same numbers but for rounding, gradients included.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Parameter
from torch.nn import functional as F

from worldmodel.accel.threads import array_of, ranges, share, sums_for

GPU_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def in_loops(*tensors: Tensor) -> bool:
    """Whether all are ordinary float32 tensors on a CPU, for the loops in machine code."""
    for x in tensors:
        if not x.is_cpu or x.dtype is not torch.float32 or x.numel() == 0:
            return False
        if type(x) is not Tensor and type(x) is not Parameter:
            return False
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing())


def on_gpu(*tensors: Tensor) -> bool:
    """Whether all are ordinary tensors on a CUDA GPU, for kernels in Triton."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    for x in tensors:
        if not x.is_cuda or x.dtype not in GPU_TYPES or x.numel() == 0:
            return False
        if type(x) is not Tensor and type(x) is not Parameter:
            return False
    return _has_triton(tensors[0].device)


@cache
def _has_triton(device: torch.device) -> bool:
    """Whether Triton, part of torch's builds for a GPU, is there and can run on this one."""
    if importlib.util.find_spec("triton") is None:
        return False
    # From that capability on a GPU computes in bfloat16.
    return torch.cuda.get_device_capability(device) >= (8, 0) and bool(_gpu().works(device))


@cache
def _gpu() -> Any:
    from worldmodel.accel import gpu  # and with it Triton

    return gpu


def _learns(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


@cache
def _loops() -> Any:
    from worldmodel.accel import kernels  # numba takes a while to load

    return kernels


# RMSNorm and SiLU.


def norm_silu(x: Tensor, scale: Tensor, eps: float, blocks: int = 1) -> Tensor:
    """silu(RMSNorm(x)) over the last axis of [..., C], computed in float32.

    blocks = s > 1: x is [N, h, w, s * s * C], the s x s pixels of each block after one another, and
    the result [N, h s, w s, C] is the image in its own order.
    """
    if in_loops(x, scale):
        if not _learns(x, scale):
            return _norm_silu(x.contiguous(), scale, eps, blocks)
        out: Tensor = _NormSiLU.apply(x, scale, eps, blocks)
        return out
    if on_gpu(x, scale):
        return _gpu().norm_silu(x, scale, eps, blocks)
    return F.silu(rms_norm(unblock(x, blocks), scale, eps))


def rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """x / rms(x) * scale over the last axis, computed in float32."""
    return F.rms_norm(x.float(), (x.shape[-1],), scale.float(), eps).to(x.dtype)


def unblock(x: Tensor, s: int) -> Tensor:
    """[N, h, w, s * s * C] -> [N, h s, w s, C]."""
    return x if s == 1 else rearrange(x, "n h w (a b c) -> n (h a) (w b) c", a=s, b=s)


def _lines(x: Tensor, c: int, s: int) -> tuple[list[tuple[int, int]], int]:
    """How threads share the lines of x, and blocks in each line."""
    w = 1 if s == 1 else x.shape[-2]
    return ranges(x.numel() // (c * w * s * s), x.numel()), w


def _norm_silu(x: Tensor, scale: Tensor, eps: float, s: int) -> Tensor:
    c = scale.shape[0]
    parts, w = _lines(x, c, s)
    out = x.new_empty(x.shape if s == 1 else (x.shape[0], x.shape[1] * s, w * s, c))
    rows, result = array_of(x).reshape(-1, c), out.numpy().reshape(-1, c)
    share(_loops().norm_silu, parts, rows, array_of(scale), np.float32(eps), w, s, result)
    return out


def _norm_silu_back(
    grad: Tensor, x: Tensor, scale: Tensor, eps: float, s: int
) -> tuple[Tensor, Tensor]:
    c = scale.shape[0]
    parts, w = _lines(x, c, s)
    dx, sums = torch.empty_like(x), sums_for(parts, c)
    above, rows, below = (array_of(t).reshape(-1, c) for t in (grad.contiguous(), x, dx))
    args = above, rows, array_of(scale), np.float32(eps), w, s, below
    share(_loops().norm_silu_back, parts, *args, own=(sums,))
    return dx, torch.from_numpy(sums.sum(0))


class _NormSiLU(torch.autograd.Function):
    """The fused form of `norm_silu`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, eps: float, s: int) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, scale)
        ctx.rest = eps, s
        return _norm_silu(x, scale, eps, s)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_norm_silu_back(grad, *ctx.saved_tensors, *ctx.rest), None, None


def pool_norm_silu(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """silu(RMSNorm(.)) over the channels of the largest of each 2 x 2 pixels: [N, H, W, C] ->
    [N, H / 2, W / 2, C]."""
    if in_loops(x, scale):
        out: Tensor = _PoolNormSiLU.apply(x, scale, eps)
        return out
    if on_gpu(x, scale) and x.shape[1] % 2 == x.shape[2] % 2 == 0:
        return _gpu().pool_norm_silu(x, scale, eps)
    pooled = F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    return norm_silu(pooled, scale, eps)


class _PoolNormSiLU(torch.autograd.Function):
    """The fused form of `pool_norm_silu`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        n, h, w, c = x.shape
        most = x.new_empty(n, h // 2, w // 2, c)
        place, out = torch.empty_like(most, dtype=torch.uint8), torch.empty_like(most)
        rows, *results = (array_of(t).reshape(-1, c) for t in (x, most, place, out))
        parts, floor = ranges(n * h // 2, x.numel()), np.float32(eps)
        share(_loops().pool_norm_silu, parts, rows, array_of(scale), floor, w // 2, *results)
        ctx.save_for_backward(most, place, scale)
        ctx.eps, ctx.parts = eps, parts
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        most, place, scale = ctx.saved_tensors
        n, h, w, c = most.shape
        dmost, dscale = _norm_silu_back(grad, most, scale, ctx.eps, 1)
        dx = grad.new_empty(n, 2 * h, 2 * w, c)
        above, places, below = (array_of(t).reshape(-1, c) for t in (dmost, place, dx))
        share(_loops().unpool, ctx.parts, above, places, w, below)
        return dx, dscale, None


# Images.


def image_input(images: Tensor, mean: Tensor) -> Tensor:
    """uint8 images [N, H, W, C] as numbers from 0 to 1, measured from their mean [H, W, C]."""
    if not in_loops(mean) or type(images) is not Tensor or not images.numel():
        return images.float() / 255.0 - mean
    out = mean.new_empty(images.shape)
    rows = images.contiguous().numpy().reshape(len(images), -1)
    result, centre = out.numpy().reshape(rows.shape), array_of(mean).reshape(-1)
    share(_loops().image_input, ranges(len(rows), rows.size), rows, centre, result)
    return out


def image_loss(x: Tensor, centre: Tensor, target: Tensor, blocks: int) -> Tensor:
    """Squared error [N, C] of the images sigmoid(x + centre), summed over pixels.

    x: [N, h, w, s * s * C] in blocks (see `norm_silu`); centre: [H, W, C], without gradient;
    target: uint8 [N, H, W, C].
    """
    if in_loops(x, centre) and type(target) is Tensor:
        out: Tensor = _ImageLoss.apply(x, centre, target, blocks)
        return out
    if on_gpu(x, centre) and type(target) is Tensor:
        return _gpu().image_loss(x, centre, target, blocks)
    image = torch.sigmoid(unblock(x, blocks).float() + centre)
    return (image - target.float() / 255.0).square().sum((1, 2))


class _ImageLoss(torch.autograd.Function):
    """The fused form of `image_loss`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, centre: Tensor, target: Tensor, s: int) -> Tensor:
        x, centre, target = x.contiguous(), centre.contiguous(), target.contiguous()
        parts = ranges(len(x), x.numel())
        blocks, mean, images = _image_arrays(x, centre, target, s)
        sums = np.empty((len(x), mean.shape[1]), np.float32)
        rows = np.empty((len(parts), mean.shape[1]), np.float32)
        args = blocks, mean, images, x.shape[1], s, sums
        share(_loops().image_loss, parts, *args, own=(rows,))
        ctx.save_for_backward(x, centre, target)
        ctx.rest = s, parts
        return torch.from_numpy(sums).view(len(x), *centre.shape[1:]).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, centre, target = ctx.saved_tensors
        s, parts = ctx.rest
        dx = torch.empty_like(x)
        blocks, mean, images = _image_arrays(x, centre, target, s)
        below = _image_arrays(dx, centre, target, s)[0]
        wide = grad.unsqueeze(1).expand(-1, *centre.shape[1:]).reshape(len(x), -1).numpy()
        rows = np.empty((len(parts), mean.shape[1]), np.float32)
        args = wide, blocks, mean, images, x.shape[1], s, below
        share(_loops().image_loss_back, parts, *args, own=(rows,))
        return dx, None, None, None


def _image_arrays(x: Tensor, centre: Tensor, target: Tensor, s: int) -> tuple[np.ndarray, ...]:
    n, h, w, blocks = x.shape
    return (
        array_of(x).reshape(n * h * w, s, blocks // s),
        array_of(centre).reshape(len(centre), -1),
        target.numpy().reshape(n, len(centre), -1),
    )


# Two-hot distributions.


def two_hot_mean(logits: Tensor, bins: Tensor) -> Tensor:
    """The expectation [...] of `bins` [K] (odd, symmetric about 0) under softmax(logits [..., K]);
    summed in symmetric pairs, so that equal logits give exactly 0."""
    if in_loops(logits, bins) and not _learns(logits):
        out = logits.new_empty(logits.shape[:-1])
        rows, result = array_of(logits.contiguous()).reshape(-1, len(bins)), out.numpy().reshape(-1)
        parts = ranges(len(rows), rows.size)
        own = (np.empty((len(parts), len(bins)), np.float32),)
        share(_loops().two_hot_mean, parts, rows, bins.numpy(), result, own=own)
        return out
    if on_gpu(logits, bins) and not _learns(logits):
        return _gpu().two_hot_mean(logits, bins)
    probs = torch.softmax(logits, -1)
    middle = bins.shape[0] // 2
    high = probs[..., middle + 1 :]
    low = probs[..., :middle].flip(-1)
    return ((high - low) * bins[middle + 1 :]).sum(-1)


def two_hot_log_prob(logits: Tensor, above: Tensor, weight: Tensor) -> Tensor:
    """Negative cross-entropy [R, ...] of softmax(logits [..., K]) to R targets each, which lie
    between the bins `above` - 1 and `above` [R, ...], with the share `weight` at the upper one."""
    if in_loops(logits, weight):
        out: Tensor = _TwoHotLogProb.apply(logits, above, weight)
        return out
    if on_gpu(logits, weight):
        return _gpu().two_hot_log_prob(logits, above, weight)
    wide = logits.expand(len(above), *logits.shape)
    at_low = wide.gather(-1, (above - 1).unsqueeze(-1)).squeeze(-1)
    at_high = wide.gather(-1, above.unsqueeze(-1)).squeeze(-1)
    return at_low + weight * (at_high - at_low) - torch.logsumexp(logits, -1)


class _TwoHotLogProb(torch.autograd.Function):
    """The fused form of `two_hot_log_prob`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, above: Tensor, weight: Tensor) -> Tensor:
        logits, above, weight = logits.contiguous(), above.contiguous(), weight.contiguous()
        out, norm = torch.empty_like(weight), logits.new_empty(logits.shape[:-1])
        rows = array_of(logits).reshape(-1, logits.shape[-1])
        bins, shares = above.numpy().reshape(len(above), -1), weight.numpy().reshape(len(above), -1)
        result, norms = out.numpy().reshape(len(above), -1), norm.numpy().reshape(-1)
        parts = ranges(len(rows), rows.size)
        share(_loops().two_hot_log_prob, parts, rows, bins, shares, norms, result)
        ctx.save_for_backward(logits, above, weight, norm)
        ctx.parts = parts
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, above, weight, norm = ctx.saved_tensors
        dx = torch.empty_like(logits)
        rows, below = (array_of(t).reshape(-1, logits.shape[-1]) for t in (logits, dx))
        bins, shares, grads = (
            t.contiguous().numpy().reshape(len(above), -1) for t in (above, weight, grad)
        )
        args = grads, rows, bins, shares, norm.numpy().reshape(-1), below
        share(_loops().two_hot_log_prob_back, ctx.parts, *args)
        return dx, None, None
