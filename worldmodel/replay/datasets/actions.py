"""Recorded actions as a model takes them: in [-1, 1] or one-hot."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import spaces

from worldmodel.images import LARGEST_ACTION
from worldmodel.replay.datasets.recording import DatasetError, flat, is_hot
from worldmodel.types import ActionSpec

SLACK = 1e-3  # of the range: how far float rounding may carry an action over its edge


@dataclass
class ActionReader:
    """Native actions [T, ...] -> encoded float32 [T, A], and what was found on the way.

    space: the native action space of the environment or the dataset, or None; bounds: [low, high]
    to use instead of its own; asked: one of ACTIONS. `study` sees all episodes first; then `spec`
    is known.
    """

    space: Any = None
    bounds: tuple[float, float] | None = None
    asked: str = "auto"
    width: tuple[int, ...] = ()
    kind: str = ""  # of the dtype, integers and flags being one: i, f
    whole: bool = True  # whether all actions are whole numbers
    one_hot: bool = True  # whether each has a single one among zeros
    low: np.ndarray = field(default_factory=lambda: np.zeros(0))
    high: np.ndarray = field(default_factory=lambda: np.zeros(0))
    spec: ActionSpec | None = None

    def study(self, where: str, action: np.ndarray) -> None:
        """Note one episode's actions; DatasetError where they are of another kind."""
        kind = "i" if action.dtype.kind in "iub" else action.dtype.kind
        if kind not in "if":
            raise DatasetError(f"{where}: actions are {action.dtype}, not numbers.")
        if not np.isfinite(action).all():
            t = int(np.argwhere(~np.isfinite(action))[0][0])
            raise DatasetError(f"{where}: the action of step {t} is not finite: {action[t]}.")
        width = (math.prod(action.shape[1:]),)
        if not self.kind:
            self.kind, self.width = kind, width
            self.low, self.high = (np.full(width, x) for x in (np.inf, -np.inf))
        if (kind, width) != (self.kind, self.width):
            raise DatasetError(
                f"{where}: actions are {action.dtype} [T, {width[0]}], those before "
                f"{'whole' if self.kind == 'i' else 'real'} numbers [T, {self.width[0]}]."
            )
        if len(action):
            numbers = flat(action).astype(np.float64)
            self.low = np.minimum(self.low, numbers.min(0))
            self.high = np.maximum(self.high, numbers.max(0))
            self.whole &= bool((numbers == np.rint(numbers)).all())
            self.one_hot &= is_hot(numbers) and bool(numbers.sum(1).all())

    def settle(self) -> list[str]:
        """Decide how actions are read; returns what to say of it. Raises DatasetError where they
        do not fit the space, or nobody knows their range."""
        if not self.width:
            raise DatasetError("The recording holds no episode with a step in it.")
        size = self.width[0]
        if self._numbers():
            return self._continuous(size)
        several = self.one_hot and (self.low < self.high).sum() > 1  # more than one class occurs
        hot = self.asked == "one_hot"
        if self.space is None and self.asked == "auto" and several:
            hot = True
        if self.space is None:
            if (self.low < 0).any() or not self.whole:
                raise DatasetError(
                    f"The recorded actions go from {_short(self.low)} to {_short(self.high)}, but "
                    "classes are whole numbers that count from 0. Name the environment of the "
                    "recording (env=... env.id=...)."
                )
            counts = self.high.astype(np.int64) + 1
            one = hot and size > 1
            self.space = spaces.Discrete(size) if one else spaces.MultiDiscrete(counts)
        self.counts = _classes(self.space)
        self.start = np.ravel(getattr(self.space, "start", 0))
        fits_hot = size == sum(self.counts) and len(self.counts) != size
        self.hot = fits_hot
        if not fits_hot and (not self.whole or size != len(self.counts)):
            raise self._other(f"{size} {'whole' if self.whole else 'real'} numbers")
        if self.hot and len(self.counts) == 1 and not self.one_hot:
            raise self._other(f"{size} numbers that are not one-hot")
        top = np.ones(size) if self.hot else np.asarray(self.counts) - 1
        shift = 0 if self.hot else self.start
        if (self.low < shift).any() or (self.high > top + shift).any():
            raise self._other(f"from {_short(self.low)} to {_short(self.high)}")
        self.spec = ActionSpec("discrete", self.counts)
        found = f"discrete, {' x '.join(map(str, self.counts))}"
        if self.hot:
            return [f"{found}, recorded one-hot"]
        return [f"{found}, recorded from {_short(self.low)} to {_short(self.high)}"]

    def _numbers(self) -> bool:
        """Whether actions are amounts, not classes. Raises DatasetError where that is not clear."""
        if self.space is not None:
            return isinstance(self.space, spaces.Box)
        if self.asked != "auto":
            return self.asked == "continuous"
        if self.kind == "i" or self.bounds is not None:
            return self.kind != "i" or self.bounds is not None
        several = (self.low < self.high).any()
        if self.one_hot and several:
            return False
        if self.one_hot or (self.whole and several and (self.low >= 0).all()):
            raise DatasetError(
                f"The recorded actions are real numbers, but whole ones from {_short(self.low)} to "
                f"{_short(self.high)}: classes or amounts? Say it: offline_actions=discrete, "
                "one_hot or continuous."
            )
        return True

    def _continuous(self, size: int) -> list[str]:
        found = f"{size} continuous, from {_short(self.low)} to {_short(self.high)}"
        low, high = (np.full(size, x, np.float64) for x in (-1.0, 1.0))
        if self.space is not None:
            low, high = (np.ravel(x).astype(np.float64) for x in (self.space.low, self.space.high))
            if len(low) != size or (self.kind == "i" and not self.bounds):
                raise self._other(f"{size} {'whole' if self.whole else 'real'} numbers")
        notes = []
        if self.bounds is not None:
            low, high = (np.full(size, x, np.float64) for x in self.bounds)
            notes.append("as offline_action_range says")
        elif self.space is None:
            notes.append("taken as they are")
        elif (self.low >= -1).all() and (self.high <= 1).all() and (high > 1.5).any():
            notes.append(
                "the environment takes more: should they be normalised already, give "
                "offline_action_range=[-1,1]"
            )
        slack = SLACK * (high - low)
        if (np.abs([low, high]) > LARGEST_ACTION).any():
            raise DatasetError(
                f"The actions have no finite range: {self.space}. Give it: "
                "offline_action_range=[low,high]."
            )
        if (self.low < low - slack).any() or (self.high > high + slack).any():
            if self.space is None and self.bounds is None:
                raise DatasetError(
                    f"The actions go from {_short(self.low)} to {_short(self.high)}, and nobody "
                    "says how far they could: name the environment (env=... env.id=...), or give "
                    "offline_action_range=[low,high]."
                )
            raise self._other(f"from {_short(self.low)} to {_short(self.high)}", low, high)
        self.middle, self.half = (low + high) / 2, (high - low) / 2
        self.spec = ActionSpec("continuous", (size,))
        span = f"[{_short(low)}, {_short(high)}] -> [-1, 1]"
        return [", ".join([found, span, *notes])]

    def _other(self, given: str, low: Any = None, high: Any = None) -> DatasetError:
        allowed = f"{self.space}" if low is None else f"{_short(low)} to {_short(high)}"
        return DatasetError(
            f"The recorded actions are {given}, but the action space is {allowed}. Name the "
            "environment of the recording, or give offline_action_range=[low,high]."
        )

    def read(self, action: np.ndarray) -> np.ndarray:
        """Encoded actions float32 [T, A]."""
        assert self.spec is not None
        numbers = flat(action)
        if self.spec.kind == "continuous":
            scaled = (numbers.astype(np.float64) - self.middle) / self.half
            return np.clip(scaled, -1, 1).astype(np.float32)
        if self.hot:
            return numbers.astype(np.float32)
        index = numbers.astype(np.int64) - self.start
        return self.spec.encode(index[:, 0] if len(self.counts) == 1 else index)


def _classes(space: Any) -> tuple[int, ...]:
    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(int(n) for n in np.ravel(space.nvec))
    if isinstance(space, spaces.MultiBinary):
        return (2,) * math.prod(space.shape)
    raise DatasetError(f"The action space {space} is not supported.")


def _short(values: Any) -> str:
    """One number where all are alike."""
    flat = np.ravel(values)
    if len(flat) and np.ptp(flat) == 0:
        return f"{flat[0]:.4g}"
    return "[" + ", ".join(f"{x:.4g}" for x in flat) + "]"
