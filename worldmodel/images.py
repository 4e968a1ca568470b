"""What an array of an observation is: a picture, a grid of symbols or a vector; the one rule, for
environments and for recordings.

    shape                                      layout            becomes
    [H, W]                                     HW                [H, W, 1]
    [H, W, C], [C, H, W]                       HWC, CHW          [H, W, C]
    [S, H, W, C], [S, C, H, W], [H, W, C, S]   SHWC, SCHW, HWCS  [H, W, S * C], stacked frames
    [T, S, H, W, C], [T, S, C, H, W]           TSHWC, TSCHW      [H, W, T * S * C], stacks of those

Both sides of a picture are SMALLEST or more. Of three axes the channels are the one that differs
from two equal ones, else the one with 1, 3 or 4 entries, else the one far smaller than both others.
Where that does not decide, or nobody knows which values are black and white, the answer is UNCLEAR:
whoever calls must ask.

A range of whole numbers far below that of bytes (a board of zeros and ones, kinds of things) is
SYMBOLS, whose neighbours say nothing about each other; no picture is made of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

SMALLEST = 8  # entries of the shorter side of a picture; 7x7 symbols, say, are none
USUAL = (1, 3, 4)  # channels of one frame
FAR = 3  # times smaller: then an axis of channels is told from a side
SYMBOLS_BELOW = 64  # different whole numbers: fewer are symbols, not brightness
UNBOUNDED = 1e9  # a bound beyond is none
LARGEST_ACTION = 1e18  # the same of an action: dm_control writes 1e10 for some motors
FAINT = 4  # levels of 256: a picture has more
SLACK = 1e-3  # of the range: how far float rounding may leave it

IMAGE, SYMBOLS, VECTOR, UNCLEAR = "image", "symbols", "vector", "unclear"
CHANNELS = {"channels_first": "CHW", "channels_last": "HWC"}
# What a setting may say: a picture (and where its channels are), numbers, or classes.
ASKED = ("image", *CHANNELS, "vector", "one_hot")


@dataclass(frozen=True)
class Form:
    """How one array is read. layout: of a picture, a letter an axis. low, high: what becomes 0 and
    255 in a picture; smallest and largest symbol. why: what is unclear."""

    kind: str
    layout: str = ""
    low: Any = 0
    high: Any = 255
    why: str = ""

    def size(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(H, W, C) of a picture that comes in that shape."""
        height, width = (shape[self.layout.index(side)] for side in "HW")
        return height, width, math.prod(shape) // (height * width)

    def read(self, value: np.ndarray) -> np.ndarray:
        """Pictures [..., *shape] as bytes [..., H, W, C], or [..., H, W] where that is how they
        come; a view where nothing is to be done. Raises ValueError for values out of range."""
        if value.dtype != np.uint8 or self.scaled:
            value = self._bytes(value)
        if self.layout in ("HW", "HWC"):
            return value
        lead = value.ndim - len(self.layout)
        rest = [axis for axis in "TSC" if axis in self.layout]  # frame by frame
        order = [lead + self.layout.index(axis) for axis in ("H", "W", *rest)]
        value = value.transpose(*range(lead), *order)
        return value.reshape(*value.shape[: lead + 2], math.prod(value.shape[lead + 2 :]))

    def is_faint(self, value: np.ndarray) -> bool:
        """Whether the values of real numbers or wide integers come to hardly any levels of a byte:
        then their range is another than this one."""
        if value.dtype == np.uint8 or not value.size:
            return False
        width = float(np.max(self.high)) - float(np.min(self.low))
        return 0 < float(value.max()) - float(value.min()) < FAINT / 255 * width

    @property
    def scaled(self) -> bool:
        """Whether values change on the way to bytes."""
        return not (np.all(self.low == 0) and np.all(self.high == 255))

    def _bytes(self, value: np.ndarray) -> np.ndarray:
        numbers = value.astype(np.float32)
        width = np.asarray(self.high, np.float32) - np.asarray(self.low, np.float32)
        shares = (numbers - np.asarray(self.low, np.float32)) / np.where(width > 0, width, 1)
        if shares.size and not (shares.min() >= -SLACK and shares.max() <= 1 + SLACK):
            low, high = np.min(self.low), np.max(self.high)
            raise ValueError(
                f"goes from {numbers.min():g} to {numbers.max():g}, outside of its range "
                f"[{low:g}, {high:g}]"
            )
        out: np.ndarray = np.clip(np.rint(255 * shares), 0, 255).astype(np.uint8)
        return out


