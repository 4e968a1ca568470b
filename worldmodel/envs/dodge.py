"""Dodge: balls fall, whoever is hit is out. A small relative of the Doom task of World Models.

The picture is 32x32: a green player at the bottom, and one red ball at a time, which appears at the
top at random and falls straight. A dream that never lets one appear is easy to survive, and worth
nothing.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

SIDE, BALL, FALL, MOVE = 32, 8, 3, 2  # pixels: of the picture, of a ball; per step
PLAYER = (6, 4)  # width, height
APPEAR, AIMED = 0.3, 0.5  # P(a ball appears) where there is none; P(it does above the player)
LIMIT = 100  # steps


class Dodge(gymnasium.Env[np.ndarray, np.int64]):
    """Actions: 0 stay, 1 left, 2 right. Each step is worth 1, the one that ends it included; after
    100 steps it is cut off."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
        self.action_space = spaces.Discrete(3)
        self.player, self.steps = 0, 0
        self.balls: list[list[int]] = []  # [left, top]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.player = int(self.np_random.integers(SIDE - PLAYER[0] + 1))
        self.balls, self.steps = [], 0
        return self._picture(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        move = (0, -MOVE, MOVE)[int(action)]
        self.player = min(max(self.player + move, 0), SIDE - PLAYER[0])
        self.balls = [[x, y + FALL] for x, y in self.balls if y + FALL < SIDE]
        if not self.balls and self.np_random.random() < APPEAR:
            aimed = self.np_random.random() < AIMED
            column = int(self.np_random.integers(SIDE - BALL + 1))
            above = min(max(self.player + (PLAYER[0] - BALL) // 2, 0), SIDE - BALL)
            self.balls.append([above if aimed else column, 0])
        self.steps += 1
        return self._picture(), 1.0, self._hit(), self.steps >= LIMIT, {}

    def render(self) -> np.ndarray:
        return self._picture()

    def _hit(self) -> bool:
        top = SIDE - PLAYER[1]
        return any(
            y + BALL > top and x < self.player + PLAYER[0] and x + BALL > self.player
            for x, y in self.balls
        )

    def _picture(self) -> np.ndarray:
        picture = np.zeros((SIDE, SIDE, 3), np.uint8)
        for x, y in self.balls:
            picture[y : y + BALL, x : x + BALL, 0] = 255
        picture[SIDE - PLAYER[1] :, self.player : self.player + PLAYER[0], 1] = 255
        return picture
