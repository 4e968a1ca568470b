"""What was recorded, as a model takes it: images uint8 [H, W, C], vectors float32 [N], one-hot
classes, actions in [-1, 1] or one-hot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import spaces

from worldmodel.replay.datasets.align import DatasetError, flat
from worldmodel.types import MASK_KEY, ActionSpec, ObsSpec

SLACK = 1e-3  # of the range: how far float rounding may carry an action over its edge


@dataclass
class ActionReader:
    """Native actions [T, ...] -> encoded float32 [T, A], and what was found on the way.

    space: the native action space of the environment or the dataset, or None; bounds: [low, high]
    to use instead of its own. `study` sees all episodes first; then `spec` is known.
    """

    space: Any = None
    bounds: tuple[float, float] | None = None
    whole: bool | None = None  # whether actions are whole numbers
    width: tuple[int, ...] = ()
    low: np.ndarray = field(default_factory=lambda: np.zeros(0))
    high: np.ndarray = field(default_factory=lambda: np.zeros(0))
    spec: ActionSpec | None = None

    def study(self, where: str, action: np.ndarray) -> None:
        """Note one episode's actions; DatasetError where they are of another kind."""
        whole = action.dtype.kind in "iub"
        if not whole and action.dtype.kind != "f":
            raise DatasetError(f"{where}: actions are {action.dtype}, not numbers.")
        if not np.isfinite(action).all():
            t = int(np.argwhere(~np.isfinite(action))[0][0])
            raise DatasetError(f"{where}: the action of step {t} is not finite: {action[t]}.")
        width = (math.prod(action.shape[1:]),)
        if self.whole is None:
            self.whole, self.width = whole, width
            self.low, self.high = (np.full(width, x) for x in (np.inf, -np.inf))
        if (whole, width) != (self.whole, self.width):
            raise DatasetError(
                f"{where}: actions are {action.dtype} [T, {width[0]}], those before "
                f"{'whole' if self.whole else 'real'} numbers [T, {self.width[0]}]."
            )
        if len(action):
            numbers = flat(action).astype(np.float64)
            self.low = np.minimum(self.low, numbers.min(0))
            self.high = np.maximum(self.high, numbers.max(0))

    def settle(self) -> list[str]:
        """Decide how actions are read; returns what to tell. Raises DatasetError where they do
        not fit the space, or nobody knows their range."""
        if not self.width:
            raise DatasetError("The recording holds no episode with a step in it.")
        size = self.width[0]
        if isinstance(self.space, spaces.Box) or (self.space is None and not self.whole):
            return self._continuous(size)
        if self.space is None and (self.low < 0).any():
            raise DatasetError(
                f"The recorded actions are whole numbers from {_short(self.low)}, but classes "
                "count from 0. Name the environment of the recording (env=... env.id=...)."
            )
        if self.space is None:
            self.space = spaces.MultiDiscrete(self.high.astype(np.int64) + 1)
        self.counts = _classes(self.space)
        start = np.ravel(getattr(self.space, "start", 0))
        hot = size == sum(self.counts) and len(self.counts) != size
        if not hot and (not self.whole or size != len(self.counts)):
            raise self._other(f"{size} {'whole' if self.whole else 'real'} numbers")
        self.hot, self.start = hot, start
        top = np.ones(size) if hot else np.asarray(self.counts) - 1
        shift = 0 if hot else start
        if (self.low < shift).any() or (self.high > top + shift).any():
            raise self._other(f"from {_short(self.low)} to {_short(self.high)}")
        self.spec = ActionSpec("discrete", self.counts)
        return [f"actions: discrete, {' x '.join(map(str, self.counts))}"]

    def _continuous(self, size: int) -> list[str]:
        found = f"actions: {size} continuous, from {_short(self.low)} to {_short(self.high)}"
        low, high = (np.full(size, x, np.float64) for x in (-1.0, 1.0))
        if self.space is not None:
            low, high = (np.ravel(x).astype(np.float64) for x in (self.space.low, self.space.high))
            if len(low) != size or (self.whole and not self.bounds):
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
        if not np.isfinite(low).all() or not np.isfinite(high).all():
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


def guess(value: np.ndarray) -> ObsSpec:
    """What an observation [T, ...] without a declared space must be: a picture or a vector."""
    shape = value.shape[1:]
    picture = len(shape) == 3 or (len(shape) == 2 and value.dtype == np.uint8)
    if picture and min(_hwc(shape)[:2]) >= 8:
        return ObsSpec("image", _hwc(shape))
    return ObsSpec("vector", (math.prod(shape),))


def read_obs(where: str, key: str, value: np.ndarray, spec: ObsSpec) -> np.ndarray:
    """An observation [T, ...] in the form of its spec; DatasetError where that cannot be."""
    if value.dtype.kind not in "biuf":
        raise DatasetError(f"{where}: '{key}' is {value.dtype}, not numbers.")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        t = int(np.argwhere(~np.isfinite(value))[0][0])
        raise DatasetError(f"{where}: '{key}' is not finite at row {t}.")
    if spec.kind == "image":
        return _image(where, key, value, spec.shape)
    numbers = flat(value)
    if (
        spec.kind == "discrete"
        and numbers.shape[1] == len(spec.sizes)
        and value.dtype.kind in "iub"
    ):
        return ActionSpec("discrete", spec.sizes).encode(
            numbers[:, 0] if len(spec.sizes) == 1 else numbers
        )
    if numbers.shape[1:] != spec.shape:
        raise DatasetError(
            f"{where}: '{key}' has {numbers.shape[1]} numbers, but {list(spec.shape)} are needed "
            f"({'the mask of actions' if key == MASK_KEY else spec.kind})."
        )
    return numbers.astype(np.float32)


def _image(where: str, key: str, value: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """uint8 [T, H, W, C], resized to the shape by area."""
    if value.ndim not in (3, 4):
        raise DatasetError(
            f"{where}: '{key}' is {list(value.shape)}; pictures are [T, H, W, C], [T, C, H, W] or "
            "[T, H, W]."
        )
    height, width, channels = _hwc(value.shape[1:])
    if value.ndim == 4 and (height, width, channels) != value.shape[1:]:
        value = value.transpose(0, 2, 3, 1)
    value = value.reshape(len(value), height, width, channels)
    if value.dtype.kind == "f":
        if value.size and (value.min() < 0 or value.max() > 255):
            raise DatasetError(
                f"{where}: the pictures '{key}' go from {value.min():g} to {value.max():g}; as "
                "real numbers they must lie in [0, 1] or [0, 255]."
            )
        value = np.rint(value * (255 if value.size and value.max() <= 1 else 1)).astype(np.uint8)
    if value.dtype != np.uint8:
        raise DatasetError(f"{where}: the pictures '{key}' are {value.dtype}, not uint8.")
    if channels != shape[2]:
        raise DatasetError(
            f"{where}: the pictures '{key}' have {channels} channels; {shape[2]} are needed."
        )
    if (height, width) == tuple(shape[:2]):
        return value
    import cv2

    size = (shape[1], shape[0])
    resized = [cv2.resize(one, size, interpolation=cv2.INTER_AREA) for one in value]
    return np.stack(resized).reshape(len(value), *shape)


def _hwc(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(H, W, C) of a picture that may come as [H, W] or [C, H, W]."""
    if len(shape) == 2:
        return (*shape, 1)
    if shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        return shape[1], shape[2], shape[0]
    return shape  # type: ignore[return-value]


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
