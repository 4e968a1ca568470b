"""Environments whose right answers are known: one that counts, one that is learned in seconds, and
some that misbehave."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

Step = tuple[dict[str, np.ndarray], Any, bool, bool, dict[str, Any]]


class CountingEnv(gymnasium.Env[Any, Any]):
    """Observes where it is, so that rows can be checked for alignment.

    image: uint8 [size, size, 3], everywhere (episode, step, 0), both modulo 256.
    count: float32 [2 + n] = (episode, step, *the native action that led here; 0 after a reset).
    The reward of the step that leads to step t is t. Episodes and steps count from 0, and the
    episode ends at step `length`.

    actions: "discrete" (3 of them), "multidiscrete" (2 and 3) or "box" (2 entries in [-2, 4]).
    end: "terminated", "truncated", or "alternate" (even episodes terminate, odd ones are cut off).
    masked: adds an `action_mask` that allows only action `step % 3`; discrete actions only.
    lengths: lengths of the episodes in turn, instead of `length`.
    """

    def __init__(
        self,
        length: int = 5,
        end: str = "terminated",
        actions: str = "discrete",
        masked: bool = False,
        size: int = 32,
        lengths: tuple[int, ...] = (),
    ) -> None:
        self.action_space = {
            "discrete": spaces.Discrete(3),
            "multidiscrete": spaces.MultiDiscrete([2, 3]),
            "box": spaces.Box(-2.0, 4.0, (2,), np.float32),
        }[actions]
        self._width = 1 if actions == "discrete" else 2
        self._lengths = tuple(lengths) or (length,)
        self._end, self._size, self._masked = end, size, masked
        obs: dict[str, spaces.Space[Any]] = {
            "image": spaces.Box(0, 255, (size, size, 3), np.uint8),
            "count": spaces.Box(-np.inf, np.inf, (2 + self._width,), np.float32),
        }
        if masked:
            assert actions == "discrete"
            obs["action_mask"] = spaces.Box(0, 1, (3,), np.int8)
        self.observation_space = spaces.Dict(obs)
        self.episode, self.count = -1, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.count = self.episode + 1, 0
        return self._obs(np.zeros(self._width)), {}

    def step(self, action: Any) -> Step:
        self.count += 1
        done = self.count >= self._lengths[self.episode % len(self._lengths)]
        terminates = self._end == "terminated" or (
            self._end == "alternate" and self.episode % 2 == 0
        )
        obs = self._obs(np.ravel(action))
        return obs, float(self.count), done and terminates, done and not terminates, {}

    def _obs(self, action: np.ndarray) -> dict[str, np.ndarray]:
        image = np.zeros((self._size, self._size, 3), np.uint8)
        image[..., 0], image[..., 1] = self.episode % 256, self.count % 256
        obs: dict[str, np.ndarray] = {
            "image": image,
            "count": np.array([self.episode, self.count, *action], np.float32),
        }
        if self._masked:
            obs["action_mask"] = np.eye(3, dtype=np.int8)[self.count % 3]
        return obs


class SteadyEnv(CountingEnv):
    """All its episodes are alike, so that it can be brought back to where it was.

    pause: seconds of a step. last: how many steps it takes before it breaks.
    """

    def __init__(self, pause: float = 0.0, last: int = 10**9, **given: Any) -> None:
        super().__init__(**given)
        self._pause, self._left = pause, last

    def reset(self, **given: Any) -> Any:
        self.episode = -1
        return super().reset(**given)

    def step(self, action: Any) -> Step:
        time.sleep(self._pause)
        self._left -= 1
        if self._left < 0:
            raise RuntimeError("the gears jam")
        return super().step(action)


class LeftRightEnv(gymnasium.Env[Any, Any]):
    """A bright square on the left or right of a dark [size, size, 3] image; the action that names
    its side earns 1, the other 0, and a new square appears. Chance earns length / 2, the best
    policy `length`.

    actions: "discrete" (0 left, 1 right) or "box" (one entry; below 0 is left).
    """

    def __init__(self, length: int = 8, actions: str = "discrete", size: int = 32) -> None:
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = (
            spaces.Discrete(2) if actions == "discrete" else spaces.Box(-1.0, 1.0, (1,), np.float32)
        )
        self._discrete = actions == "discrete"
        self._length, self._size = length, size
        self._right, self._count = False, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._count = 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        right = bool(action == 1) if self._discrete else bool(np.ravel(action)[0] >= 0)
        reward = float(right == self._right)
        self._count += 1
        return self._obs(), reward, False, self._count >= self._length, {}

    def _obs(self) -> np.ndarray:
        self._right = bool(self.np_random.integers(2))
        image = np.zeros((self._size, self._size, 3), np.uint8)
        half = self._size // 2
        quarter = half // 2
        start = half if self._right else 0
        image[quarter : quarter + half, start : start + half] = 255
        return image


class OddSpacesEnv(gymnasium.Env[Any, Any]):
    """Returns a fixed observation of any space, and remembers the native actions."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        observation: Any,
        action_space: spaces.Space[Any] | None = None,
        render_mode: str | None = None,
        info: dict[str, Any] | None = None,
        result: Any = None,
    ) -> None:
        self.observation_space = observation_space
        self.action_space = action_space or spaces.Discrete(2)
        self.render_mode = render_mode
        self.observation, self.result, self.info = observation, result, info or {}
        self.actions: list[Any] = []
        self.renders = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation, self.info

    def step(self, action: Any) -> Any:
        self.actions.append(action)
        if self.result is not None:
            return self.result
        return self.observation, 1.0, False, False, self.info

    def render(self) -> Any:
        self.renders += 1
        return np.full((50, 70, 3), len(self.actions), np.uint8)


