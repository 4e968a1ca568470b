"""LayerNorm and mish in one pass, as `accel.fused` does it for RMSNorm and SiLU: PyTorch's own mish
takes thirty times as long on a CPU as the exponential in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from worldmodel.accel.fused import in_loops
from worldmodel.accel.threads import array_of, ranges, share


def norm_mish(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """mish(LayerNorm(x)) over the last axis of [..., C]; scale and shift [C], or [E, 1, C] for x of
    [E, N, C]. Computed in float32, which a bfloat16 product on a CPU also becomes."""
    if x.is_cpu and x.dtype is torch.bfloat16:
        x = x.float()  # the loops know no other
    if in_loops(x, scale, shift):
        if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
            out: Tensor = _NormMish.apply(x, scale, shift, eps)
            return out
        return _forward(x.contiguous(), scale, shift, eps)
    y = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    return F.mish(torch.addcmul(shift.float(), y, scale.float())).to(x.dtype)


def _forward(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    from worldmodel.accel import kernels  # numba takes a while to load

    c = x.shape[-1]
    out = torch.empty_like(x)
    rows, result = (array_of(t).reshape(-1, c) for t in (x, out))
    of = (array_of(t).reshape(-1, c) for t in (scale, shift))
    share(kernels.norm_mish, ranges(len(rows), x.numel()), rows, *of, np.float32(eps), result)
    return out


class _NormMish(torch.autograd.Function):
    """The fused form of `norm_mish`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, scale, shift)
        ctx.eps = eps
        return _forward(x, scale, shift, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        from worldmodel.accel import kernels

        x, scale, shift = ctx.saved_tensors
        c, dx = x.shape[-1], torch.empty_like(x)
        above, rows, below = (array_of(t).reshape(-1, c) for t in (grad.contiguous(), x, dx))
        of = [array_of(t).reshape(-1, c) for t in (scale, shift)]
        parts = ranges(len(rows), x.numel())
        sums = np.zeros((len(parts), len(of[0]), 2, c), np.float32)
        args = above, rows, *of, np.float32(ctx.eps), below
        share(kernels.norm_mish_back, parts, *args, own=(sums,))
        both = torch.from_numpy(sums.sum(0))
        return dx, both[:, 0].reshape(scale.shape), both[:, 1].reshape(shift.shape), None
