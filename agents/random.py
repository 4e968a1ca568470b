"""An agent that knows nothing: the baseline that every other one must beat."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from agents.base import check_mode, random_actions
from worldmodel.types import EnvSpec

if TYPE_CHECKING:
    from worldmodel.replay import Replay


@dataclass
class RandomConfig:
    """Nothing to choose."""

    name: str = "random"


class Random:
    """Uniform actions; among the allowed ones where the observation says which these are."""

    Config = RandomConfig
    columns: ClassVar[dict[str, Any]] = {}
    model = None
    batch_size = 1
    batch_length = 1
    min_rows = sys.maxsize  # never: there is nothing to learn

    def __init__(self, spec: EnvSpec, config: RandomConfig, device: torch.device) -> None:
        self.spec, self.config = spec, config
        # Seeded from torch's generator, which the caller seeds.
        self.rng = np.random.default_rng(int(torch.randint(2**31, ()).item()))

    def initial(self, batch_size: int) -> None:
        """There is no state."""
        return None

    def act(
        self, obs: Mapping[str, Any], state: Any = None, mode: str = "sample"
    ) -> tuple[np.ndarray, None, dict[str, Any]]:
        """Uniform actions [B, A], whatever the mode."""
        check_mode(mode)
        batch = len(next(iter(obs.values())))
        return random_actions(self.spec, obs, batch, self.rng), None, {}

    def update(self, replay: Replay) -> dict[str, Any]:
        """Nothing to learn."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "rng" in state:  # earlier runs kept nothing
            self.rng.bit_generator.state = state["rng"]