OddSpacesEnv.metadata = {"render_modes": ["rgb_array"]}


class FailingEnv(gymnasium.Env[Any, Any]):
    """Counts its steps in a vector [2] = (seed, step), and fails in one of these ways:

    at: "make", "reset" or "step"; a step fails when it would be number `step` of its episode.
    how: exit (the process), raise, quit (SystemExit), hang, busy, shape, dtype, nan, keys,
        reward, infinite, flag, tuple.
    folder, times: a file for each failure lies in the folder, and after so many it works; None
        fails for ever.
    """

    observation_space = spaces.Dict({"count": spaces.Box(-np.inf, np.inf, (2,), np.float64)})
    action_space = spaces.Discrete(3)

    def __init__(
        self,
        at: str = "step",
        how: str = "raise",
        step: int = 3,
        folder: str = "",
        times: int | None = 1,
        length: int = 5,
    ) -> None:
        self._at, self._how, self._step = at, how, step
        self._folder, self._times, self._length = Path(folder or "."), times, length
        self._seed, self._count = 0, 0
        self._bad = ""
        self._fail("make")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._seed, self._count = seed or 0, 0
        self._fail("reset")
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        self._count += 1
        if self._count == self._step:
            self._fail("step")
        over = self._count >= self._length
        reward = {"reward": "much", "infinite": float("inf")}.get(self._bad, 1.0)
        flag = "perhaps" if self._bad == "flag" else over
        answer = (self._obs(), reward, flag, False, {"step": self._count})
        return answer[:4] if self._bad == "tuple" else answer

    def _obs(self) -> Any:
        count = np.array([self._seed, self._count], np.float64)
        if self._bad == "shape":
            count = np.zeros(3)
        if self._bad == "dtype":
            return {"count": np.array(["a", "b"])}
        if self._bad == "nan":
            count[1] = np.nan
        return {"counts" if self._bad == "keys" else "count": count}

    def _takes(self, number: int) -> bool:
        """Whether this failure is ours: one process alone can make a file."""
        try:
            (self._folder / str(number)).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _fail(self, at: str) -> None:
        """Fail, if this is the moment and there are failures left."""
        self._bad = ""
        if at != self._at:
            return
        if self._times is not None and not any(map(self._takes, range(self._times))):
            return
        if self._how == "exit":
            os._exit(7)
        if self._how == "raise":
            raise RuntimeError("the gears jam")
        if self._how == "quit":
            raise SystemExit("enough")
        if self._how == "hang":
            time.sleep(1000)
        while self._how == "busy":
            pass
        self._bad = self._how


