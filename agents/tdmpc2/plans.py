"""The planner's own distributions, which the policy may learn from: a column of replay.

Its values are mean and deviation of the first action, or the probabilities of its classes. What
mean is, agent.guide says: that of the elites (BMPC; Wang et al. 2025), or the elite that was chosen
(TD-M(PC)^2; Lin et al. 2025).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from agents.planning.base import Plan
from agents.planning.space import ActionSpace
from worldmodel.models.latent import Latent, Learned
from worldmodel.replay import Replay, RowIndex
from worldmodel.types import MASK_KEY, Batch

PLAN = "plan"  # the column
BROAD = {"constraint": float(np.exp(2.0)), "imitation": 1.0}  # std where nothing was planned


def stored(plan: Plan, guide: str, discrete: bool) -> Tensor:
    """The column's values [B, size] for a plan."""
    if discrete:
        mean: Tensor = plan.first.mean
        return mean
    centre = plan.action if guide == "constraint" else plan.first.mean
    return torch.cat([centre, plan.first.std], -1)


def unplanned(space: ActionSpace, guide: str, batch: int, device: torch.device) -> Tensor:
    """The column's values [B, size] where there was no plan: all actions alike."""
    if space.action.kind == "discrete":
        return space.uniform(device).repeat(batch, 1)
    mean = torch.zeros(batch, space.action.size, device=device)
    return torch.cat([mean, torch.full_like(mean, BROAD.get(guide, 1.0))], -1)


@torch.no_grad()
def plan_again(
    replay: Replay,
    batch: Batch,
    learned: Learned,
    count: int,
    search: Callable[[Latent, Tensor | None], Tensor],
) -> None:
    """Plan the first `count` slices of a batch with weights of now, and store that in it and in
    replay, as BMPC does. learned: what was computed for the batch. search: the column's values
    [B, size] for latents, with the actions allowed there."""
    z = torch.cat([learned.z[:1], learned.seen])[:, :count].transpose(0, 1)
    begin = batch.shape[1] - z.shape[1]  # rows that are only context
    mask = batch.obs.get(MASK_KEY)
    mask = None if mask is None else mask[:count, begin:].flatten(0, 1)
    found = search(Latent(z.flatten(0, 1)), mask).unflatten(0, z.shape[:2]).float()
    batch.columns[PLAN][:count, begin:] = found
    index = RowIndex(batch.index.stream[:count], batch.index.start[:count] + begin, z.shape[1])
    replay.rewrite(index, {PLAN: found})
