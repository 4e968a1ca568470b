"""`worldmodel.rssm.steps` on a CPU in float32: loops in machine code, shared by threads."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel import distributions
from worldmodel.accel.threads import ranges, share, sums_for
from worldmodel.rssm.steps import Steps, Vectors


@cache
def _kernels() -> Any:
    from worldmodel.rssm import kernels  # numba takes a while to load

    return kernels


class Loops(Steps):
    """For rows of `width` numbers, which threads share."""

    def __init__(
        self, gaussian: bool, unimix: float, eps: float, vectors: Vectors, rows: int, width: int
    ) -> None:
        super().__init__(gaussian, unimix, eps, vectors)
        self.parts = ranges(rows, rows * width)
        self.kernels, self.least = _kernels(), np.float32(eps)
        self.arrays = Vectors(*(x.numpy() for x in vectors))  # type: ignore[arg-type]

    def sums(self, width: int) -> np.ndarray:
        return sums_for(self.parts, width)

    def total(self, sums: np.ndarray) -> Tensor:
        return torch.from_numpy(sums.sum(0))

    def embed(self, deter: Tensor, stoch: Tensor, reset: Tensor, out: Tensor) -> None:
        x = deter.numpy(), stoch.numpy(), self.arrays.embed_b, self.arrays.embed_scale, self.least
        share(self.kernels.embed, self.parts, *x, reset.numpy(), out.numpy())

    def embed_back(
        self, grad: Tensor, deter: Tensor, stoch: Tensor, reset: Tensor, ddeter: Tensor,
        dstoch: Tensor, sums: np.ndarray,
    ) -> None:  # fmt: skip
        x = grad.numpy(), deter.numpy(), stoch.numpy(), self.arrays.embed_scale, self.least
        rest = reset.numpy(), ddeter.numpy(), dstoch.numpy()
        share(self.kernels.embed_back, self.parts, *x, *rest, own=(sums,))

    def mix(
        self, own: Tensor, shared: Tensor, action: Tensor, reset: Tensor, mixed: Tensor,
        out: Tensor,
    ) -> None:  # fmt: skip
        x = own.numpy(), shared.numpy(), action.numpy(), self.arrays.mix_b, self.arrays.mix_scale
        rest = self.least, reset.numpy(), mixed.numpy(), out.numpy()
        share(self.kernels.mix, self.parts, *x, *rest)

    def mix_back(self, grad: Tensor, mixed: Tensor, dmixed: Tensor, sums: np.ndarray) -> None:
        x = grad.numpy(), mixed.numpy(), self.arrays.mix_scale, self.least, dmixed.numpy()
        share(self.kernels.mix_back, self.parts, *x, own=(sums,))

    def gru(self, gates: Tensor, deter: Tensor, reset: Tensor, out: Tensor) -> None:
        x = gates.numpy(), self.arrays.gates_b, deter.numpy(), reset.numpy(), out.numpy()
        share(self.kernels.gru, self.parts, *x)

    def gru_back(
        self, grad: Tensor, direct: Tensor, again: Tensor, gates: Tensor, deter: Tensor,
        reset: Tensor, dgates: Tensor,
    ) -> None:  # fmt: skip
        x = grad.numpy(), direct.numpy(), again.numpy(), gates.numpy(), self.arrays.gates_b
        share(self.kernels.gru_back, self.parts, *x, deter.numpy(), reset.numpy(), dgates.numpy())

    def infer(self, deter: Tensor, seen: Tensor, out: Tensor) -> None:
        x = deter.numpy(), seen.numpy(), self.arrays.infer_scale, self.least, out.numpy()
        share(self.kernels.infer, self.parts, *x)

    def infer_back(self, grad: Tensor, deter: Tensor, ddeter: Tensor, sums: np.ndarray) -> None:
        x = grad.numpy(), deter.numpy(), self.arrays.infer_scale, self.least, ddeter.numpy()
        share(self.kernels.infer_back, self.parts, *x, own=(sums,))

    def noise(self, out: Tensor) -> Tensor:
        for step in out.view(-1, *out.shape[-3:]):  # the numbers depend on how many are drawn
            if self.gaussian:
                step.normal_()
            else:
                distributions.exponential_(step)
        return out

    def draw(self, params: Tensor, noise: Tensor, out: Tensor, biased: bool) -> None:
        if not biased:
            params += self.vectors.out_b.view(params.shape[1:])
        rows, drawn = _rows(params), _rows(noise)
        split, latents = ranges(len(rows), params.numel()), out.numpy().reshape(drawn.shape)
        if self.gaussian:
            share(self.kernels.normal, split, rows, drawn, latents)
        else:
            share(self.kernels.one_hot, split, rows, drawn, np.float32(self.unimix), latents)

    def draw_back(self, grad: Tensor, params: Tensor, noise: Tensor, dparams: Tensor) -> None:
        rows, drawn, below = _rows(params), _rows(noise), _rows(dparams)
        split, grads = ranges(len(rows), params.numel()), grad.numpy().reshape(drawn.shape)
        if self.gaussian:
            share(self.kernels.normal_back, split, grads, rows, drawn, below)
        else:
            share(self.kernels.one_hot_back, split, grads, rows, np.float32(self.unimix), below)


def _rows(x: Tensor) -> np.ndarray:
    """[..., K] as [n, K]."""
    return x.numpy().reshape(-1, x.shape[-1])
