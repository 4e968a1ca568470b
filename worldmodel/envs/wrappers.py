"""Checks and action repeat; see `observe` for what agents see."""

from __future__ import annotations

import logging
from typing import Any

import gymnasium
import numpy as np

from .config import EnvError
from .process_state import kept_process_state

CUT_OFF = "cut_off_as_endless"  # in the info of a step
Step = tuple[Any, float, bool, bool, dict[str, Any]]
_log = logging.getLogger(__name__)
LARGEST_REWARD = 1e35  # a thousand of them, the most that an action repeat adds up, fit in float32


class Guard(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Raises EnvError where an environment's step or reset does not return what gymnasium asks
    for, or its reward is not one finite number; rewards leave as floats, flags as bools. An array
    of one number is one number. A close that fails is a warning."""

    def close(self) -> None:
        close_gently(self.env)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        try:
            with kept_process_state():
                result = self.env.reset(seed=seed, options=options)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            raise EnvError(
                f"{error_words(error)}. Its reset must take both, as gymnasium asks: "
                "def reset(self, *, seed=None, options=None)."
            ) from error
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
            reward = float(_scalar("The reward", reward, "fiub", "one number"))
        if not abs(reward) <= LARGEST_REWARD:  # a NaN fails too
            raise EnvError(
                f"The reward is {reward}, but must be finite and no larger than "
                f"{LARGEST_REWARD:g}. The action was {action!r}."
            )
        if type(terminated) is not bool:
            terminated = bool(_scalar("terminated", terminated, "biu", "True or False"))
        if type(truncated) is not bool:
            truncated = bool(_scalar("truncated", truncated, "biu", "True or False"))
        if not isinstance(info, dict):
            raise EnvError(f"info must be a dict, but is a {type(info).__name__}.")
        return obs, reward, terminated, truncated, info


def close_gently(env: gymnasium.Env[Any, Any]) -> None:
    """Close an environment; what goes wrong is a warning, since another error may be under way."""
    try:
        env.close()
    except (Exception, SystemExit) as error:
        _log.warning("warning: close() of the environment failed: %s", error_words(error))


def error_words(error: BaseException) -> str:
    """What somebody else's error says, in one line."""
    name = type(error).__name__
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # it need not know how to say what it is
        return name
    return f"{name}: {lines[0][:200]}" if lines else name


def _scalar(what: str, value: Any, kinds: str, allowed: str) -> np.ndarray:
    """A number or flag as a 0-d array, of one of these kinds of dtype."""
    array = np.asarray(value)
    if array.size == 1 and array.dtype.kind in kinds:
        array = array.reshape(())
    if array.shape != () or array.dtype.kind not in kinds:
        raise EnvError(
            f"{what} must be {allowed}, but is {value!r} ({type(value).__name__}). Return it so "
            f"from step."
        )
    return array


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


class CutOff(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Truncates an episode that nothing has ended after `limit` steps, with a true CUT_OFF in
    the info of that step."""

    def __init__(self, env: gymnasium.Env[Any, Any], limit: int) -> None:
        super().__init__(env)
        self._limit, self._count = limit, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._count = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> Step:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._count += 1
        if self._count >= self._limit and not (terminated or truncated):
            truncated, info = True, {**info, CUT_OFF: True}
        return obs, float(reward), terminated, truncated, info
