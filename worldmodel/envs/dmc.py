"""The DeepMind Control Suite."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from .config import EnvConfig, EnvError, unknown
from .making import made
from .observe import area
from .rendering import prepare
from .wrappers import Guard, Repeat

# Texels of a shadow map for each pixel of the longer side, at most. The suite's own 2048 take more
# than half of a small frame's time where no GPU draws, and change nothing that can be seen in it.
SHADOW = 16
CAMERAS = {"quadruped": 2}  # behind the robot, as published; 0 everywhere else


def build(config: EnvConfig) -> gymnasium.Env[Any, Any]:
    """The task `config.id` (domain_task), one step for each agent step.

    Raises EnvError for unknown tasks and cameras.
    """
    return Repeat(Guard(ControlSuite(config)), config.action_repeat)


class ControlSuite(gymnasium.Env[Any, Any]):
    """A task of the suite: observations as vectors, frames through `render`.

    An episode whose last discount is 0 terminated; every other one was truncated. `kwargs` of the
    settings go to the task.
    """

    def __init__(self, config: EnvConfig) -> None:
        prepare(config.pixels)
        from dm_control import suite

        tasks = {f"{domain}_{task}": (domain, task) for domain, task in suite.ALL_TASKS}
        if config.id not in tasks:
            raise unknown("dm_control task", config.id, tasks)
        domain, task = tasks[config.id]
        # Some tasks (lqr) draw their very model from this generator: the same one each time, or
        # no two environments would be alike. Resets seed it anew.
        kwargs = {"random": 0, **config.kwargs}
        if config.time_limit is not None:
            kwargs["time_limit"] = float("inf")  # ours replaces it
        self._env = made(config, lambda: suite.load(domain, task, task_kwargs=kwargs))
        self.metadata = {"render_modes": ["rgb_array"]}
        self.render_mode = "rgb_array" if config.pixels else None
        self.observation_space = spaces.Dict(
            {
                key: spaces.Box(-np.inf, np.inf, spec.shape, np.float64)
                for key, spec in self._env.observation_spec().items()
            }
        )
        action = self._env.action_spec()
        low = np.broadcast_to(action.minimum, action.shape)
        high = np.broadcast_to(action.maximum, action.shape)
        self.action_space = spaces.Box(low, high, action.shape, np.float64)
        self._camera_id = CAMERAS.get(domain, 0) if config.camera is None else config.camera
        self._size, self._times = _frame_size(config), config.supersample
        self._fast = config.fast_render
        self._camera: Any = None
        if config.pixels:
            self._prepare_drawing()

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._env.task.random.seed(seed % 2**32)
        return dict(self._env.reset().observation), {}

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        now = self._env.step(action)
        terminated = now.last() and now.discount == 0.0
        return dict(now.observation), now.reward, terminated, now.last() and not terminated, {}

    def render(self) -> np.ndarray:
        """uint8 [H, W, 3], drawn at the size that is asked for."""
        if self._camera is None:
            from dm_control.mujoco.engine import Camera

            # Kept, since a camera's scene costs more to build than a small frame to draw.
            height, width = self._drawn
            self._camera = Camera(self._env.physics, height, width, self._camera_id)
        flags = {"shadow": False} if self._fast else None
        return area(self._camera.render(render_flag_overrides=flags), self._size)

    @property
    def _drawn(self) -> tuple[int, int]:
        """Height and width before samples are averaged."""
        return self._size[0] * self._times, self._size[1] * self._times

    def close(self) -> None:
        self._camera = None
        self._env.close()

    def _prepare_drawing(self) -> None:
        """Settings that must be there before the first frame."""
        model = self._env.physics.model
        if not -1 <= self._camera_id < model.ncam:
            raise EnvError(
                f"camera is {self._camera_id}, but this task has the cameras -1 (free) to "
                f"{model.ncam - 1}."
            )
        height, width = self._drawn
        buffer = model.vis.global_
        buffer.offheight = max(buffer.offheight, height)
        buffer.offwidth = max(buffer.offwidth, width)
        quality = model.vis.quality
        quality.shadowsize = min(quality.shadowsize, SHADOW * max(self._size))
        if self._fast:
            quality.offsamples = 0


def _frame_size(config: EnvConfig) -> tuple[int, int]:
    """Height and width to draw, so that what `crop` leaves needs no resizing."""
    top, bottom, left, right = config.crop or (0, 0, 0, 0)
    return config.image_size[0] + top + bottom, config.image_size[1] + left + right
