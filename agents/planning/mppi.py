"""MPPI: every candidate counts, by the exponential of its return.

Williams et al., "Information-theoretic model predictive control" (2017); with filtered noise as in
PDDM (Nagabandi et al. 2019), and with elites and a fitted deviation as in TD-MPC2 (Hansen et al.
2024).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.planning.imagine import Scored
from agents.planning.sequence import SequenceConfig, SequencePlanner, decayed
from agents.planning.space import Sequences
from worldmodel.config import check_ranges


@dataclass
class MPPIConfig(SequenceConfig):
    """gain: a candidate's weight is exp(gain * (return - best return)). filter: of the noise; an
    action is this share of its own draw and the rest of the action before. fit_std: the deviation
    is fitted, too, within least_std and greatest_std; else it stays. sample: acts with the first
    action of an elite drawn by its weight, in place of the mean. decay: each iteration draws this
    many times fewer candidates than the last, but at least twice the elites, as iCEM does.

    The defaults are those of PDDM, with all candidates as elites."""

    name: str = "mppi"
    horizon: int = 30
    iterations: int = 5
    candidates: int = 350
    elites: int = 350
    gain: float = 0.9
    filter: float = 0.9
    fit_std: bool = False
    greatest_std: float = 2.0
    sample: bool = False
    decay: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, {
            "gain": (0, 1e6), "filter": (1e-3, 1), "greatest_std": (1e-6, 1e3), "decay": (1, 1e3),
        })  # fmt: skip


class MPPI(SequencePlanner):
    """Acts with the weighted mean, or with an elite drawn by its weight."""

    Config = MPPIConfig
    config: MPPIConfig

    def count(self, iteration: int) -> int:
        """Fewer in every iteration, where they decay."""
        c = self.config
        least = min(2 * c.elites, c.candidates)
        return max(decayed(c.candidates, c.decay, iteration), least)

    def candidates(self, iteration: int, sequences: Sequences) -> Tensor:
        """Draws whose noise is filtered along time."""
        raw = super().candidates(iteration, sequences)
        share = self.config.filter
        if share == 1.0 or self.space.discrete:
            return raw
        steps = [raw[:, :, 0]]
        for t in range(1, raw.shape[2]):
            steps.append(share * raw[:, :, t] + (1 - share) * steps[-1])
        return torch.stack(steps, 2)

    def weights(self, best: Scored) -> Tensor:
        """Of candidates [B, N], which sum to 1; all 0 where none was finite."""
        found = best.returns.isfinite()
        ahead = best.returns - best.returns.amax(1, keepdim=True)
        weights = torch.where(found, torch.exp(self.config.gain * ahead), 0.0)
        return weights / weights.sum(1, keepdim=True).clamp_min(1e-30)

    def fit(self, sequences: Sequences, pool: Scored) -> Sequences:
        """Weighted mean, and deviation where it is asked for."""
        c = self.config
        best = pool.best(c.elites)
        weights = self.weights(best)
        bounds = (c.least_std, c.greatest_std)
        after = self.space.fit(sequences, best.actions, weights, c.momentum, c.smoothing, bounds)
        return after if c.fit_std else Sequences(after.mean, sequences.std)

    def choose(self, sequences: Sequences, pool: Scored, repeats: bool) -> Tensor:
        """The first action of the mean, or of a drawn elite."""
        if not self.config.sample:
            return super().choose(sequences, pool, repeats)
        best = pool.best(self.config.elites)
        weights = self.weights(best)
        found = weights.sum(1) > 0
        drawn = torch.multinomial(torch.where(found[:, None], weights, 1.0), 1).squeeze(1)
        chosen = best.actions[torch.arange(len(drawn)), drawn]
        return torch.where(found[:, None, None], chosen, sequences.mean)
