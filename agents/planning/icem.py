"""iCEM: CEM with noise that is correlated in time, fewer and fewer candidates, and a memory.

Pinneri et al., "Sample-efficient Cross-Entropy Method for Real-time Planning" (CoRL 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from agents.planning.imagine import Scored
from agents.planning.sequence import SequenceConfig, SequencePlanner, decayed
from agents.planning.space import Sequences, coloured
from worldmodel.config import check_ranges


@dataclass
class ICEMConfig(SequenceConfig):
    """beta: the power of the noise falls with frequency^-beta; 0.25 for quick movements, up to 4
    for slow ones. decay: each iteration draws this many times fewer candidates than the last, but
    at least twice the elites. keep: share of the elites that is tried again.

    The defaults are those of the paper."""

    name: str = "icem"
    horizon: int = 30
    iterations: int = 3
    candidates: int = 40
    std: float = 0.5
    momentum: float = 0.1
    beta: float = 0.25
    decay: float = 1.25
    keep: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, {"beta": (0, 20), "decay": (1, 1e3), "keep": (0, 1)})

    @property
    def least_candidates(self) -> int:
        """As many as are drawn in every iteration at least."""
        return 2 * self.elites


class ICEM(SequencePlanner):
    """Acts with the first action of the best candidate, where the world is deterministic."""

    Config = ICEMConfig
    config: ICEMConfig

    @property
    def carried(self) -> int:
        """Elites that are tried again, in the next iteration and decision."""
        return int(self.config.keep * self.config.elites)

    def noise(self, shape: tuple[int, int, int, int]) -> Tensor:
        """Correlated along time."""
        return coloured(shape, self.config.beta, self.device)

    def count(self, iteration: int) -> int:
        """Fewer in every iteration."""
        c = self.config
        return max(decayed(c.candidates, c.decay, iteration), c.least_candidates)

    def candidates(self, iteration: int, sequences: Sequences) -> Tensor:
        """In the last iteration, the mean takes the place of a draw."""
        raw = super().candidates(iteration, sequences)
        if iteration == self.config.iterations - 1:
            raw[:, 0] = sequences.mean
        return raw

    def choose(self, sequences: Sequences, pool: Scored, repeats: bool) -> Tensor:
        """The first action of the best; in a world that draws its outcomes, where the best may
        be the luckiest, that of the mean."""
        return self.best_of(sequences, pool) if repeats else sequences.mean
