"""From gymnasium spaces of any shape to a flat dict of images, vectors and one-hot values.

    native leaf                        kind       becomes
    Box uint8 [H, W, C], [C, H, W],    image      uint8 [H', W', C]
        [H, W], sides of 8 or more
    any other Box                      vector     float32 [N], flattened
    Discrete, MultiDiscrete,           discrete   float32 [N], one-hot factors side by side
        MultiBinary
    Text, Sequence, Graph, ...         -          an error, unless left out by `keys`

Nested names are joined with "_"; an observation that is not a dict is called "image" or "state".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from .config import EnvError

# The same word as in worldmodel.types, which this file does not import at run time: environment
# processes must start without torch.
MASK_KEY = "action_mask"
SMALLEST_IMAGE = 8  # a uint8 grid with shorter sides (7x7 symbols, say) is no picture


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
    """One value inside a native observation: where it is, its flat name and its kind."""

    path: tuple[Any, ...]
    key: str
    kind: str
    space: Space[Any]

    @property
    def label(self) -> str:
        """The name to use in messages."""
        return f"observation '{'/'.join(map(str, self.path))}'" if self.path else "observation"


def kind_of(space: Space[Any]) -> str:
    """image, vector, discrete or unusable."""
    if isinstance(space, spaces.Box):
        return "image" if image_layout(space) else "vector"
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        return "discrete"
    return "unusable"


def image_layout(space: spaces.Box) -> str:
    """HWC, CHW or HW for the Box of a picture, and "" for any other Box."""
    shape = space.shape
    if space.dtype != np.uint8 or len(shape) not in (2, 3):
        return ""
    layout = "HW" if len(shape) == 2 else "HWC"
    if len(shape) == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        layout = "CHW"
    sides = (shape[layout.index("H")], shape[layout.index("W")])
    return layout if min(sides) >= SMALLEST_IMAGE else ""


def leaves(space: Space[Any], path: tuple[Any, ...] = ()) -> Iterator[Leaf]:
    """Every value inside a space, depth first."""
    if isinstance(space, spaces.Dict):
        for key, inner in space.spaces.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, inner in enumerate(space.spaces):
            yield from leaves(inner, (*path, index))
    else:
        kind = kind_of(space)
        key = "_".join(str(p) for p in path).replace(".", "_").replace("/", "_")
        yield Leaf(path, key or ("image" if kind == "image" else "state"), kind, space)


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
    start = getattr(leaf.space, "start", 0)
    flat = np.ravel(index.astype(np.int64) - start)
    if (flat < 0).any() or (flat >= sizes).any():
        raise EnvError(f"{leaf.label} is {value!r}, which lies outside of {leaf.space}.")
    out = np.zeros(sum(sizes), np.float32)
    out[flat + np.concatenate([[0], np.cumsum(sizes)[:-1]])] = 1.0
    return out
