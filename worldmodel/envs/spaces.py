"""From gymnasium spaces of any shape to a flat dict of images, vectors and one-hot values.

    native leaf                        kind       becomes
    Box of a picture                   image      uint8 [H', W', C]
    Box of few whole numbers           symbols    float32 [N], or one-hot side by side
    any other Box                      vector     float32 [N], flattened
    Discrete, MultiDiscrete,           discrete   float32 [N], one-hot factors side by side
        MultiBinary
    Text, Sequence, Graph, ...         unusable   an error, unless left out by `keys`

What a Box is, `worldmodel.images` decides, or the settings `kinds` and `ranges`. Without pixels,
an array whose sides are below SMALLEST_FRAME is no picture but symbols.

Nested names are joined with "_"; an observation that is not a dict is called "image" or "state".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from worldmodel import images
from worldmodel.images import Form

from .config import EnvConfig, EnvError, EnvUnclear

# The same word as in worldmodel.types, which this file does not import at run time: environment
# processes must start without torch.
MASK_KEY = "action_mask"
SMALLEST_FRAME = 32  # pixels of a side, at least; without pixels, what is smaller is symbols
SYMBOLS_BELOW = 32  # a small picture holds brighter pixels
MOST_SYMBOLS = 1 << 16  # entries of a one-hot grid
PLAIN = EnvConfig("none")


class OneHot(spaces.Box):
    """A Box of float32 [N] that remembers the number of classes of each factor in `sizes`."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__(0.0, 1.0, (int(sum(sizes)),), np.float32)
        self.sizes = tuple(int(n) for n in sizes)


class Recorded(spaces.Box):
    """A Box of float32 [N] for the replay alone; no model sees it."""

    def __init__(self, size: int) -> None:
        super().__init__(-np.inf, np.inf, (size,), np.float32)


@dataclass(frozen=True)
class Leaf:
    """One value inside a native observation: where it is, its flat name and its kind; the form of
    a Box, and what the settings say that it is. ranged: they say its range."""

    path: tuple[Any, ...]
    key: str
    kind: str
    space: Space[Any]
    form: Form = field(default_factory=lambda: Form(images.VECTOR), compare=False)
    asked: str = ""
    ranged: bool = False

    @property
    def label(self) -> str:
        """The name to use in messages."""
        return f"observation '{'/'.join(map(str, self.path))}'" if self.path else "observation"


