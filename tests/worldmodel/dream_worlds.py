"""Worlds whose right answers are known: one counts, the other is a point on a line."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from worldmodel.types import ActionSpec, Batch, EnvSpec, ObsSpec, Prediction

SIDE = 48
POINT = EnvSpec({"image": ObsSpec("image", (SIDE, SIDE, 3))}, ActionSpec("continuous", (1,)))


class Number(NamedTuple):
    """The state of these worlds: one number each, [B, 1]."""

    value: Tensor


class BlindWorld:
    """A world whose state is one number: shown, it is the first pixel; stepped, it grows by the
    action. Its reward is the new number. It cannot decode."""

    discount, feat_size, feat_bound = 0.9, 1, float("inf")

    def __init__(self, cont: float = 0.5) -> None:
        self.shown, self.steps, self.cont = 0, 0, cont

    def initial(self, batch_size: int) -> Number:
        return Number(torch.zeros(batch_size, 1))

    def observe(
        self, state: Number, obs: dict[str, Tensor], action: Tensor, is_first: Tensor
    ) -> Number:
        self.shown += 1
        number = obs["image"][:, 0, 0, :1].float()
        return Number(number)

    def step(self, state: Number, action: Tensor) -> Prediction:
        self.steps += 1
        number = state.value + action
        cont = torch.full((len(number),), self.cont)
        return Prediction(Number(number), number[:, 0], cont)

    def feat(self, state: Number) -> Tensor:
        return state.value


class CountingWorld(BlindWorld):
    """The same with a decoder: the image is the number."""

    def decode(self, state: Number) -> dict[str, Tensor]:
        image = (state.value / 255)[:, :, None, None].expand(-1, 8, 8, 3)
        return {"image": image, "vector": state.value}


def counting_batch(length: int = 12, first: tuple[int, ...] = (0,)) -> Batch:
    """Two sequences of images that show their row number times ten; every action is ten."""
    numbers = (10 * torch.arange(length)).byte()[None, :, None, None, None]
    flags = torch.zeros(2, length, dtype=torch.bool)
    flags[:, list(first)] = True
    nothing = torch.zeros(2, length, dtype=torch.bool)
    return Batch(
        {"image": numbers.expand(2, -1, 8, 8, 3)},
        torch.full((2, length, 1), 10.0),
        torch.zeros(2, length),
        flags,
        nothing,
        nothing,
    )


def column(place: Any) -> np.ndarray:
    """uint8 [SIDE, SIDE, 3], black but for bright columns at a place in [-1, 1]."""
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    middle = round((float(place) + 1) / 2 * (SIDE - 9)) + 4
    image[:, middle - 4 : middle + 5] = 255
    return image


class PointEnv(gymnasium.Env[Any, Any]):
    """A point on a line that begins at an end of it; the reward is minus its distance from the
    middle after the step, and the best policy walks there in three steps."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.place, self.count = 0.0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.count = float(self.np_random.choice([-1.0, 1.0])), 0
        return column(self.place), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.place = float(np.clip(self.place + 0.4 * float(action[0]), -1, 1))
        self.count += 1
        return column(self.place), -abs(self.place), False, self.count >= 20, {}


class PointWorld:
    """The world of PointEnv as a model that learned it perfectly."""

    discount, feat_size, feat_bound = 1.0, 1, 1.0

    def feat(self, state: Number) -> Tensor:
        return state.value

    def initial(self, batch_size: int) -> Number:
        return Number(torch.zeros(batch_size, 1))

    def observe(
        self, state: Number, obs: dict[str, Tensor], action: Tensor, is_first: Tensor
    ) -> Number:
        bright = obs["image"][:, 0, :, 0].float()
        middle = (bright * torch.arange(SIDE)).sum(1) / bright.sum(1)
        place = (middle - 4) / (SIDE - 9) * 2 - 1
        return Number(place[:, None])

    def step(self, state: Number, action: Tensor) -> Prediction:
        place = (state.value + 0.4 * action).clamp(-1, 1)
        ones = torch.ones(len(place))
        return Prediction(Number(place), -place[:, 0].abs(), ones)

    def decode(self, state: Number) -> dict[str, Tensor]:
        images = np.stack([column(place) for place in state.value[:, 0]])
        return {"image": torch.from_numpy(images).float() / 255}


def point_starts() -> Batch:
    """Both ends of the line, a row each, [2, 1]."""
    images = torch.from_numpy(np.stack([column(-1), column(1)]))[:, None]
    none = torch.zeros(2, 1, dtype=torch.bool)
    return Batch({"image": images}, torch.zeros(2, 1, 1), torch.zeros(2, 1), ~none, none, none)
