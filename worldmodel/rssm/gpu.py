"""`worldmodel.rssm.steps` on a CUDA GPU: one launch of a Triton kernel each."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from worldmodel.accel.gpu import launch, power, programs, sizes
from worldmodel.rssm import gpu_kernels as kernels
from worldmodel.rssm.steps import Steps, Vectors

NUMBERS = 1024  # of a row, that a program handles where they do not depend on one another


class Launches(Steps):
    """For rows B on a device."""

    def __init__(
        self, gaussian: bool, unimix: float, eps: float, vectors: Vectors, rows: int
    ) -> None:
        super().__init__(gaussian, unimix, eps, vectors)
        self.rows = rows

    def sums(self, width: int) -> Tensor:
        return self.vectors.mix_b.new_zeros(self.rows, width)

    def total(self, sums: Tensor) -> Tensor:
        return sums.sum(0)

    def embed(self, deter: Tensor, stoch: Tensor, reset: Tensor, out: Tensor) -> None:
        rows, heads, h = deter.shape
        x = deter, stoch, self.vectors.embed_b, self.vectors.embed_scale, reset, out
        launch(kernels.embed, (rows, 2), *x, heads - 1, h, self.eps, **_row(h))

    def embed_back(
        self, grad: Tensor, deter: Tensor, stoch: Tensor, reset: Tensor, ddeter: Tensor,
        dstoch: Tensor, sums: Tensor,
    ) -> None:  # fmt: skip
        rows, heads, h = deter.shape
        x = grad, deter, stoch, self.vectors.embed_scale, reset, ddeter, dstoch, sums
        launch(kernels.embed_back, (rows, 2), *x, heads - 1, h, self.eps, **_row(h))

    def mix(
        self, own: Tensor, shared: Tensor, action: Tensor, reset: Tensor, mixed: Tensor,
        out: Tensor,
    ) -> None:  # fmt: skip
        rows, wide = mixed.shape
        x = own, shared, action, self.vectors.mix_b, self.vectors.mix_scale, reset, mixed, out
        launch(kernels.mix, (rows,), *x, rows, own.shape[2], wide, self.eps, **_row(wide))

    def mix_back(self, grad: Tensor, mixed: Tensor, dmixed: Tensor, sums: Tensor) -> None:
        rows, wide = mixed.shape
        x = grad, mixed, self.vectors.mix_scale, dmixed, sums
        launch(kernels.mix_back, (rows,), *x, rows, grad.shape[2], wide, self.eps, **_row(wide))

    def gru(self, gates: Tensor, deter: Tensor, reset: Tensor, out: Tensor) -> None:
        grid, rest, size = _numbers(deter, gates)
        launch(kernels.gru, grid, gates, self.vectors.gates_b, deter, reset, out, *rest, **size)

    def gru_back(
        self, grad: Tensor, direct: Tensor, again: Tensor, gates: Tensor, deter: Tensor,
        reset: Tensor, dgates: Tensor,
    ) -> None:  # fmt: skip
        grid, rest, size = _numbers(deter, gates)
        x = grad, direct, again, gates, self.vectors.gates_b, deter, reset, dgates
        launch(kernels.gru_back, grid, *x, *rest, **size)

    def infer(self, deter: Tensor, seen: Tensor, out: Tensor) -> None:
        rows, heads, h = deter.shape
        x = deter, seen, self.vectors.infer_scale, out
        launch(kernels.infer, (rows,), *x, heads, h, self.eps, **_row(h))

    def infer_back(self, grad: Tensor, deter: Tensor, ddeter: Tensor, sums: Tensor) -> None:
        rows, heads, h = deter.shape
        x = grad, deter, self.vectors.infer_scale, ddeter, sums
        launch(kernels.infer_back, (rows,), *x, heads, h, self.eps, **_row(h))

    def noise(self, out: Tensor) -> Tensor:
        # The kernel makes exponential clocks of uniform numbers.
        return out.normal_() if self.gaussian else out.uniform_()

    def draw(self, params: Tensor, noise: Tensor, out: Tensor, biased: bool) -> None:
        _, groups, classes = params.shape
        count = params.numel() // classes
        size = sizes(classes, count)
        grid, x = programs(count, size), (params, self.vectors.out_b, noise, out, count, groups)
        if self.gaussian:
            launch(kernels.normal, grid, *x, BIAS=not biased, **_narrow(size))
        else:
            launch(kernels.one_hot, grid, *x, classes, self.unimix, BIAS=not biased, **size)

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
