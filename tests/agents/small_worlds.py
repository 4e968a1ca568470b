"""Worlds of a user's own, which agents plan in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.replay import Replay
from worldmodel.types import EnvSpec, Prediction


@dataclass
class LineConfig:
    """rate: how fast `AverageWorld` follows what was recorded."""

    rate: float = 0.5


class LineState(NamedTuple):
    """seen: [B, N], all vectors side by side."""

    seen: Tensor


class LineWorld(nn.Module):
    """What is seen stays; the reward is a linear function of it and the action. It never ends."""

    Config = LineConfig
    deterministic = True

    def __init__(self, spec: EnvSpec, config: LineConfig) -> None:
        super().__init__()
        self.config, self.discount = config, 0.9
        self.keys = spec.keys("vector")
        self.size = sum(spec.obs[key].shape[0] for key in self.keys)
        self.line = nn.Linear(self.size + spec.action.size, 1)

    def initial(self, batch_size: int) -> LineState:
        return LineState(torch.zeros(batch_size, self.size, device=self.line.weight.device))

    def observe(
        self, state: LineState, obs: dict[str, Tensor], action: Tensor, is_first: Tensor
    ) -> LineState:
        return LineState(torch.cat([obs[key] for key in self.keys], -1))

    def step(self, state: LineState, action: Tensor) -> Prediction[LineState]:
        reward = self.line(torch.cat([state.seen, action], -1)).squeeze(-1)
        return Prediction(state, reward, torch.ones_like(reward))

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        state = self.observe(self.initial(1), batch.obs, batch.action, batch.is_first)
        error = self.step(state, batch.action).reward - batch.reward
        loss = error.square().mean()
        return loss, {"loss/reward": loss.detach()}


class AverageWorld(nn.Module):
    """As a `LineWorld`, but it fits itself: to the mean reward of all rows, some way at a time."""

    Config = LineConfig
    deterministic = True
    discount = 0.9

    def __init__(self, spec: EnvSpec, config: LineConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("fits", torch.zeros((), dtype=torch.long))

    def initial(self, batch_size: int) -> LineState:
        return LineState(torch.zeros(batch_size, 1))

    def observe(
        self, state: LineState, obs: dict[str, Tensor], action: Tensor, is_first: Tensor
    ) -> LineState:
        return state

    def step(self, state: LineState, action: Tensor) -> Prediction[LineState]:
        reward = self.mean + action[:, 0]
        return Prediction(state, reward, torch.ones_like(reward))

    def fit(self, replay: Replay) -> dict[str, Any]:
        rows = [replay.rows(*part) for part in replay.episodes()]
        mean = torch.cat([torch.as_tensor(part["reward"]) for part in rows]).mean()
        self.mean += self.config.rate * (mean - self.mean)
        self.fits += 1
        return {"grad_norm": 0.0, "fits": int(self.fits)}


class NoWorld(nn.Module):
    """It has settings, and is none."""

    Config = LineConfig

    def __init__(self, spec: EnvSpec, config: LineConfig) -> None:
        super().__init__()
