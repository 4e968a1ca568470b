"""What arrived from the sensors, before anybody believes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from worldmodel.types import EnvSpec, ObsSpec


class Checked(NamedTuple):
    """Observations [B, ...] by key, zeros where they were refused; and why, "" where not."""

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
        self.spec, self.robots, self.max_age = spec.seen, robots, max_age
        self._newest = np.full(robots, -np.inf)

    def __call__(self, obs: Any, stamp: Any = None, now: float = 0.0) -> Checked:
        """obs: [B, ...] by key, or a sequence of B observations (None, or the error, where one
        failed); copied, because a camera may write on while the policy reads. stamp: when each
        was taken, [B] or one for all, in seconds of the clock that tells `now`."""
        out = {
            key: np.zeros((self.robots, *spec.shape), np.uint8 if spec.kind == "image" else "f4")
            for key, spec in self.spec.items()
        }
        faults = [""] * self.robots
        whole = isinstance(obs, Mapping)
        if not whole and (not isinstance(obs, Sequence) or len(obs) != self.robots):
            given = f"{len(obs)} of them" if isinstance(obs, Sequence) else type(obs).__name__
            return Checked(out, [f"observation: {given}; {self.robots} needed"] * self.robots)
        for robot in range(self.robots):
            faults[robot] = self._copy(obs if whole else obs[robot], out, robot, whole)
            faults[robot] = faults[robot] or self._stale(stamp, robot, now)
        for robot, fault in enumerate(faults):
            if fault:
                for array in out.values():
                    array[robot] = 0
        return Checked(out, faults)

    def _copy(self, obs: Any, out: dict[str, np.ndarray], robot: int, whole: bool) -> str:
        if isinstance(obs, Exception):
            return f"observation: {type(obs).__name__}: {obs}"[:300]
        if not isinstance(obs, Mapping):
            return f"observation: {type(obs).__name__}"
        for key, spec in self.spec.items():
            if key not in obs:
                return f"{key}: missing"
            try:
                array = np.asarray(obs[key])
                if whole and (array.ndim == 0 or len(array) != self.robots):
                    return f"{key}: shape {list(array.shape)}; {self.robots} robots"
                fault = fault_of(key, spec, array[robot] if whole else array)
                if fault:
                    return fault
                out[key][robot] = array[robot] if whole else array
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
            return f"time stamp: {1e3 * (taken - now):.1f} ms in the future"
        if taken <= self._newest[robot]:
            return "time stamp: the same observation again, or an older one"
        self._newest[robot] = taken
        age = now - taken
        return f"time stamp: {1e3 * age:.1f} ms old" if age > self.max_age else ""


def fault_of(key: str, spec: ObsSpec, array: np.ndarray) -> str:
    """What is wrong with one robot's value of a key, or ""."""
    if array.shape != spec.shape:
        return f"{key}: shape {list(array.shape)}; {list(spec.shape)} needed"
    if spec.kind == "image":
        return "" if array.dtype == np.uint8 else f"{key}: type {array.dtype}; uint8 needed"
    if array.dtype.kind not in "fiub":
        return f"{key}: type {array.dtype}; numbers needed"
    # float64 beyond float32 would become infinite behind the check.
    with np.errstate(over="ignore"):
        return "" if np.isfinite(array.astype(np.float32)).all() else f"{key}: not finite"
