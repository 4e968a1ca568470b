"""What a report of dreams is asked to show."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from omegaconf import MISSING

from worldmodel.config import ConfigError, unknown

SOURCES = ("fresh", "replay")
MODES = ("mode", "sample", "random")
HEADLINE_STEP = 20  # open-loop steps at which the one number is taken


@dataclass
class DreamConfig:
    """Which run dreams, of what, and for how long. Steps are agent steps."""

    run: str = MISSING  # run folder
    out: str = ""  # where the report goes; empty: <run>/dreams
    # fresh: episodes played now, which the model never saw | replay: those that it learned from
    source: str = "fresh"
    # who plays fresh episodes. mode, sample: the policy, and beside it random actions for the
    # plots | random: random actions alone
    mode: str = "mode"
    play: int = 20  # episodes to compare dreams with
    starts: int = 120  # moments in them at which imagination starts, at least, for the plots
    episodes: int = 4  # episodes shown as strips and films
    pick: list[int] = field(default_factory=list)  # their numbers, instead of the first ones
    context: int = 5  # frames shown before imagination starts
    horizon: int = 50  # steps imagined
    dreams: int = 32  # of each moment, whose mean is what the model expects
    futures: int = 4  # imagined futures under the policy, and as many under random actions
    seed: int = 0
    device: str = "auto"
    threads: int = 1  # CPU threads inside operations; 0 leaves torch's choice
    fps: int = 8  # of the films

    def __post_init__(self) -> None:
        least: dict[str, Any] = {
            "play": 1, "starts": 2, "episodes": 1, "context": 1, "horizon": 1, "dreams": 1,
            "futures": 1, "seed": 0, "threads": 0, "fps": 1,
        }  # fmt: skip
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {low}.")
        if self.seed >= 2**32:
            raise ConfigError(f"seed is {self.seed}; it must be less than 2**32.")
        for name, known in (("source", SOURCES), ("mode", MODES)):
            if getattr(self, name) not in known:
                raise ConfigError(unknown(name, getattr(self, name), known))

    def random_too(self) -> DreamConfig | None:
        """The same with random actions, where the policy's fresh episodes are asked for."""
        if self.source == "replay" or self.mode == "random":
            return None
        return replace(self, mode="random", pick=[])

    @property
    def rows(self) -> int:
        """Rows of one dream, the context included."""
        return self.context + self.horizon
