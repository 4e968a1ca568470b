"""LaProp with adaptive gradient clipping; a step that is not finite is skipped."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.accel.ranks import Ranks
from worldmodel.config import check_ranges


def alignment(device: torch.device) -> int:
    """Numbers at whose multiples tensors begin in a flat buffer. On a GPU 64 bytes: some of its
    kernels read four numbers at once, and end the process where those are not aligned."""
    return 16 if device.type == "cuda" else 1


@dataclass
class OptimConfig:
    """lr: step size after warm-up. warmup: updates over which it rises from 0, linearly.
    anneal: updates after which it has fallen to a tenth, linearly since the warm-up; it stays
    there. 0 leaves it constant.
    agc: largest ratio of a tensor's gradient norm to its weight norm; 0 turns clipping off.
    beta1, beta2, eps: momentum, second-moment decay, and the floor under its root."""

    lr: float = 4e-5
    warmup: int = 1000
    anneal: int = 0
    agc: float = 0.3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-20

    def __post_init__(self) -> None:
        updates, below_one = (0, 1 << 62), (0, 1 - 1e-9)
        check_ranges(
            self,
            {
                "lr": (0, 1e3), "warmup": updates, "anneal": updates, "agc": (0, 1e6),
                "beta1": below_one, "beta2": below_one, "eps": (0, 1),
            },
        )  # fmt: skip


class Step(NamedTuple):
    """What a step met, on its device: whether loss and gradients were all finite (else it changed
    nothing), the loss, and the norm of each tensor's gradient or of all together, []."""

    finite: Tensor
    loss: Tensor
    norms: Tensor

    @property
    def grad_norm(self) -> Tensor:
        """Of all gradients together."""
        return torch.linalg.vector_norm(self.norms)


