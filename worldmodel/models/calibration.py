"""How far a Gaussian world can be trusted: one step ahead, many, and outside its data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worldmodel import tree
from worldmodel.models.gaussian import Gaussian, GaussianState
from worldmodel.models.vectors import Rows

SHARES = (0.5, 0.8, 0.95)


@dataclass(frozen=True)
class StepReport:
    """Of single steps that the world has not learned from.

    mse: squared error of the mean, averaged over entries, each in units of its change's variance;
    1 is as good as the mean of the data. nll: nats an entry, under a Gaussian with the moments of
    all opinions, entries in their own units. coverage: share of entries within the central
    interval that should hold 50%, 80% and 95%. auroc: how well the uncertainty tells these steps
    from others outside the data: the probability that one outside has the larger; 0.5 is chance,
    NaN where there are none.
    """

    mse: float
    nll: float
    coverage: tuple[float, ...]
    auroc: float


def state_of(values: Tensor) -> GaussianState:
    """The state that values [B, D] show."""
    return GaussianState(values, torch.full(values.shape[:-1], -1.0, device=values.device))


@torch.no_grad()
def step_report(world: Gaussian, held: Rows, outside: Rows | None = None) -> StepReport:
    """Of rows that the world was not trained on; and of some outside its data."""
    size = world.feat_size
    found = world.moments(state_of(held.values), held.action)
    change = held.after - world.vectors.base * held.values
    error = change - found.mean[:, :size]
    variance = (found.aleatoric + found.epistemic)[:, :size].clamp_min(1e-12)
    z = error.abs() / variance.sqrt()
    normal = torch.distributions.Normal(0.0, 1.0)
    edges = [float(normal.icdf(torch.tensor(0.5 + share / 2))) for share in SHARES]
    nll = 0.5 * (error.square() / variance + variance.log() + math.log(2 * math.pi))
    auroc = math.nan
    if outside is not None:
        doubts = [world.uncertainty(state_of(rows.values), rows.action) for rows in (held, outside)]
        auroc = separation(*doubts)
    return StepReport(
        float((error.square() / world.vectors.change_variance[:size]).mean()), float(nll.mean()),
        tuple(float((z <= edge).float().mean()) for edge in edges), auroc,
    )  # fmt: skip


def separation(inside: Tensor, outside: Tensor) -> float:
    """The probability that a number of `outside` [N] is larger than one of `inside` [M]; a tie
    counts half. The area under the curve of Mann, Whitney and Wilcoxon."""
    below = (inside[:, None] < outside).float().mean()
    return float(below + 0.5 * (inside[:, None] == outside).float().mean())


@torch.no_grad()
def futures(world: Gaussian, start: Tensor, actions: Tensor, particles: int) -> Tensor:
    """Imagined values [P, B, H, D] after each of actions [B, H, A] from values start [B, D]."""
    state = state_of(start.repeat_interleave(particles, 0))
    seen = []
    for step in range(actions.shape[1]):
        state = world.step(state, actions[:, step].repeat_interleave(particles, 0)).state
        seen.append(state.values)
    paths = torch.stack(seen, 1)  # [B P, H, D]
    return paths.unflatten(0, (len(start), particles)).transpose(0, 1)


def spread_and_error(imagined: Tensor, real: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """At each horizon [H], in units [D] of the entries: the deviation of imagined futures
    [P, B, H, D], and the root mean squared distance of their mean from the real one [B, H, D]."""
    spread = imagined.var(0).div(unit.square()).mean((0, 2)).sqrt()
    error = (imagined.mean(0) - real).div(unit).square().mean((0, 2)).sqrt()
    return spread, error


def bands(imagined: Tensor, shares: Sequence[float] = SHARES) -> list[tuple[Tensor, Tensor]]:
    """Lower and upper edges [...] of the central share of futures [P, ...], for each share."""
    edges = torch.tensor([[0.5 - s / 2, 0.5 + s / 2] for s in shares])
    levels = tree.map(lambda q: imagined.quantile(q, 0), [e for pair in edges for e in pair])
    return list(zip(levels[::2], levels[1::2], strict=True))
