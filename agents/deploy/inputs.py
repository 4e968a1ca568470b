"""What the caller of a tick hands in: observations are checked before anybody believes them, the
rest is brought into form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from worldmodel.types import EnvSpec, ObsSpec


def blank(spec: EnvSpec, robots: int) -> dict[str, np.ndarray]:
    """An observation [B, ...] of nothing but zeros, and of the first of discrete classes."""
    found = {
        key: np.zeros((robots, *one.shape), np.uint8 if one.kind == "image" else np.float32)
        for key, one in spec.seen.items()
    }
    for key, one in spec.seen.items():
        if one.kind == "discrete":
            starts = np.cumsum([0, *one.sizes[:-1]])
            found[key][:, starts] = 1
    return found


class Checked(NamedTuple):
    """Observations [B, ...] by key, blank where they were refused; and why, "" where not."""

    obs: dict[str, np.ndarray]
    faults: list[str]

    @property
    def valid(self) -> np.ndarray:
        """[B] bool."""
        return np.array([not fault for fault in self.faults])


class InputCheck:
    """Checks shape, type, finiteness and freshness; never raises for what a sensor did.

    spec: of one robot's observation. robots: B. max_age: seconds, or None where time stamps do not
    matter.
    """

    def __init__(self, spec: EnvSpec, robots: int, max_age: float | None = None) -> None:
        self.spec, self.robots, self.max_age = spec, robots, max_age
        self._newest = np.full(robots, -np.inf)

    def __call__(self, obs: Any, stamp: Any = None, now: float = 0.0) -> Checked:
        """obs: [B, ...] by key, or a sequence of B observations (None, or the error, where one
        failed); copied, because a camera may write on while the policy reads. stamp: when each
        was taken, [B] or one for all, in seconds of the clock that tells `now`."""
        out = blank(self.spec, self.robots)
        faults = [""] * self.robots
        batched = isinstance(obs, Mapping)
        if not batched and (not isinstance(obs, Sequence) or len(obs) != self.robots):
            given = f"{len(obs)} of them" if isinstance(obs, Sequence) else type(obs).__name__
            return Checked(out, [f"observation: {given}; {self.robots} needed"] * self.robots)
        for robot in range(self.robots):
            faults[robot] = self._copy(obs if batched else obs[robot], out, robot, batched)
            faults[robot] = faults[robot] or self._stale(stamp, robot, now)
        for robot, fault in enumerate(faults):
            if fault:
                for key, nothing in blank(self.spec, 1).items():
                    out[key][robot] = nothing[0]
        return Checked(out, faults)

    def _copy(self, obs: Any, out: dict[str, np.ndarray], robot: int, batched: bool) -> str:
        if isinstance(obs, Exception):
            return f"observation: {type(obs).__name__}: {obs}"[:300]
        if not isinstance(obs, Mapping):
            return f"observation: {type(obs).__name__}"
        for key, spec in self.spec.seen.items():
            if key not in obs:
                return f"{key}: missing"
            try:
                array = np.asarray(obs[key])
                if batched and (array.ndim == 0 or len(array) != self.robots):
                    return f"{key}: shape {list(array.shape)}; {self.robots} robots"
                fault = fault_of(key, spec, array[robot] if batched else array)
                if fault:
                    return fault
                out[key][robot] = array[robot] if batched else array
            except Exception as error:  # an object that only looks like an array
                return f"{key}: {type(error).__name__}"
        return ""

    def _stale(self, stamp: Any, robot: int, now: float) -> str:
        if self.max_age is None:
            return ""
        try:
            stamps = np.asarray(stamp, np.float64)
            taken = float(stamps if stamps.ndim == 0 else stamps[robot])
        except (TypeError, ValueError, IndexError):
            return "time stamp: missing"
        if not np.isfinite(taken):
            return "time stamp: missing"
        if taken > now + self.max_age:
            ahead = 1e3 * (taken - now)
            return f"time stamp: {ahead:.1f} ms in the future; its clock is time.monotonic()"
        if taken <= self._newest[robot]:
            return "time stamp: the same observation again, or an older one"
        self._newest[robot] = taken
        age = now - taken
        return f"time stamp: {1e3 * age:.1f} ms old" if age > self.max_age else ""


def fault_of(key: str, spec: ObsSpec, array: np.ndarray) -> str:
    """What is wrong with one robot's value of a key, or ""."""
    if array.shape != spec.shape:
        return f"{key}: shape {list(array.shape)}; {list(spec.shape)} needed"
    fault = spec.fault(array)
    return f"{key}: {fault}" if fault else ""


def needed(spec: EnvSpec) -> str:
    """What an observation must hold, as text."""
    return ", ".join(
        f"{key} ({'uint8' if obs.kind == 'image' else 'float32'} {list(obs.shape)})"
        for key, obs in sorted(spec.seen.items())
    )


def flags(value: Any, robots: int) -> np.ndarray:
    """[B] bool from one flag, B of them, or None; what is neither counts as True for all, since a
    memory too many forgotten is the safer mistake."""
    if value is None:
        return np.zeros(robots, bool)
    try:
        return np.array(np.broadcast_to(np.asarray(value, bool), (robots,)))
    except (TypeError, ValueError, OverflowError):
        return np.ones(robots, bool)


def floats(
    value: Any, default: np.ndarray, usable: Callable[[np.ndarray], Any] | None = None
) -> np.ndarray:
    """Numbers in the shape of a default, which stays where they do not fit or are not usable."""
    if value is None:
        return default
    try:
        given = np.broadcast_to(np.asarray(value, default.dtype), default.shape)
    except (TypeError, ValueError, OverflowError):
        return default
    return given.copy() if usable is None else np.where(usable(given), given, default)
