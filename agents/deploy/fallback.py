"""Policies that need no learning: what acts when the learned one may not."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from agents.deploy.config import FallbackConfig
from agents.deploy.timing import Clock
from agents.deploy.worker import ThreadWorker, answered
from worldmodel.config import ConfigError, unknown
from worldmodel.types import ActionSpec

KNOWN = ("hold", "zero", "stop")
FIRST_CALL_S = 10.0  # what a user's function may take before the loop, where it may load things

Needy = Mapping[int, Mapping[str, Any]]  # robots that need an action, with the `info` of each


class Fallback(Protocol):
    """One robot's safe policy; actions are encoded float32 [A]."""

    def start(self, last: np.ndarray) -> None:
        """It takes over; `last` is the action sent before."""
        ...

    def __call__(self, obs: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> np.ndarray:
        """The action now."""
        ...

    @property
    def holds(self) -> bool:
        """Whether it does not let go yet, though all is well again."""
        ...


class Hold:
    """The last action, as long as it takes."""

    holds = False

    def __init__(self, rest: np.ndarray) -> None:
        self._last = rest

    def start(self, last: np.ndarray) -> None:
        """Remember the action."""
        self._last = last

    def __call__(self, obs: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> np.ndarray:
        return self._last


class Zero:
    """The action at rest, at once."""

    holds = False

    def __init__(self, rest: np.ndarray) -> None:
        self._rest = rest

    def start(self, last: np.ndarray) -> None:
        """Nothing to remember."""

    def __call__(self, obs: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> np.ndarray:
        return self._rest


class Stop:
    """From the last action to rest in a straight line, then waiting there.

    Discrete actions have no line between them: rest comes at once.
    """

    def __init__(self, rest: np.ndarray, ramp: int, wait: int, continuous: bool) -> None:
        self._rest, self._ramp, self._wait = rest, ramp if continuous else 1, wait
        self._last, self._ticks = rest, 0

    def start(self, last: np.ndarray) -> None:
        """Begin to brake."""
        self._last, self._ticks = last, 0

    def __call__(self, obs: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> np.ndarray:
        self._ticks += 1
        share = min(1.0, self._ticks / self._ramp)
        return self._last + np.float32(share) * (self._rest - self._last)

    @property
    def holds(self) -> bool:
        """Until it has come to rest and waited."""
        return self._ticks < self._ramp + self._wait


class Own:
    """A user's function (obs, info) -> action, as the environment takes it.

    obs: one robot's observation; zeros where it was refused. info: robot, tick, reason, detail, and
    `last`, the action sent before. It runs in a thread of its own, within its budget.
    """

    holds = False

    def __init__(self, call: Callable[..., Any], action: ActionSpec) -> None:
        self._call, self._action, self._last = call, action, np.zeros(action.size, np.float32)

    def start(self, last: np.ndarray) -> None:
        """Remember the action, for `info`."""
        self._last = last

    def __call__(self, obs: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> np.ndarray:
        last = self._action.decode(self._last)
        return encoded(self._call(dict(obs), {**info, "last": last}), self._action)


def encoded(native: Any, spec: ActionSpec) -> np.ndarray:
    """A user's action as float32 [A]. Raises ValueError for what is no action."""
    array = np.asarray(native)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"the action is a {array.dtype}, not numbers")
    if spec.kind == "continuous":
        if array.shape != (spec.size,):
            raise ValueError(f"the action has shape {list(array.shape)}; [{spec.size}] is needed")
        if not np.isfinite(array).all():
            raise ValueError("the action is not finite")
        return np.asarray(spec.clip(array.astype(np.float32)))
    wanted = () if len(spec.sizes) == 1 else (len(spec.sizes),)
    if array.shape != wanted or np.any(array != np.floor(array)):
        raise ValueError(f"the action is {native!r:.60}; {list(wanted)} whole numbers are needed")
    if np.any(array < 0) or np.any(array >= np.reshape(spec.sizes, wanted)):
        raise ValueError(f"the action is {native!r:.60}; {list(spec.sizes)} are the classes")
    return spec.encode(array)


def rest_action(config: FallbackConfig, action: ActionSpec) -> np.ndarray:
    """The encoded action [A] of a robot at rest.

    Raises ConfigError where none was given for discrete actions, and for impossible ones.
    """
    if config.rest is None:
        if action.kind == "continuous":
            return np.zeros(action.size, np.float32)
        first = ",".join(str(int(n == 0)) for size in action.sizes for n in range(size))
        raise ConfigError(
            "fallback.rest is not set, and discrete actions have no zero: give the encoded action "
            f"of a robot at rest, {action.size} numbers, one-hot for each of the factors "
            f"{list(action.sizes)}. For the first class of each: 'deploy.fallback.rest=[{first}]'"
        )
    rest = np.asarray(config.rest, np.float32)
    ok = rest.shape == (action.size,) and bool(np.all(np.abs(rest) <= 1))
    if ok and action.kind == "discrete":
        ok = bool(np.array_equal(action.encode(action.decode(rest)), rest))
    if not ok:
        what = "in [-1, 1]" if action.kind == "continuous" else f"one-hot, {list(action.sizes)}"
        raise ConfigError(
            f"fallback.rest is {config.rest}; it must hold {action.size} numbers, {what}."
        )
    return rest


def make(config: FallbackConfig, action: ActionSpec) -> Fallback:
    """One robot's fallback. Raises ConfigError for names that nobody knows."""
    rest = rest_action(config, action)
    if config.name == "hold":
        return Hold(rest)
    if config.name == "zero":
        return Zero(rest)
    if config.name == "stop":
        continuous = action.kind == "continuous"
        return Stop(rest, config.ramp_ticks, config.wait_ticks, continuous)
    return Own(_found(config.name), action)


def _found(name: str) -> Callable[..., Any]:
    """The user's function of that name, or what a class of that name makes."""
    place, colon, attribute = name.rpartition(":")
    if not colon:
        raise ConfigError(
            unknown("fallback", name, KNOWN) + " Your own is named module:function, or "
            "file.py:function."
        )
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except Exception as error:
        raise ConfigError(
            f"Fallback '{name}': '{place}' cannot be imported ({type(error).__name__}: {error}). "
            "Write module:function for what can be imported from here, or file.py:function."
        ) from error
    found = getattr(module, attribute, None)
    if isinstance(found, type):
        found = found()
    if not callable(found):
        raise ConfigError(f"Fallback '{name}': '{place}' has no function '{attribute}'.")
    return found


class _Job:
    """Asks the fallbacks of several robots; satisfies `agents.deploy.worker.Job`."""

    def __init__(self, ones: list[Fallback]) -> None:
        self._ones = ones

    def __call__(self, request: tuple[Needy, Mapping[str, np.ndarray]]) -> dict[int, Any]:
        needy, obs = request
        return {i: answered(partial(self._one, i, obs), 0, info) for i, info in needy.items()}

    def _one(self, i: int, obs: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> np.ndarray:
        return self._ones[i]({key: value[i] for key, value in obs.items()}, info)

    def afterwards(self) -> None:
        """Nothing."""


class Fallbacks:
    """One fallback for each of B robots. A user's own function runs in a thread of its own; if it
    raises, returns nonsense or exceeds its budget, the action at rest is sent."""

    def __init__(
        self, config: FallbackConfig, action: ActionSpec, robots: int, clock: Clock
    ) -> None:
        self.config, self._clock, self._action = config, clock, action
        self.rest = rest_action(config, action)
        self._ones = [make(config, action) for _ in range(robots)]
        self._job = _Job(self._ones)
        self._worker: ThreadWorker | None = None
        if isinstance(self._ones[0], Own):
            self._worker = ThreadWorker(self._job, clock)
        self._ticket = 0

    def holds(self, robot: int) -> bool:
        """Whether this robot's fallback does not let go yet."""
        return self._ones[robot].holds

    def start(self, robot: int, last: np.ndarray) -> None:
        """This robot's fallback takes over after an action."""
        self._ones[robot].start(last)

    def __call__(
        self, needy: Needy, obs: Mapping[str, np.ndarray], seconds: float | None = None
    ) -> dict[int, tuple[np.ndarray, str]]:
        """Encoded actions by robot, each with why it is the last resort's ("" where it is not)."""
        if self._worker is None:
            found = self._job((needy, obs))
        else:
            self._ticket += 1
            budget = self.config.budget_ms / 1e3 if seconds is None else seconds
            self._worker.submit(self._ticket, (needy, obs))
            answer = self._worker.wait(self._ticket, self._clock.now() + budget)
            if answer is None:
                late = f"the fallback did not answer within {1e3 * budget:g} ms"
                return dict.fromkeys(needy, (self.rest, late))
            found = answer.result
        out = {}
        for i, answer in found.items():
            action, failure = answer.result, answer.error
            if not failure and not np.isfinite(action).all():
                failure = "its action is not finite"
            out[i] = (self.rest if failure else action,
                      f"the fallback failed: {failure}" if failure else "")  # fmt: skip
        return out

    def try_out(self, obs: Mapping[str, np.ndarray]) -> None:
        """Call a user's function once for each robot. Raises ConfigError where it fails."""
        if self._worker is None:
            return
        needy = {
            i: {"robot": i, "tick": -1, "reason": "ok", "detail": "a trial before the loop"}
            for i in range(len(self._ones))
        }
        for action, failure in self(needy, obs, FIRST_CALL_S).values():
            assert action is not None
            if failure:
                raise ConfigError(
                    f"Fallback '{self.config.name}': {failure}. It is called as function(obs, "
                    "info) and returns what the environment takes: "
                    + (
                        f"{self._action.size} numbers in [-1, 1]."
                        if self._action.kind == "continuous"
                        else f"whole numbers below {list(self._action.sizes)}."
                    )
                )

    def close(self) -> None:
        """End the thread, where there is one."""
        if self._worker is not None:
            self._worker.close()
