"""Random shooting: the first action of the best of many random sequences."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from agents.planning.imagine import Scored
from agents.planning.sequence import SequenceConfig, SequencePlanner
from agents.planning.space import Sequences


@dataclass
class ShootingConfig(SequenceConfig):
    """Settings of random shooting; `elites`, `momentum` and `std` have no effect."""

    name: str = "shooting"


class Shooting(SequencePlanner):
    """Uniform sequences, imagined once."""

    Config = ShootingConfig

    def candidates(self, iteration: int, sequences: Sequences) -> Tensor:
        """Every action alike."""
        batch, horizon, size = sequences.mean.shape
        return self.space.spread(self.noise((batch, self.config.candidates, horizon, size)))

    def fit(self, sequences: Sequences, pool: Scored) -> Sequences:
        """Nothing is fitted."""
        return sequences

    def choose(self, sequences: Sequences, pool: Scored, repeats: bool) -> Tensor:
        """The first action of the best."""
        return self.best_of(sequences, pool)