class DiceEnv(gymnasium.Env[Any, Any]):
    """A game of chance with several discrete actions and a mask, drawing from all that a seed
    reaches: its generator and both of its spaces. Episodes end by chance.

    The mask allows one of 2 and one or two of 3 actions.
    """

    def __init__(self, render_mode: str | None = None, noise: bool = False) -> None:
        self.action_space = spaces.MultiDiscrete([2, 3])
        self.observation_space = spaces.Dict(
            {
                "dice": spaces.Box(-10.0, 10.0, (3,), np.float64),
                "sum": spaces.Box(-np.inf, np.inf, (1,), np.float64),
                "action_mask": spaces.Box(0, 1, (5,), np.int8),
            }
        )
        self.render_mode, self._noise, self._sum = render_mode, noise, 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._sum = 0.0
        return self._obs(), {}

    def step(self, action: Any) -> Step:
        self._sum += float(action[0]) * self.np_random.normal() + 0.3 * float(action[1])
        ends = self.np_random.random(2) < 0.05
        return self._obs(), self._sum, bool(ends[0]), bool(ends[1]), {"drawn": ends}

    def render(self) -> np.ndarray:
        """With `noise`, drawing a frame changes what comes after it."""
        frame = np.full((32, 32, 3), int(abs(self._sum) * 10) % 256, np.uint8)
        return frame ^ self.np_random.integers(0, 256, frame.shape, np.uint8) * self._noise

    def _obs(self) -> dict[str, np.ndarray]:
        mask = np.zeros(5, np.int8)
        mask[self.action_space.sample() + np.array([0, 2])] = 1
        mask[2 + self.np_random.integers(3)] = 1
        drawn = self.observation_space["dice"].sample()  # type: ignore[index]
        return {"dice": drawn, "sum": np.array([self._sum]), "action_mask": mask}


DiceEnv.metadata = {"render_modes": ["rgb_array"]}


class SlowEnv(DiceEnv):
    """Three steps a second, and no end."""

    def step(self, action: Any) -> Any:
        time.sleep(0.3)
        obs, reward, _, _, info = super().step(action)
        return obs, reward, False, False, info


class LivesEnv(gymnasium.Env[Any, Any]):
    """Three lives of chance length; the next reset after all but the last goes on."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = spaces.Discrete(2)
    goes_on = False
    lives = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if not self.goes_on or seed is not None:
            self.lives, self.games = 3, getattr(self, "games", 0) + 1
        self.goes_on = False
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        lost = self.np_random.random() < 0.2
        self.lives -= lost
        self.goes_on = lost and self.lives > 0
        return self._obs(), float(action), lost, False, {}

    def _obs(self) -> np.ndarray:
        return np.array([self.lives, self.goes_on, self.np_random.normal()])


class PartsEnv(gymnasium.Env[Any, Any]):
    """Two factors of 2 and 3 classes; its mask, of some form, allows (step % 2, step % 3) alone."""

    action_space = spaces.MultiDiscrete([2, 3])

    def __init__(self, form: str) -> None:
        bits = [spaces.MultiBinary(2), spaces.Box(0, 1, (3,), np.int8)]
        masks: dict[str, Any] = {"tuple": spaces.Tuple(bits), "flat": spaces.MultiBinary(5),
                                 "names": spaces.Dict({"a": bits[0], "b": bits[1]})}  # fmt: skip
        inner: dict[str, Any] = {"x": spaces.Box(-1, 1, (2,)), "action_mask": masks[form]}
        self.form, self.observation_space, self.steps = form, spaces.Dict(inner), 0

    def _seen(self) -> dict[str, Any]:
        two, three = np.eye(2, dtype=np.int8), np.eye(3, dtype=np.int8)
        parts = (two[self.steps % 2], three[self.steps % 3])
        mask = parts if self.form == "tuple" else np.concatenate(parts)
        return {"x": np.zeros(2, np.float32), "action_mask": mask}

    def reset(self, **given: Any) -> Any:
        super().reset(**given)
        self.steps = 0
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        if list(action) != [self.steps % 2, self.steps % 3]:
            raise RuntimeError(f"{action} is forbidden")
        self.steps += 1
        return self._seen(), 1.0, self.steps == 7, False, {}