def leaves(
    space: Space[Any], config: EnvConfig = PLAIN, path: tuple[Any, ...] = ()
) -> Iterator[Leaf]:
    """Every value inside a space, depth first, as the settings have it read. Raises EnvError where
    they ask for what cannot be."""
    if isinstance(space, spaces.Dict):
        for key, inner in space.spaces.items():
            yield from leaves(inner, config, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, inner in enumerate(space.spaces):
            yield from leaves(inner, config, (*path, index))
    else:
        yield _leaf(space, config, path)


def flat_name(path: Sequence[Any]) -> str:
    """The name of a nested observation: its keys joined with "_", and so are "." and "/"."""
    return "_".join(str(p) for p in path).replace(".", "_").replace("/", "_")


def _leaf(space: Space[Any], config: EnvConfig, path: tuple[Any, ...]) -> Leaf:
    key = MASK_KEY if MASK_KEY in path else flat_name(path)  # a mask may come in parts
    if not isinstance(space, spaces.Box):
        classes = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
        return Leaf(path, key or "state", "discrete" if isinstance(space, classes) else "unusable",
                    space)  # fmt: skip
    names = (key,) if key else ("image", "state")
    asked = next((config.kinds[name] for name in names if name in config.kinds), "")
    span = next((config.ranges[name] for name in names if name in config.ranges), None)
    low_high = None if span is None else (span[0], span[1])
    assert space.dtype is not None
    form = images.study(space.shape, space.dtype, space.low, space.high, asked, low_high)
    if not config.pixels and not asked and form.kind in (images.IMAGE, images.UNCLEAR):
        sides = form.size(space.shape)[:2] if form.layout else space.shape
        if min(sides) < SMALLEST_FRAME:
            form = images.study(space.shape, space.dtype, space.low, space.high, "vector", low_high)
    picture = form.kind == images.IMAGE or images.layout_of(space.shape)
    return Leaf(
        path,
        key or ("image" if picture else "state"),
        form.kind,
        space,
        form,
        asked,
        span is not None,
    )


def check_picture(leaf: Leaf, value: np.ndarray) -> bool:
    """Whether the first values of an array are those of a picture: False where one value alone says
    nothing yet. Raises EnvUnclear where small ones look like symbols, or hardly any of the range
    is used."""
    least, most = value.min(), value.max()
    small = min(leaf.form.size(leaf.space.shape or ())[:2]) < SMALLEST_FRAME
    if value.dtype == np.uint8 and small and not leaf.asked and least < most < SYMBOLS_BELOW:
        raise EnvUnclear(
            f"{leaf.label} is {list(value.shape)} bytes of [0, 255] by its space, but holds only "
            f"{least} to {most}: a dark picture or a grid of symbols? Say it: "
            f"env.kinds.{leaf.key}=image, vector or one_hot (and its largest symbol, as in "
            f"env.ranges.{leaf.key}=[0,{most}])."
        )
    if leaf.form.is_faint(value) and not leaf.ranged:
        low, high = np.min(leaf.form.low), np.max(leaf.form.high)
        raise EnvUnclear(
            f"{leaf.label} lies in [{low:g}, {high:g}] by its space, but holds only {least:g} to "
            f"{most:g}: a picture of one shade. Say what is black and what is white, "
            f"as in env.ranges.{leaf.key}=[0,{most:g}] (or [{low:g},{high:g}] where it is right)."
        )
    return bool(least < most)


def symbol_counts(leaf: Leaf) -> tuple[int, ...]:
    """Number of classes of each entry of a grid of symbols. Raises EnvError where that is not
    known, or more than can be."""
    assert leaf.space.shape is not None
    low, high = (np.asarray(x, np.float64) for x in (leaf.form.low, leaf.form.high))
    whole = leaf.space.dtype is not None and np.dtype(leaf.space.dtype).kind in "biu"
    if not whole or not np.isfinite([low.min(), high.max()]).all():
        raise EnvError(
            f"kinds asks for '{leaf.key}' as one_hot, but it is {leaf.space}, not whole numbers "
            f"between two bounds. Say env.kinds.{leaf.key}=vector."
        )
    counts = np.ravel(np.broadcast_to(high - low + 1, leaf.space.shape))
    if counts.sum() > MOST_SYMBOLS:
        raise EnvError(
            f"'{leaf.key}' as one_hot would have {counts.sum():,.0f} entries, "
            f"{counts.max():,.0f} for each of {len(counts):,} symbols; allowed: {MOST_SYMBOLS:,}. "
            f"Say the smallest and the largest symbol, as in env.ranges.{leaf.key}=[0,10], or "
            f"env.kinds.{leaf.key}=vector."
        )
    return tuple(int(n) for n in counts)


def class_counts(space: Space[Any]) -> tuple[int, ...]:
    """Number of classes of each factor of a Discrete, MultiDiscrete or MultiBinary space."""
    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(int(n) for n in np.ravel(space.nvec))
    assert isinstance(space, spaces.MultiBinary)
    return (2,) * math.prod(space.shape)


def check_structure(space: Space[Any], value: Any, path: str = "observation") -> None:
    """Raises EnvError unless the dicts and tuples of value have the keys that space declares."""
    if isinstance(space, spaces.Dict):
        if not isinstance(value, dict):
            raise EnvError(f"{path} must be a dict, but is a {type(value).__name__}.")
        if value.keys() != space.spaces.keys():
            raise EnvError(
                f"{path} has the keys {sorted(map(str, value))}, but the environment declares "
                f"{sorted(map(str, space.spaces))}. Make its observation_space say what it returns."
            )
        for key, inner in space.spaces.items():
            if isinstance(inner, (spaces.Dict, spaces.Tuple)):
                check_structure(inner, value[key], f"{path} '{key}'")
    elif isinstance(space, spaces.Tuple):
        if not isinstance(value, (tuple, list)) or len(value) != len(space.spaces):
            raise EnvError(f"{path} must be a tuple of {len(space.spaces)} values, not {value!r}.")
        for index, inner in enumerate(space.spaces):
            if isinstance(inner, (spaces.Dict, spaces.Tuple)):
                check_structure(inner, value[index], f"{path} {index}")


def read_array(leaf: Leaf, value: Any) -> np.ndarray:
    """The value of a Box leaf after its checks, as it came.

    Raises EnvError for a wrong shape, a dtype that does not fit or a number that is not finite.
    """
    array = np.asarray(value)
    assert leaf.space.dtype is not None
    if array.shape != leaf.space.shape:
        raise EnvError(
            f"{leaf.label} has shape {list(array.shape)}, but the environment declares "
            f"{list(leaf.space.shape or ())}. Make its observation_space say what it returns."
        )
    if array.dtype != leaf.space.dtype and not np.can_cast(
        array.dtype, leaf.space.dtype, "same_kind"
    ):
        raise EnvError(
            f"{leaf.label} has dtype {array.dtype}, but the environment declares "
            f"{leaf.space.dtype}. Make its observation_space say what it returns."
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        where = np.argwhere(~np.isfinite(array))[0].tolist()
        raise EnvError(
            f"{leaf.label} is not finite: {array[tuple(where)]} at index {where}. Every entry must "
            f"be a finite number; look for a division by zero or an unstable simulation."
        )
    return array


def read_one_hot(leaf: Leaf, sizes: tuple[int, ...], value: Any) -> np.ndarray:
    """float32 [sum(sizes)] of a Discrete, MultiDiscrete or MultiBinary leaf.

    Raises EnvError for a wrong number of factors and for a class outside of its factor.
    """
    index = np.asarray(value)
    shape = leaf.space.shape or ()
    if index.shape != shape or index.dtype.kind not in "iub":
        raise EnvError(
            f"{leaf.label} must be whole numbers of shape {list(shape)} ({leaf.space}), but is "
            f"{index.dtype} {list(index.shape)}: {value!r}."
        )
    flat = np.ravel(index.astype(np.int64) - getattr(leaf.space, "start", 0))
    if (flat < 0).any() or (flat >= sizes).any():
        raise EnvError(f"{leaf.label} is {value!r}, which lies outside of {leaf.space}.")
    return _one_hot(flat, sizes)


def read_symbols(leaf: Leaf, sizes: tuple[int, ...], value: Any) -> np.ndarray:
    """float32 [sum(sizes)] of a grid of symbols. Raises EnvError for one that is not known."""
    flat = np.ravel(read_array(leaf, value).astype(np.int64) - np.asarray(leaf.form.low, np.int64))
    if (flat < 0).any() or (flat >= sizes).any():
        worst = np.flatnonzero((flat < 0) | (flat >= sizes))[0]
        raise EnvError(
            f"{leaf.label} holds the symbol {np.ravel(value)[worst]}, outside of "
            f"[{np.min(leaf.form.low)}, {np.max(leaf.form.high)}]. Say env.ranges.{leaf.key}=[...]."
        )
    return _one_hot(flat, sizes)


def _one_hot(index: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    out = np.zeros(sum(sizes), np.float32)
    out[index + np.concatenate([[0], np.cumsum(sizes)[:-1]])] = 1.0
    return out
