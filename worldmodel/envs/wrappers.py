"""Checks and action repeat; see `observe` for what agents see."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from .config import EnvError

Step = tuple[Any, float, bool, bool, dict[str, Any]]
LARGEST_REWARD = 1e35  # a thousand of them, the most that an action repeat adds up, fit in float32


class Guard(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Raises EnvError where an environment's step or reset does not return what gymnasium asks
    for, or its reward is not one finite number; rewards leave as floats, flags as bools."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        result = self.env.reset(seed=seed, options=options)
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
            raise EnvError(
                f"reset must return (observation, info) with a dict as info, but returned a "
                f"{type(result).__name__}. Follow gymnasium's API."
            )
        return result

    def step(self, action: Any) -> Step:
        result = self.env.step(action)
        if not isinstance(result, tuple) or len(result) != 5:
            size = f" of {len(result)}" if isinstance(result, tuple) else ""
            raise EnvError(
                f"step must return (observation, reward, terminated, truncated, info), but "
                f"returned a {type(result).__name__}{size}. Follow gymnasium's API."
            )
        obs, reward, terminated, truncated, info = result
        if type(reward) is not float:
            reward = _number(reward)
        if not abs(reward) <= LARGEST_REWARD:  # a NaN fails too
            raise EnvError(
                f"The reward is {reward}, but must be finite and no larger than "
                f"{LARGEST_REWARD:g}. The action was {action!r}."
            )
        if type(terminated) is not bool:
            terminated = _flag("terminated", terminated)
        if type(truncated) is not bool:
            truncated = _flag("truncated", truncated)
        if not isinstance(info, dict):
            raise EnvError(f"info must be a dict, but is a {type(info).__name__}.")
        return obs, reward, terminated, truncated, info


def _number(reward: Any) -> float:
    """A reward as a float; 0-d arrays and numpy numbers are fine."""
    array = np.asarray(reward)
    if array.shape != () or array.dtype.kind not in "fiub":
        raise EnvError(
            f"The reward must be one number, but is {reward!r} ({type(reward).__name__}). Return a "
            f"float from step."
        )
    return float(array)


def _flag(name: str, value: Any) -> bool:
    """A flag as a bool; numpy's own and 0 or 1 are fine."""
    array = np.asarray(value)
    if array.shape != () or array.dtype.kind not in "biu":
        raise EnvError(f"{name} must be True or False, but is {value!r} ({type(value).__name__}).")
    return bool(array)


class Repeat(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Gives each action to the environment `times` times, or until the episode ends, and sums the
    rewards; the observation and info are the last ones."""

    def __init__(self, env: gymnasium.Env[Any, Any], times: int) -> None:
        super().__init__(env)
        self._times = times

    def step(self, action: Any) -> Step:
        total = 0.0
        for _ in range(self._times):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, info
