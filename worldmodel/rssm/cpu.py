"""`worldmodel.rssm.steps` on a CPU in float32: loops in machine code, shared by threads."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel import distributions
from worldmodel.rssm.steps import Steps
from worldmodel.threads import ranges, share, sums_for


@cache
def _kernels() -> Any:
    from worldmodel.rssm import kernels  # numba takes a while to load

    return kernels


class Loops(Steps):
    """For rows of `width` numbers, which threads share."""

    def __init__(self, gaussian: bool, unimix: float, eps: float, rows: int, width: int) -> None:
        super().__init__(gaussian, unimix, eps)
        self.parts = ranges(rows, rows * width)
        self.kernels, self.least = _kernels(), np.float32(eps)

    def sums(self, width: int) -> np.ndarray:
        return sums_for(self.parts, width)

    def total(self, sums: np.ndarray) -> Tensor:
        return torch.from_numpy(sums.sum(0))

    def embed(
        self, deter: Tensor, stoch: Tensor, bias: Tensor, scale: Tensor, reset: Tensor, out: Tensor
    ) -> None:
        x = deter.numpy(), stoch.numpy(), bias.numpy(), scale.numpy()
        share(self.kernels.embed, self.parts, *x, self.least, reset.numpy(), out.numpy())

    def embed_back(
        self, grad: Tensor, deter: Tensor, stoch: Tensor, scale: Tensor, reset: Tensor,
        ddeter: Tensor, dstoch: Tensor, sums: np.ndarray,
    ) -> None:  # fmt: skip
        x = grad.numpy(), deter.numpy(), stoch.numpy(), scale.numpy()
        rest = reset.numpy(), ddeter.numpy(), dstoch.numpy()
        share(self.kernels.embed_back, self.parts, *x, self.least, *rest, own=(sums,))

    def mix(
        self, own: Tensor, shared: Tensor, action: Tensor, bias: Tensor, scale: Tensor,
        reset: Tensor, mixed: Tensor, out: Tensor,
    ) -> None:  # fmt: skip
        x = own.numpy(), shared.numpy(), action.numpy(), bias.numpy(), scale.numpy()
        rest = reset.numpy(), mixed.numpy(), out.numpy()
        share(self.kernels.mix, self.parts, *x, self.least, *rest)

    def mix_back(
        self, grad: Tensor, mixed: Tensor, scale: Tensor, dmixed: Tensor, sums: np.ndarray
    ) -> None:
        x = grad.numpy(), mixed.numpy(), scale.numpy(), self.least, dmixed.numpy()
        share(self.kernels.mix_back, self.parts, *x, own=(sums,))

    def gru(self, gates: Tensor, bias: Tensor, deter: Tensor, reset: Tensor, out: Tensor) -> None:
        x = gates.numpy(), bias.view(len(gates), -1).numpy(), deter.numpy(), reset.numpy()
        share(self.kernels.gru, self.parts, *x, out.numpy())

    def gru_back(
        self, grad: Tensor, direct: Tensor, again: Tensor, gates: Tensor, bias: Tensor,
        deter: Tensor, reset: Tensor, dgates: Tensor,
    ) -> None:  # fmt: skip
        x = grad.numpy(), direct.numpy(), again.numpy(), gates.numpy()
        rest = bias.view(len(gates), -1).numpy(), deter.numpy(), reset.numpy(), dgates.numpy()
        share(self.kernels.gru_back, self.parts, *x, *rest)

    def infer(self, deter: Tensor, seen: Tensor, scale: Tensor, out: Tensor) -> None:
        x = deter.numpy(), seen.numpy(), scale.numpy(), self.least, out.numpy()
        share(self.kernels.infer, self.parts, *x)

    def infer_back(
        self, grad: Tensor, deter: Tensor, scale: Tensor, ddeter: Tensor, sums: np.ndarray
    ) -> None:
        x = grad.numpy(), deter.numpy(), scale.numpy(), self.least, ddeter.numpy()
        share(self.kernels.infer_back, self.parts, *x, own=(sums,))

    def noise(self, out: Tensor) -> Tensor:
        for step in out.view(-1, *out.shape[-3:]):  # the numbers depend on how many are drawn
            if self.gaussian:
                step.normal_()
            else:
                distributions.exponential_(step)
        return out

    def draw(self, params: Tensor, bias: Tensor | None, noise: Tensor, out: Tensor) -> None:
        if bias is not None:
            params += bias.view(params.shape[1:])
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
