"""An agent whose every number can be foretold: it counts, and its weights remember what it drew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from agents.base import Agent
from worldmodel.replay import Replay
from worldmodel.types import Column, EnvSpec

ENV = "tests.envs_for_tests:CountingEnv"


@dataclass
class CountingConfig:
    name: str = "tests.agents.counting_agent:CountingAgent"
    batch_size: int = 2
    batch_length: int = 4
    width: int = 3  # of its weight
    bad_update: int = -1  # the update whose loss is not finite
    bad_from: int = -1  # the update from which on none is, until the rate is at most `cure`
    cure: float = 0.3


class CountingState(NamedTuple):
    """Steps seen in this episode, and the action taken last, [B, ...]."""

    seen: torch.Tensor
    action: torch.Tensor


class CountingAgent(Agent):
    """Acts at random and stores beside each row how many rows of the episode it has seen."""

    Config = CountingConfig
    columns: ClassVar[dict[str, Column]] = {"seen": Column((), "float32")}

    def __init__(self, spec: EnvSpec, config: CountingConfig, device: torch.device) -> None:
        self.spec, self.config = spec, config
        self.weight = torch.zeros(config.width, dtype=torch.float64)
        self.updates = 0
        self.rate = 1.0
        self.modes: list[str] = []
        self.batch_size, self.batch_length = config.batch_size, config.batch_length
        self.min_rows = self.batch_size * self.batch_length

    def initial(self, batch_size: int) -> CountingState:
        return CountingState(
            torch.zeros(batch_size), torch.zeros(batch_size, self.spec.action.size)
        )

    def act(
        self, obs: Mapping[str, Any], state: Any = None, mode: str = "sample"
    ) -> tuple[np.ndarray, Any, dict[str, Any]]:
        self.modes.append(mode)
        batch = len(obs["count"])
        seen = (self.initial(batch) if state is None else state).seen
        is_first = torch.as_tensor(obs.get("is_first", np.zeros(batch, bool)))
        seen = torch.where(is_first, 0.0, seen) + 1
        if self.spec.action.kind == "continuous":
            action = 2 * torch.randn(batch, self.spec.action.size)
        else:
            index = torch.randint(self.spec.action.size, (batch,))
            action = torch.nn.functional.one_hot(index, self.spec.action.size).float()
        return action.numpy(), CountingState(seen, action), {"seen": seen}

    def replace_action(self, state: CountingState, action: Any) -> CountingState:
        return state._replace(action=torch.as_tensor(action))

    def update(self, replay: Replay) -> dict[str, Any]:
        batch = replay.sample(self.batch_size, self.batch_length)
        self.updates += 1
        config = self.config
        ill = 0 <= config.bad_from <= self.updates and self.rate > config.cure
        if ill or self.updates == config.bad_update:
            error = FloatingPointError("the loss is nan.")
            error.batch = batch  # type: ignore[attr-defined]
            raise error
        drawn = batch.obs["count"].double().sum() + torch.rand((), dtype=torch.float64)
        self.weight = torch.sin(self.weight + drawn)
        return {"loss/all": self.weight.sum(), "number": 1.0}

    def slow_down(self, factor: float) -> bool:
        self.rate *= factor
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight, "updates": self.updates, "rate": self.rate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight, self.updates, self.rate = state["weight"], state["updates"], state["rate"]


class InheritsItsConfig(CountingAgent):
    """Another agent, whose Config still has the name of CountingAgent."""
