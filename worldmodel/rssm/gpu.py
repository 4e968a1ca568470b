"""`worldmodel.rssm.steps` on a CUDA GPU: one launch of a Triton kernel each."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from worldmodel.gpu import launch, power, programs, sizes
from worldmodel.rssm import gpu_kernels as kernels
from worldmodel.rssm.steps import Steps

NUMBERS = 1024  # of a row, that a program handles where they do not depend on one another


class Launches(Steps):
    """For rows B on a device."""

    def __init__(
        self, gaussian: bool, unimix: float, eps: float, rows: int, device: torch.device
    ) -> None:
        super().__init__(gaussian, unimix, eps)
        self.rows, self.device = rows, device

    def sums(self, width: int) -> Tensor:
        return torch.zeros(self.rows, width, device=self.device)

    def total(self, sums: Tensor) -> Tensor:
        return sums.sum(0)

    def embed(
        self, deter: Tensor, stoch: Tensor, bias: Tensor, scale: Tensor, reset: Tensor, out: Tensor
    ) -> None:
        rows, heads, h = deter.shape
        args = deter, stoch, bias, scale, reset, out, heads - 1, h, self.eps
        launch(kernels.embed, (rows, 2), *args, **_row(h))

    def embed_back(
        self, grad: Tensor, deter: Tensor, stoch: Tensor, scale: Tensor, reset: Tensor,
        ddeter: Tensor, dstoch: Tensor, sums: Tensor,
    ) -> None:  # fmt: skip
        rows, heads, h = deter.shape
        args = grad, deter, stoch, scale, reset, ddeter, dstoch, sums, heads - 1, h, self.eps
        launch(kernels.embed_back, (rows, 2), *args, **_row(h))

    def mix(
        self, own: Tensor, shared: Tensor, action: Tensor, bias: Tensor, scale: Tensor,
        reset: Tensor, mixed: Tensor, out: Tensor,
    ) -> None:  # fmt: skip
        rows, wide = mixed.shape
        args = own, shared, action, bias, scale, reset, mixed, out, rows, own.shape[2], wide
        launch(kernels.mix, (rows,), *args, self.eps, **_row(wide))

    def mix_back(
        self, grad: Tensor, mixed: Tensor, scale: Tensor, dmixed: Tensor, sums: Tensor
    ) -> None:
        rows, wide = mixed.shape
        args = grad, mixed, scale, dmixed, sums, rows, grad.shape[2], wide, self.eps
        launch(kernels.mix_back, (rows,), *args, **_row(wide))

    def gru(self, gates: Tensor, bias: Tensor, deter: Tensor, reset: Tensor, out: Tensor) -> None:
        grid, rest, size = _numbers(deter, gates)
        launch(kernels.gru, grid, gates, bias, deter, reset, out, *rest, **size)

    def gru_back(
        self, grad: Tensor, direct: Tensor, again: Tensor, gates: Tensor, bias: Tensor,
        deter: Tensor, reset: Tensor, dgates: Tensor,
    ) -> None:  # fmt: skip
        grid, rest, size = _numbers(deter, gates)
        args = grad, direct, again, gates, bias, deter, reset, dgates
        launch(kernels.gru_back, grid, *args, *rest, **size)

    def infer(self, deter: Tensor, seen: Tensor, scale: Tensor, out: Tensor) -> None:
        rows, heads, h = deter.shape
        args = deter, seen, scale, out, heads, h, self.eps
        launch(kernels.infer, (rows,), *args, **_row(h))

    def infer_back(
        self, grad: Tensor, deter: Tensor, scale: Tensor, ddeter: Tensor, sums: Tensor
    ) -> None:
        rows, heads, h = deter.shape
        args = grad, deter, scale, ddeter, sums, heads, h, self.eps
        launch(kernels.infer_back, (rows,), *args, **_row(h))

    def noise(self, out: Tensor) -> Tensor:
        # The kernel makes exponential clocks of uniform numbers.
        return out.normal_() if self.gaussian else out.uniform_()

    def draw(self, params: Tensor, bias: Tensor | None, noise: Tensor, out: Tensor) -> None:
        *_, groups, classes = params.shape
        count = params.numel() // classes
        args = params, noise if bias is None else bias, noise, out, count, groups
        rest, biased = (classes, self.unimix), bias is not None
        size = sizes(classes, count)
        grid = programs(count, size)
        if self.gaussian:
            launch(kernels.normal, grid, *args, BIAS=biased, **_narrow(size))
        else:
            launch(kernels.one_hot, grid, *args, *rest, BIAS=biased, **size)

    def draw_back(self, grad: Tensor, params: Tensor, noise: Tensor, dparams: Tensor) -> None:
        classes = params.shape[-1]
        count = params.numel() // classes
        size = sizes(classes, count)
        grid = programs(count, size)
        if self.gaussian:
            args = grad, params, noise, dparams, count
            launch(kernels.normal_back, grid, *args, **_narrow(size))
        else:
            rest = count, classes, self.unimix
            launch(kernels.one_hot_back, grid, grad, params, dparams, *rest, **size)


def _row(width: int) -> dict[str, int]:
    """A program for one row of so many numbers, with many warps: there are few rows."""
    wide = power(width)
    return {"WIDE": wide, "num_warps": min(max(wide // 128, 1), 16)}


def _narrow(size: dict[str, int]) -> dict[str, int]:
    return {k: v for k, v in size.items() if k != "WIDE"}


def _numbers(
    deter: Tensor, gates: Tensor
) -> tuple[tuple[int, int], tuple[int, ...], dict[str, Any]]:
    """Programs, the last arguments and sizes of a kernel over the numbers of deter [B, D]."""
    rows, wide = deter.shape
    size = min(power(wide), NUMBERS)
    return (rows, math.ceil(wide / size)), (rows, gates.shape[2] // 3, wide), {"WIDE": size}