def study(
    shape: tuple[int, ...],
    dtype: Any,
    low: Any = -np.inf,
    high: Any = np.inf,
    asked: str = "",
    span: tuple[float, float] | None = None,
) -> Form:
    """What an array [*shape] of that dtype is, whose values lie within low and high (numbers, or
    arrays of the shape). asked: one of ASKED, where somebody says it. span: [black, white] of a
    picture, [smallest, largest] of symbols, where somebody says that."""
    layout, dtype = layout_of(shape), np.dtype(dtype)
    if span is not None:
        low, high = span
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    least, most = float(low.min(initial=np.inf)), float(high.max(initial=-np.inf))
    if asked in ("vector", "one_hot"):
        return Form(SYMBOLS, low=low, high=high)
    if asked in CHANNELS:
        layout = _with_channels(len(shape), CHANNELS[asked])
    if not layout and not asked:
        return Form(VECTOR)
    if not asked and dtype.kind in "biu" and most - least < SYMBOLS_BELOW:
        return Form(SYMBOLS, low=low, high=high)
    if layout in ("", "?"):
        return Form(UNCLEAR, why="which of its axes holds the channels")
    if dtype == np.uint8 and span is None and most - least >= SYMBOLS_BELOW:
        return Form(IMAGE, layout)
    if not (abs(least) <= UNBOUNDED and abs(most) <= UNBOUNDED and least < most):
        return Form(UNCLEAR, layout, why="which of its values are black and white")
    if np.all(low == least) and np.all(high == most):
        return Form(IMAGE, layout, least, most)
    return Form(IMAGE, layout, low, high)  # channels of their own ranges


def layout_of(shape: tuple[int, ...]) -> str:
    """The layout of a picture that comes in this shape, "" where it can be none, and "?" where it
    is not clear which axis holds the channels."""
    if len(shape) == 2:
        return "HW" if min(shape) >= SMALLEST else ""
    if len(shape) == 3:
        return _three(*shape)
    if len(shape) == 5 and shape[0]:
        inner = layout_of(shape[1:])
        return f"T{inner}" if inner[:1] == "S" else ""
    if len(shape) != 4 or 0 in shape:
        return ""
    inner = _three(*shape[1:])
    if inner:
        return inner if inner == "?" else f"S{inner}"
    inner = _three(*shape[:-1])
    return f"{inner}S" if inner == "HWC" else ""


def _three(a: int, b: int, c: int) -> str:
    """The layout of [a, b, c]."""
    first, last = min(b, c) >= SMALLEST, min(a, b) >= SMALLEST  # may a, may c be the channels?
    if not min(a, b, c) or not (first or last):
        return ""
    if first and (b == c != a or (a in USUAL and c not in USUAL)):
        return "CHW"
    if last and (a == b != c or (c in USUAL and a not in USUAL)):
        return "HWC"
    first, last = first and FAR * a <= min(b, c), last and FAR * c <= min(a, b)
    return "?" if first == last else "CHW" if first else "HWC"


def _with_channels(axes: int, frame: str) -> str:
    """The layout of so many axes whose frames are [C, H, W] or [H, W, C]."""
    return {2: "HW", 3: frame, 4: f"S{frame}", 5: f"TS{frame}"}.get(axes, "")
