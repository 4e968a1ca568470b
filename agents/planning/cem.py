"""The cross-entropy method: a distribution over sequences, fitted to its own best draws."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.planning.imagine import Scored
from agents.planning.sequence import SequenceConfig, SequencePlanner
from agents.planning.space import Sequences


@dataclass
class CEMConfig(SequenceConfig):
    """truncated: draws stay within two deviations of the mean, and the deviation within half the
    mean's distance to the nearer bound, as in PETS (Chua et al. 2018); else draws are clipped.

    The defaults are those of PlaNet (Hafner et al. 2019), with a warm start. A discrete action's
    distribution is a categorical of each step and factor."""

    name: str = "cem"
    iterations: int = 10
    elites: int = 100
    truncated: bool = False


class CEM(SequencePlanner):
    """Acts with the mean that the last iteration led to. The likeliest classes of discrete steps,
    each taken for itself, are a sequence that nobody imagined: there the best candidate is taken,
    where the world is deterministic."""

    Config = CEMConfig
    config: CEMConfig

    @property
    def carried(self) -> int:
        """Of discrete actions the best candidate, in the next iteration and decision."""
        return int(self.space.discrete and self.config.warm_start)

    def candidates(self, iteration: int, sequences: Sequences) -> Tensor:
        """Drawn from the distribution."""
        if not self.config.truncated or self.space.discrete:
            return super().candidates(iteration, sequences)
        mean = sequences.mean
        room = torch.minimum(mean + 1, 1 - mean).clamp_min(0.0) / 2
        batch, horizon, size = mean.shape
        noise = self.noise((batch, self.config.candidates, horizon, size))
        # A normal number beyond two deviations is made one within them, by its quantile.
        low = torch.special.ndtr(torch.tensor(-2.0, device=mean.device))
        within = torch.special.ndtri(low + (1 - 2 * low) * torch.special.ndtr(noise))
        return self.space.draw(Sequences(mean, torch.minimum(sequences.std, room)), within)

    def choose(self, sequences: Sequences, pool: Scored, repeats: bool) -> Tensor:
        """The mean; of discrete actions the best candidate (see above)."""
        return self.best_of(sequences, pool) if self.space.discrete and repeats else sequences.mean
