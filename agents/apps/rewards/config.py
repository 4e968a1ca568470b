"""What `scripts/fit_reward.py` can be asked."""

from __future__ import annotations

import math
from dataclasses import dataclass

from omegaconf import MISSING

from worldmodel.config import ConfigError
from worldmodel.rssm.heads import KINDS


@dataclass
class FitConfig:
    """A reward head on the latents of a trained run; or, without `reward`, a word on its heads."""

    run: str = MISSING  # run folder
    name: str = ""  # of the new head: letters, digits and underscores
    reward: str = ""  # where it comes from (docs/REWARDS.md), for example my_module:hang
    replace: bool = False  # a head of that name may be there already
    list: bool = False  # say which heads there are
    remove: str = ""  # the name of a head to delete
    show: int = -1  # number of an episode to draw with its steps, so that it can be labelled
    kind: str = ""  # twohot, mse, symlog_mse, bernoulli; empty: twohot, or mse for few labels
    layers: int = 1  # hidden layers
    updates: int = 0  # gradient steps; 0: 2000, or 400 for preferences
    batch: int = 0  # rows, or pairs of segments, of one update; 0: 256 rows or 32 pairs
    dropout: float = -1.0  # share of the latents hidden while fitting; -1: none, or 0.5 for few
    lr: float = 1e-3  # step size, which falls to a tenth
    holdout: float = 0.2  # share of the episodes that only judge the head; 0 leaves it unjudged
    rows: int = 200_000  # the most rows to look at; whole episodes, spread over the replay
    goal_scale: float = 0.0  # 0: minus the distance to the goal; above: exp(-distance / goal_scale)
    finetune: bool = False  # let the reward change the world model, too, as a new run
    into: str = ""  # folder of that run; empty: <run>-<name>
    finetune_updates: int = 200  # gradient steps of the world model
    finetune_lr: float = 1e-4
    seed: int = 0
    device: str = "auto"
    threads: int = 1  # CPU threads inside operations; 0 leaves torch's choice

    def __post_init__(self) -> None:
        at_least = {
            "layers": 0, "updates": 0, "batch": 0, "rows": 1, "goal_scale": 0, "seed": 0,
            "threads": 0, "finetune_updates": 1, "show": -1,
        }  # fmt: skip
        for name, least in at_least.items():
            value = getattr(self, name)
            if not (value >= least and value < math.inf):
                raise ConfigError(f"{name} is {value}; it must be at least {least}.")
        for name in ("lr", "finetune_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be more than 0.")
        if not (self.dropout == -1 or 0 <= self.dropout < 1):
            raise ConfigError(f"dropout is {self.dropout}; it must be -1, or from 0 to below 1.")
        if not 0 <= self.holdout < 1:
            raise ConfigError(
                f"holdout is {self.holdout}; it must be a share of the episodes, from 0 to below 1."
            )
        if self.kind and self.kind not in KINDS:
            raise ConfigError(f"Unknown head kind '{self.kind}'. Known: {', '.join(KINDS)}.")
