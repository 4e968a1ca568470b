"""Random shooting: the first action of the best of many random sequences."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from agents.planning.imagine import Scored
from agents.planning.sequence import SequenceConfig, SequencePlanner
from agents.planning.space import Sequences
from worldmodel.config import ConfigError

UNUSED = ("elites", "least_std", "momentum", "smoothing", "std")


@dataclass
class ShootingConfig(SequenceConfig):
    """Settings of random shooting, which draws once and fits nothing."""

    name: str = "shooting"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in UNUSED:
            value, usual = getattr(self, name), getattr(SequenceConfig, name)
            if value != usual:
                raise ConfigError(
                    f"{name} is {value}; shooting fits no distribution and does not read it. "
                    "Leave it out, or choose planner=cem."
                )

    @property
    def least_candidates(self) -> int:
        """There are no elites."""
        return 1


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
