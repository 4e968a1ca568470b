"""Rewards of one's own: a Python function in place of, or beside, the reward of the task.

    def hang(observation, action, next_observation, info):
        return -abs(next_observation["state"][1])

observation, next_observation: dicts of arrays as agents see them, recorded keys included, before
and after the action. action: native, as `make_env` takes it. info: `reward` (the task's own),
`is_last`, `is_terminal`, `episode` and `step` (1 for the first action of an episode). The function
returns one number. One that has a true attribute `vectorised` is given arrays of T steps, [T, ...]
each, and returns [T] numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np

from .config import EnvError
from .named import found
from .observe import Observe
from .wrappers import Step

Observations = Mapping[str, np.ndarray]


class RewardFunction:
    """A function by its name, "module:function" or "folder/file.py:function".

    Raises EnvError where there is none of that name.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.call: Callable[..., Any] = found(name, "function")
        self.vectorised = bool(getattr(self.call, "vectorised", False))

    def one(
        self,
        observation: Observations,
        action: Any,
        next_observation: Observations,
        info: Mapping[str, Any],
    ) -> float:
        """The reward of one step. Raises EnvError where the function does, and unless it returns
        one finite number; the message names the episode and the step."""
        if self.vectorised:
            before, after = (_stacked(obs) for obs in (observation, next_observation))
            return float(self.batch(before, np.asarray(action)[None], after, _stacked(info))[0])
        where, asked = (
            f"episode {info['episode']}, step {info['step']}",
            "it must return one number",
        )
        return float(self._called(where, (), asked, observation, action, next_observation, info))

    def batch(
        self,
        observation: Observations,
        action: np.ndarray,
        next_observation: Observations,
        info: Mapping[str, np.ndarray],
    ) -> np.ndarray:
        """The rewards float64 [T] of T steps of one episode, from arrays [T, ...]. Raises EnvError
        as `one` does."""
        steps = len(action)
        if not self.vectorised:
            return np.array([
                self.one(*(_at(part, t) for part in (observation, action, next_observation, info)))
                for t in range(steps)
            ])  # fmt: skip
        where = f"episode {info['episode'][0]}, steps {info['step'][0]} to {info['step'][-1]}"
        asked = (
            f"it declares itself vectorised, so it must return [{steps}] numbers, one for each step"
        )
        value = self._called(where, (steps,), asked, observation, action, next_observation, info)
        return value.astype(np.float64)

    def _called(
        self, where: str, shape: tuple[int, ...], asked: str, observation: Observations, *rest: Any
    ) -> np.ndarray:
        """What the function returns: finite numbers of that shape. Raises EnvError."""
        *arguments, info = rest
        try:
            value = np.asarray(self.call(observation, *arguments, dict(info)))
        except Exception as error:
            raise self._raised(error, where, observation) from error
        if shape == () and value.size == 1:
            value = value.reshape(())  # an array of one number is one number
        returned = f"The reward function '{self.name}' returned"
        if value.shape != shape or value.dtype.kind not in "fiub":
            raise EnvError(f"{returned} {_shown(value)} at {where}; {asked}.")
        bad = np.flatnonzero(~np.isfinite(value))
        if len(bad):
            episode, step, wrong = (
                np.ravel(x)[bad[0]] for x in (info["episode"], info["step"], value)
            )
            raise EnvError(
                f"{returned} {wrong} at episode {episode}, step {step}; rewards must be finite."
            )
        return value

    def _raised(self, error: Exception, where: str, observation: Observations) -> EnvError:
        line, hint = "", ""
        if isinstance(error, KeyError):
            hint = (
                f". Observations hold {', '.join(sorted(observation))} here; env.record=[...] "
                "makes a run keep more"
            )
        trace = error.__traceback__
        while trace is not None:  # the innermost line of the user's own file
            if trace.tb_frame.f_code.co_filename == getattr(
                getattr(self.call, "__code__", None), "co_filename", None
            ):
                line = f" (line {trace.tb_lineno})"
            trace = trace.tb_next
        return EnvError(
            f"The reward function '{self.name}' failed at {where}{line}: "
            f"{type(error).__name__}: {error}{hint}"
        )


class Rewarded(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose reward is a function's; between `Observe` and `Episodes`.

    blind: ignored. The function needs the observation before the last, so every row is read.
    episode: the number of the last full reset, which `Episodes` sets, so that it is the same where
    an episode is replayed.
    """

    env: Observe

    def __init__(self, env: Observe, function: RewardFunction) -> None:
        super().__init__(env)
        self.blind = False
        self._function = function
        self._before: dict[str, np.ndarray] = {}
        self.episode, self._step = -1, 0  # the number is given by `Episodes`, which counts

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._before, info = self.env.reset(seed=seed, options=options)
        self._step = 0
        return self._before, info

    def step(self, action: Any) -> Step:
        before = self._before
        self._before, reward, terminated, truncated, info = self.env.step(action)
        self._step += 1
        known = {
            "reward": reward,
            "is_last": terminated or truncated,
            "is_terminal": terminated,
            "episode": self.episode,
            "step": self._step,
        }
        # A function that is given continuous actions sees them as the environment clips them.
        if isinstance(self.action_space, gymnasium.spaces.Box):
            action = np.clip(np.asarray(action, np.float32), -1.0, 1.0)
        reward = self._function.one(before, action, self._before, known)
        return self._before, reward, terminated, truncated, info


def _at(part: Any, index: int) -> Any:
    """One step of arrays; numbers of one step become Python's own."""
    if isinstance(part, Mapping):
        return {key: _at(value, index) for key, value in part.items()}
    value = part[index]
    return value.item() if isinstance(value, np.generic) and part.ndim == 1 else value


def _stacked(part: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {key: np.asarray(value)[None] for key, value in part.items()}


def _shown(value: np.ndarray) -> str:
    if value.dtype.kind not in "fiub":
        return f"a {type(value.item()).__name__}" if value.shape == () else f"{value.dtype}"
    return f"an array of shape {list(value.shape)}"
