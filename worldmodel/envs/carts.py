"""Two carts with a pole, pushed by a continuous force, on which PETS and its library are compared.

swing_up    hangs at first; 200 steps that never end earlier (Chua et al. 2018, in MuJoCo)
balance     gymnasium's CartPole-v1 with a force of -10 to 10 N; 200 steps, or until it falls
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from .config import EnvConfig, EnvError, unknown
from .wrappers import Guard, Repeat

LENGTH = 0.6  # of the pole that swings up, metres
STEPS = 200  # of an episode
MODEL = f"""
<mujoco>
  <option gravity="0 0 -9.81" integrator="RK4" timestep="0.02"/>
  <default><geom contype="0" conaffinity="0"/><joint damping="1"/></default>
  <worldbody>
    <body name="cart">
      <joint name="slide" type="slide" axis="1 0 0" limited="true" range="-2.5 2.5"/>
      <geom type="capsule" size="0.1" fromto="-0.1 0 0 0.1 0 0"/>
      <body name="pole">
        <joint name="turn" type="hinge" axis="0 1 0"/>
        <geom type="capsule" size="0.049" fromto="0 0 0 0.001 0 {-LENGTH}"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor joint="slide" gear="100" ctrllimited="true" ctrlrange="-3 3"/></actuator>
</mujoco>
"""
Step = tuple[np.ndarray, float, bool, bool, dict[str, Any]]


class Cart(gymnasium.Env[np.ndarray, np.ndarray]):
    """What both share: four numbers (x, angle and their speeds, in some order), one force."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012  # gymnasium's
    scale, half, angle_at, hangs = 40.0, 2.5, 1, True  # of the picture

    def __init__(self, force: float, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.action_space = spaces.Box(-force, force, (1,), np.float32)
        self.state = np.zeros(4)

    def render(self) -> np.ndarray:
        """A drawing, uint8 [128, 256, 3]."""
        picture = np.full((128, 256, 3), 246, np.uint8)
        x, angle = self.state[0], self.state[self.angle_at]
        x, y = int(128 + self.scale * x), 72
        cv2.line(picture, (0, y), (255, y), (200, 196, 190), 2)
        cv2.rectangle(picture, (x - 14, y - 7), (x + 14, y + 7), (62, 68, 82), -1)
        way = -1 if self.hangs else 1
        tip = (int(x + way * 50 * math.sin(angle)), int(y - way * 50 * math.cos(angle)))
        cv2.line(picture, (x, y), tip, (232, 131, 42), 7, cv2.LINE_AA)
        return picture


class SwingUp(Cart):
    """Observed: position, angle (0 hangs), and their speeds. Pays exp(-(distance of the tip from
    the point above the middle / pole)^2) - 0.01 force^2, force within [-3, 3]."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(3.0, render_mode)
        import mujoco

        self._mujoco = mujoco
        self._model = mujoco.MjModel.from_xml_string(MODEL)
        self._data = mujoco.MjData(self._model)

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[:] = self.np_random.normal(0, 0.1, 2)
        self._data.qvel[:] = self.np_random.normal(0, 0.1, 2)
        return self._seen(), {}

    def step(self, action: np.ndarray) -> Step:
        force = float(np.clip(action, -3, 3)[0])
        self._data.ctrl[0] = force
        self._mujoco.mj_step(self._model, self._data, 2)
        seen = self._seen()
        x, angle = self.state[:2]
        across, above = x - LENGTH * math.sin(angle), -LENGTH * math.cos(angle) - LENGTH
        reward = math.exp(-(across**2 + above**2) / LENGTH**2) - 0.01 * force**2
        return seen, reward, False, False, {}

    def _seen(self) -> np.ndarray:
        self.state = np.concatenate([self._data.qpos, self._data.qvel])
        return self.state.astype(np.float32)


class Balance(Cart):
    """Observed as in CartPole-v1; every step pays 1. Falls beyond 12 degrees or 2.4 m."""

    angle_at, hangs = 2, False

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(1.0, render_mode)

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-0.05, 0.05, 4)
        return self.state.astype(np.float32), {}

    def step(self, action: np.ndarray) -> Step:
        _, speed, angle, turn = self.state
        force = 10.0 * float(np.clip(action, -1, 1)[0])
        cos, sin = math.cos(angle), math.sin(angle)
        push = (force + 0.05 * turn**2 * sin) / 1.1
        turning = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
        pushing = push - 0.05 * turning * cos / 1.1
        change = np.array([speed, pushing, turn, turning])
        self.state = self.state + 0.02 * change
        fell = abs(self.state[0]) > 2.4 or abs(self.state[2]) > 12 * math.pi / 180
        return self.state.astype(np.float32), 1.0, bool(fell), False, {}


CARTS = {"swing_up": SwingUp, "balance": Balance}


def build(config: EnvConfig) -> gymnasium.Env[Any, Any]:
    """The cart of `config.id`. Raises EnvError for an unknown one, and for arguments: there are
    none."""
    if config.id not in CARTS:
        raise unknown("cart", config.id, CARTS)
    if config.kwargs:
        raise EnvError(f"'{config.id}' takes no arguments; given: {', '.join(config.kwargs)}.")
    env: Any = CARTS[config.id]("rgb_array" if config.pixels else None)
    if config.time_limit is None:
        env = TimeLimit(env, STEPS)
    return Repeat(Guard(env), config.action_repeat)
