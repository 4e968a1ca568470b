"""Recorded observations as a model takes them: images uint8 [H, W, C], vectors float32 [N], one-hot
classes. What is a picture, and what of its values is black and white, `worldmodel.images` decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import spaces

from worldmodel import images
from worldmodel.envs.config import EnvConfig
from worldmodel.envs.spaces import class_counts, leaves, symbol_counts
from worldmodel.images import Form
from worldmodel.replay.datasets.recording import DatasetError, flat
from worldmodel.types import MASK_KEY, ActionSpec, ObsSpec

SMALL = 32  # pixels of a side; below, bytes of a small range are symbols, not brightness
# Ranges in which pictures of real numbers come, from the narrowest.
SCALES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))


@dataclass
class ObsReader:
    """One observation of a recording: what all its episodes hold, how it is read, and as what.

    asked: one of images.ASKED, where somebody says what it is; span: [black, white]. declared,
    start, known: the classes, the first of them, and the shape and form of pictures, where the
    dataset or the environment says that. crop, gray: what the settings do to pictures, as to those
    of an environment. `study` sees every episode; then `settle` decides.
    """

    key: str
    asked: str = ""
    span: tuple[float, float] | None = None
    declared: ObsSpec | None = None
    start: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    known: tuple[tuple[int, ...], Form] | None = None
    crop: Sequence[int] | None = None
    gray: bool = False
    dtype: np.dtype | None = None
    shape: tuple[int, ...] = ()
    low: float = math.inf
    high: float = -math.inf
    form: Form = field(default_factory=lambda: Form(images.VECTOR))
    spec: ObsSpec | None = None

    def study(self, where: str, value: Any) -> None:
        """Note one episode's values [T, ...]; DatasetError where they are of another kind."""
        if self.dtype is None:
            self.dtype, self.shape = value.dtype, value.shape[1:]
        if value.dtype.kind not in "biuf":
            raise DatasetError(f"{where}: '{self.key}' is {value.dtype}, not numbers.")
        if value.shape[1:] != self.shape:
            raise DatasetError(
                f"{where}: '{self.key}' is {list(value.shape[1:])} in each row, and "
                f"{list(self.shape)} in the episodes before."
            )
        if isinstance(value, np.ndarray) and value.size:
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                t = int(np.argwhere(~np.isfinite(value))[0][0])
                raise DatasetError(f"{where}: '{self.key}' is not finite at row {t}.")
            if math.prod(self.shape) > 1:  # of a picture, perhaps
                self.low = min(self.low, float(value.min()))
                self.high = max(self.high, float(value.max()))

    def settle(self, wanted: ObsSpec | None, size: tuple[int, int] | None) -> ObsSpec:
        """Decide what it is: what is wanted, what is declared, or what its values say. size:
        [H, W] of pictures, else their own. Raises DatasetError where that is not clear."""
        spec = wanted or self.declared
        if spec is None or spec.kind == "image":
            self.form = self._form(spec)
            seen = np.array([self.low, self.high])
            whole = self.dtype == np.uint8 or self.form.kind != images.IMAGE
            if not whole and self.span is None and self.form.is_faint(seen):
                raise self._unclear("which of its values are black and white: they look faint")
        if spec is None:
            spec = ObsSpec("vector", (math.prod(self.shape),))
            if self.form.kind == images.IMAGE:
                height, width, channels = self.form.size(self.shape)
                top, bottom, left, right = self.crop or (0, 0, 0, 0)
                size = size or (max(1, height - top - bottom), max(1, width - left - right))
                channels = 1 if self.gray and channels == 3 else channels
                spec = ObsSpec("image", (*size, channels))
            elif self.asked == "one_hot":
                count = int(self.high - self.low) + 1 if math.prod(self.shape) > 1 else 0
                if not 1 < count <= images.SYMBOLS_BELOW:
                    raise self._unclear("how many symbols there are")
                self.start = np.full(math.prod(self.shape), int(self.low))
                sizes = (count,) * math.prod(self.shape)
                spec = ObsSpec("discrete", (sum(sizes),), sizes)
        self.spec = spec
        return spec

    def _form(self, spec: ObsSpec | None) -> Form:
        """How pictures are read. Undeclared bytes are brightness from 0 to 255, but for small
        grids of small numbers; real numbers have one scale in the whole recording."""
        assert self.dtype is not None
        low, high = -math.inf, math.inf
        if self.known is not None:
            if self.known[0] == self.shape:
                return self.known[1]
            form = self.known[1]  # of the same pictures before they were resized
            low, high = float(np.min(form.low)), float(np.max(form.high))
        elif self.span is None:
            grid = len(self.shape) > 1 and min(sorted(self.shape)[-2:]) < SMALL
            if self.dtype == np.uint8 and not (grid and self.high < images.SYMBOLS_BELOW):
                low, high = 0, 255
            elif self.dtype.kind in "ub" and grid and self.high < images.SYMBOLS_BELOW:
                low, high = 0, max(1.0, self.high)
            elif self.dtype.kind == "f":
                inside = [s for s in SCALES if s[0] <= self.low and self.high <= s[1]]
                low, high = inside[0] if inside else (low, high)
        asked = self.asked
        if spec is not None and asked not in images.CHANNELS and images.layout_of(self.shape):
            asked = "image"
        form = images.study(self.shape, self.dtype, low, high, asked, self.span)
        if form.kind == images.UNCLEAR:
            raise self._unclear(form.why)
        if spec is not None and form.kind != images.IMAGE:
            raise DatasetError(
                f"'{self.key}' is {self.dtype} {list(self.shape)} in each row, but a picture is "
                f"needed. Say what it is: env.kinds={{{self.key}: channels_last}}."
            )
        return form

    def _unclear(self, what: str) -> DatasetError:
        return DatasetError(
            f"The pictures '{self.key}' are {self.dtype} {list(self.shape)}, from {self.low:g} to "
            f"{self.high:g}, and it is not clear {what}. Say it: env.ranges={{{self.key}: [BLACK, "
            f"WHITE]}}, env.kinds={{{self.key}: channels_first}} or channels_last, vector, "
            "one_hot; or leave it out with env.keys."
        )

    def describe(self) -> str:
        """What was found, for people."""
        assert self.spec is not None
        came = f"{self.dtype} {' x '.join(map(str, self.shape))}".strip()
        if self.spec.kind != "image":
            return f"{self.key} ({self.spec.kind} of {self.spec.shape[0]}, from {came})"
        scale = f", {np.min(self.form.low):g} is black and {np.max(self.form.high):g} white"
        form = " x ".join(map(str, self.spec.shape))
        done = [f"cropped by {list(self.crop)}"] if self.crop else []
        done += ["in grey"] if self.gray and self.form.size(self.shape)[2] == 3 else []
        if done and self.form.size(self.shape) == self.spec.shape:
            done = [f"{' and '.join(done)} already, by its size"]
        return (
            f"{self.key} (image {form}, from {came}{scale if self.form.scaled else ''}"
            f"{''.join(f', {what}' for what in done)})"
        )

    def read(self, where: str, value: Any) -> np.ndarray:
        """The values [T, ...] of one episode in the form of the spec."""
        assert self.spec is not None
        if self.spec.kind == "image":
            return self._images(where, np.asarray(value), self.spec.shape)
        numbers = flat(np.asarray(value))
        sizes = self.spec.sizes
        if sizes and numbers.shape[1] == len(sizes) and _are_integers(numbers):
            index = numbers.astype(np.int64) - self.start
            if (index < 0).any() or (index >= sizes).any():
                raise DatasetError(
                    f"{where}: '{self.key}' goes from {numbers.min():g} to {numbers.max():g}, but "
                    f"has {list(sizes)} classes from {np.ravel(self.start).tolist()} on."
                )
            return ActionSpec("discrete", sizes).encode(index[:, 0] if len(sizes) == 1 else index)
        if numbers.shape[1:] != self.spec.shape:
            raise DatasetError(
                f"{where}: '{self.key}' has {numbers.shape[1]} numbers, but "
                f"{list(self.spec.shape)} are needed "
                f"({'the mask of actions' if self.key == MASK_KEY else self.spec.kind})."
            )
        return numbers.astype(np.float32)

    def _images(self, where: str, value: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """uint8 [T, H, W, C], resized to the shape by area."""
        try:
            value = self.form.read(value)
        except ValueError as error:
            raise DatasetError(f"{where}: '{self.key}' {error}.") from error
        height, width = value.shape[1:3]
        value = value.reshape(len(value), height, width, -1)
        channels = value.shape[3]
        if value.shape[1:] == tuple(shape):
            return value
        gray = self.gray and channels == 3 and shape[2] == 1
        if channels != shape[2] and not gray:
            raise DatasetError(
                f"{where}: the pictures '{self.key}' have {channels} channels; {shape[2]} are "
                "needed."
            )
        from worldmodel.envs.observe import shape_picture  # and OpenCV

        size = (shape[0], shape[1])
        return np.stack([shape_picture(one, size, self.crop, gray) for one in value]).reshape(
            -1, *shape
        )


def declared(space: Any, config: EnvConfig, wanted: bool) -> dict[str, dict[str, Any]]:
    """What a space says of each observation, as arguments of ObsReader. wanted: an environment says
    what they become."""
    found: dict[str, dict[str, Any]] = {}
    for leaf in leaves(space, config) if space is not None else ():
        sizes: tuple[int, ...] = ()
        if leaf.kind == "discrete":
            sizes, low = class_counts(leaf.space), np.asarray(getattr(leaf.space, "start", 0))
        elif leaf.asked == "one_hot":
            sizes = symbol_counts(leaf)
            low = np.broadcast_to(leaf.form.low, leaf.space.shape or ())
        if sizes:
            spec = None if wanted else ObsSpec("discrete", (sum(sizes),), sizes)
            found[leaf.key] = {"declared": spec, "start": np.ravel(low).astype(np.int64)}
        elif isinstance(leaf.space, spaces.Box) and leaf.kind == images.IMAGE:
            found[leaf.key] = {"known": (leaf.space.shape, leaf.form)}
    return found


def _are_integers(numbers: np.ndarray) -> bool:
    return numbers.dtype.kind in "iub" or bool((numbers == np.rint(numbers)).all())
