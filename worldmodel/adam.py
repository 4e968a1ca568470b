"""Adam, on the flat buffers of `worldmodel.optim.Optimizer`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldmodel.config import check_ranges
from worldmodel.optim import Optimizer


@dataclass
class AdamConfig:
    """lr: step size. clip: largest norm of the whole gradient; 0 turns clipping off.
    beta1, beta2, eps: first- and second-moment decay, and what is added to the root. decay: of the
    weights, times lr. anneal: update at which lr has fallen to a tenth, linearly; it stays there;
    0 leaves it constant."""

    lr: float = 3e-4
    clip: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    decay: float = 0.0
    anneal: int = 0

    def __post_init__(self) -> None:
        below_one = (0, 1 - 1e-9)
        ranges = {"lr": (0, 1e3), "clip": (0, 1e9), "eps": (0, 1), "decay": (0, 1e3)}
        ranges["anneal"] = (0, 1 << 62)
        check_ranges(self, {**ranges, "beta1": below_one, "beta2": below_one})


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015), its gradient clipped by the norm of all tensors together.

    rates: of each module, a share of the step size; all 1 by default.
    """

    def __init__(
        self,
        modules: Iterable[tuple[str, nn.Module]],
        config: AdamConfig,
        rates: Sequence[float] | None = None,
    ) -> None:
        modules = list(modules)
        super().__init__(modules)
        self.config = config
        self._groups = [(slice(None), 1.0)]
        if rates is not None:
            counts = [sum(p.requires_grad for p in m.parameters()) for _, m in modules]
            rooms = [0, *itertools.accumulate(self.rooms)]
            ends = [rooms[count] for count in itertools.accumulate(counts)]
            spans = zip([0, *ends], ends, rates, strict=False)
            self._groups = [(slice(a, b), rate) for a, b, rate in spans if b > a]

    def _norms(self) -> Tensor:
        return torch.linalg.vector_norm(self.grad)

    @torch.no_grad()
    def _apply(self, norms: Tensor, finite: Tensor) -> None:
        c = self.config
        scale = (norms / c.clip).clamp_min(1.0) if c.clip else None  # the gradient is divided by it
        rate = c.lr * self._slower
        if c.anneal:
            rate = rate * (1.0 - 0.9 * (self._updates / c.anneal).clamp_max(1.0))
        self._updates.add_(finite)
        for part, share in self._groups:
            flat, lr = self.flat[part], rate * share
            if c.decay:
                flat.addcmul_(flat, -c.decay * lr * finite)
            torch._fused_adam_(
                [flat], [self.grad[part]], [self.mean[part]], [self.square[part]], [],
                [self._updates.float()], lr=lr, beta1=c.beta1, beta2=c.beta2, eps=c.eps,
                weight_decay=0.0, amsgrad=False, maximize=False, grad_scale=scale,
                found_inf=(~finite).float(),
            )  # fmt: skip