class Optimizer(ABC):
    """Differentiates a loss and moves the weights, unless the loss or a gradient is not finite.

    Weights, gradients and both moments each live in one flat buffer; the module's tensors are
    views into it, so that a step is a handful of operations however many tensors there are. What
    is saved has no gaps between them, so that a checkpoint moves between devices.

    All that changes from step to step, the number of the step included, lives on the device, and
    `attempt` reads none of it: a GPU need not be waited for, and a recorded step can be replayed.

    ranks: of those that train together; the gradient is then the mean of theirs.
    """

    ranks: Ranks | None = None

    def __init__(self, modules: Iterable[tuple[str, nn.Module]]) -> None:
        named = [
            (f"{prefix}.{name}", p)
            for prefix, module in modules
            for name, p in module.named_parameters()
            if p.requires_grad
        ]
        self.names = [name for name, _ in named]
        self.params: list[Tensor] = [p for _, p in named]
        sizes = [p.numel() for p in self.params]
        wide = alignment(self.params[0].device)
        self.rooms = [-(-size // wide) * wide for size in sizes]
        self.flat = self.params[0].new_zeros(sum(self.rooms))
        self.grad = torch.zeros_like(self.flat)
        self.mean = torch.zeros_like(self.flat)
        self.square = torch.zeros_like(self.flat)
        self._updates = torch.zeros((), dtype=torch.long, device=self.flat.device)
        self._slower = self.flat.new_ones(())  # what `slow_down` made of the step size so far
        shapes = [p.shape for p in self.params]
        self.grads = [g.view(s) for g, s in zip(self._parts(self.grad), shapes, strict=True)]
        for p, data, g in zip(self.params, self._parts(self.flat), self.grads, strict=True):
            data.copy_(p.detach().reshape(-1))
            p.data = data.view(p.shape)
            p.grad = g

    def _parts(self, flat: Tensor) -> list[Tensor]:
        """The numbers of each tensor, views into a flat buffer."""
        rooms = zip(flat.split(self.rooms), self.params, strict=True)
        return [room[: p.numel()] for room, p in rooms]

    def _norms(self) -> Tensor:
        """The norm of each tensor's gradient, or of all together, []."""
        return torch.stack(torch._foreach_norm(self.grads))

    @abstractmethod
    def _apply(self, norms: Tensor, finite: Tensor) -> None:
        """Move the weights along `grad`, which has these norms, where finite is True."""

    @property
    def done(self) -> Tensor:
        """`updates` [] where the weights are, for what changes with it in a recorded update."""
        return self._updates

    @property
    def updates(self) -> int:
        """Steps that moved the weights."""
        return int(self._updates)

    @updates.setter
    def updates(self, value: int) -> None:
        self._updates.fill_(value)

    def slow_down(self, factor: float) -> None:
        """Multiply the step size of all later updates by a factor in (0, 1]."""
        assert 0 < factor <= 1
        self._slower.mul_(factor)

    def step(self, loss: Tensor) -> dict[str, Tensor]:
        """Differentiate the scalar loss and move the weights once.

        Raises FloatingPointError, weights untouched, where the loss or a gradient is not finite.
        """
        step = self.attempt(loss)
        self.check(step)
        return {"grad_norm": step.grad_norm}

    def attempt(self, loss: Tensor) -> Step:
        """Differentiate the scalar loss and move the weights once, unless it or a gradient is not
        finite; `check` tells later."""
        self.grad.zero_()
        loss.backward()
        loss = loss.detach()
        if self.ranks is not None:
            # A loss that is not finite here makes the gradient so on every rank: all skip together.
            self.grad[:1].add_(0.0 * loss)
            self.ranks.all_reduce_mean(self.grad)
        norms = self._norms()
        finite = torch.isfinite(norms.sum() + loss)
        self._apply(norms, finite)
        return Step(finite, loss, norms)

    def check(self, step: Step) -> None:
        """Raise FloatingPointError where a step's loss or gradients were not finite."""
        if bool(step.finite):
            return
        norms = step.norms if step.norms.ndim else Optimizer._norms(self)
        bad = [n for n, x in zip(self.names, norms.tolist(), strict=True) if x - x != 0.0]
        raise FloatingPointError(
            f"The loss is {float(step.loss):g} and {len(bad)} of {len(self.names)} gradients "
            f"are not finite (first: {', '.join(bad[:3]) or 'none'}). Weights were not changed."
        )

    def state_dict(self) -> dict[str, Any]:
        """Moments and the number of updates."""
        return {
            "updates": self.updates,
            "slower": float(self._slower),
            "names": list(self.names),
            "mean": torch.cat(self._parts(self.mean)),
            "square": torch.cat(self._parts(self.square)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put `state_dict()` back; ValueError where it belongs to other parameters."""
        updates, slower = state["updates"], state.get("slower", 1.0)
        if type(updates) is not int or updates < 0 or not 0 < slower <= 1:
            raise ValueError(f"The optimizer cannot have done {updates!r} updates, x{slower!r}.")
        sizes = [p.numel() for p in self.params]
        if state["names"] != self.names or state["mean"].shape != (sum(sizes),):
            raise ValueError(
                f"The optimizer state holds {len(state['names'])} tensors, "
                f"{state['mean'].numel():,} numbers; this model has {len(self.names)} tensors, "
                f"{sum(sizes):,} numbers. Load a checkpoint of the same configuration."
            )
        self.updates = updates
        self._slower.fill_(slower)
        for name in ("mean", "square"):
            parts = zip(self._parts(getattr(self, name)), state[name].split(sizes), strict=True)
            for here, there in parts:
                here.copy_(there)


class LaProp(Optimizer):
    """Clip each tensor's gradient, scale it by its running RMS, then take momentum of the result.

    In this order (Ziyin et al. 2020; DreamerV3), unlike Adam, momentum gathers scaled gradients:

        g  <- g * min(1, agc * max(1e-3, |w|) / |g|)        per tensor
        v  <- beta2 v + (1 - beta2) g^2
        m  <- beta1 m + (1 - beta1) g / (sqrt(v / (1 - beta2^t)) + eps)
        w  <- w - lr m / (1 - beta1^t)
    """

    def __init__(self, modules: Iterable[tuple[str, nn.Module]], config: OptimConfig) -> None:
        super().__init__(modules)
        self.config = config

    @property
    def lr(self) -> float:
        """The step size of the next update."""
        return float(self._rate(self._updates))

    def _rate(self, done: Tensor) -> Tensor:
        """The step size after `done` updates: 0 at the very first, as in the official code."""
        c = self.config
        rate = c.lr * self._slower
        if c.warmup:
            rate = rate * (done / c.warmup).clamp_max(1.0)
        if c.anneal:
            done = (done - c.warmup) / max(1, c.anneal - c.warmup)
            rate = rate * (1.0 - 0.9 * done.clamp(0.0, 1.0))
        return rate

    @torch.no_grad()
    def _apply(self, norms: Tensor, finite: Tensor) -> None:
        c, t = self.config, self._updates + 1
        if c.agc:
            weights = torch.stack(torch._foreach_norm(self.params))
            upper = c.agc * weights.clamp_min(1e-3)
            scale = 1.0 / torch.clamp_min(norms / upper, 1.0)
            torch._foreach_mul_(self.grads, list(scale.unbind()))
        # Where not all is finite, no gradient, no decay and no step: everything stays as it is.
        self.grad.masked_fill_(~finite, 0.0)
        keep1, keep2 = (torch.where(finite, beta, 1.0) for beta in (c.beta1, c.beta2))
        self.square.mul_(keep2).addcmul_(self.grad, self.grad, value=1 - c.beta2)
        root = (self.square / _debias(c.beta2, t)).sqrt_().add_(c.eps)
        self.mean.mul_(keep1).addcdiv_(self.grad, root, value=1 - c.beta1)
        self.flat.addcmul_(self.mean, -self._rate(self._updates) / _debias(c.beta1, t) * finite)
        self._updates.add_(finite)


def _debias(beta: float, t: Tensor) -> Tensor:
    """1 - beta^t, without the cancellation that this has in float32."""
    return -torch.expm1(t * (math.log(beta) if beta else -math.inf))
