"""Functions over trees: tuples, named tuples, lists and dicts whose leaves are tensors or arrays.

The states of worlds and agents are such trees, and whoever does not own one treats it with these.
A leaf that is neither a tensor nor an array (None, a number, a string) passes through unchanged.
Trees that go together have the same structure; ValueError where they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")


def map(fn: Callable[..., Any], tree: T, *others: Any) -> T:
    """The tree of fn(leaf, leaf of each other tree, ...), over tensors and arrays."""

    def walk(one: Any, rest: tuple[Any, ...]) -> Any:
        if isinstance(one, Tensor | np.ndarray):
            return fn(one, *rest)
        if isinstance(one, Mapping):
            _check_keys(one, rest)
            return {key: walk(value, tuple(o[key] for o in rest)) for key, value in one.items()}
        if isinstance(one, tuple | list):
            parts = [walk(part, tuple(more)) for part, *more in _zipped(one, rest)]
            return rebuilt(one, parts)
        return one

    return walk(tree, others)


def leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, leaf) of everything that is no container, in a fixed order."""
    if isinstance(tree, Mapping):
        items: Iterator[tuple[Any, Any]] = iter(tree.items())
    elif isinstance(tree, tuple | list):
        items = iter(zip(getattr(tree, "_fields", range(len(tree))), tree, strict=True))
    else:
        yield name, tree
        return
    for key, value in items:
        yield from leaves(value, f"{name}.{key}" if name else str(key))


def tensors(tree: Any) -> Iterator[Tensor]:
    """All tensors of a tree, in a fixed order."""
    return (leaf for _, leaf in leaves(tree) if isinstance(leaf, Tensor))


def device(tree: Any) -> torch.device:
    """Where the first tensor of a tree lies; the CPU where there is none."""
    return next((leaf.device for leaf in tensors(tree)), torch.device("cpu"))


def batch_size(tree: Any) -> int:
    """The length of the first axis of a tree's leaves."""
    for _, leaf in leaves(tree):
        if isinstance(leaf, Tensor | np.ndarray):
            return len(leaf)
    raise ValueError("This tree has no leaf with a batch axis.")


def index(tree: T, where: Any) -> T:
    """leaf[where] of every leaf: rows, a slice, a tuple of both."""
    return map(lambda x: x[where], tree)


def stack(trees: Sequence[T], axis: int = 0) -> T:
    """Trees of the same structure as one, with a new axis."""
    return map(lambda *x: _joined(torch.stack, np.stack, x, axis), trees[0], *trees[1:])


def cat(trees: Sequence[T], axis: int = 0) -> T:
    """Trees of the same structure as one, along an axis that is there."""
    return map(lambda *x: _joined(torch.cat, np.concatenate, x, axis), trees[0], *trees[1:])


def where(mask: Any, yes: T, no: T) -> T:
    """Row by row, mask bool [B]: the leaf of `yes` where it is True, else that of `no`."""

    def choose(a: Any, b: Any) -> Any:
        shape = (-1, *[1] * (a.ndim - 1))
        if isinstance(a, Tensor):
            return torch.where(torch.as_tensor(mask, device=a.device).reshape(shape), a, b)
        return np.where(np.asarray(mask).reshape(shape), a, b)

    return map(choose, yes, no)


def to(tree: T, where: torch.device | str, **options: Any) -> T:
    """The tree with its tensors on a device."""
    return map(lambda x: x.to(where, **options) if isinstance(x, Tensor) else x, tree)


def to_plain(tree: Any) -> Any:
    """A copy for a checkpoint: lists and dicts in place of tuples, tensors on the CPU in place of
    arrays and tensors anywhere."""
    if isinstance(tree, tuple | list):
        return [to_plain(part) for part in tree]
    if isinstance(tree, Mapping):
        return {key: to_plain(part) for key, part in tree.items()}
    if isinstance(tree, np.ndarray):
        return torch.from_numpy(tree.copy())
    return tree.detach().cpu().clone() if isinstance(tree, Tensor) else tree


def to_arrays(plain: Any) -> Any:
    """What `to_plain` made, with arrays in place of tensors."""
    if isinstance(plain, list):
        return [to_arrays(part) for part in plain]
    if isinstance(plain, Mapping):
        return {key: to_arrays(part) for key, part in plain.items()}
    return plain.numpy().copy() if isinstance(plain, Tensor) else plain


def from_plain(like: T, plain: Any, name: str = "state") -> T:
    """The inverse of `to_plain`, in the structure, types and devices of another tree.

    Raises ValueError, which names the leaf, where structure, shapes or types differ.
    """
    check_plain_like(to_plain(like), plain, name)

    def walk(one: Any, saved: Any) -> Any:
        if isinstance(one, tuple | list):
            return rebuilt(one, [walk(a, b) for a, b in zip(one, saved, strict=True)])
        if isinstance(one, Mapping):
            return {key: walk(one[key], saved[key]) for key in one}
        if isinstance(one, np.ndarray):
            return saved.numpy().copy()
        return saved.to(one.device) if isinstance(one, Tensor) else saved

    return walk(like, plain)


def check_plain_like(like: Any, plain: Any, name: str) -> None:
    """ValueError unless plain lists, dicts and tensors have the structure, shapes and types of
    others; what those leave open (None) may be anything."""
    if isinstance(like, Tensor):
        fits = isinstance(plain, Tensor) and (plain.shape, plain.dtype) == (like.shape, like.dtype)
        if not fits:
            raise ValueError(f"{name} must be {like.dtype} {list(like.shape)}, not {brief(plain)}")
    elif isinstance(like, Mapping):
        if not isinstance(plain, Mapping) or plain.keys() != like.keys():
            raise ValueError(f"{name} must hold {', '.join(like)}, not {brief(plain)}")
        for key, value in like.items():
            check_plain_like(value, plain[key], f"{name}.{key}")
    elif isinstance(like, list):
        if not isinstance(plain, list) or len(plain) != len(like):
            raise ValueError(f"{name} must be a list of {len(like)}, not {brief(plain)}")
        for number, value in enumerate(like):
            check_plain_like(value, plain[number], f"{name}.{number}")
    elif like is not None and type(plain) is not type(like):
        raise ValueError(f"{name} must be like {like!r:.40}, not {brief(plain)}")


def brief(value: Any) -> str:
    """A value in a few words, for an error."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return f"{value!r:.60}"


def rebuilt(like: Any, parts: list[Any]) -> Any:
    """Parts in the container type of another tree: named tuple, tuple or list."""
    return type(like)(*parts) if hasattr(like, "_fields") else type(like)(parts)


def _joined(of_tensors: Any, of_arrays: Any, values: tuple[Any, ...], axis: int) -> Any:
    return (of_tensors if isinstance(values[0], Tensor) else of_arrays)(values, axis)


def _check_keys(one: Mapping[Any, Any], rest: tuple[Any, ...]) -> None:
    for other in rest:
        if not isinstance(other, Mapping) or other.keys() != one.keys():
            raise ValueError(
                f"These trees differ: {sorted(str(key) for key in one)} and {brief(other)}."
            )


def _zipped(one: Any, rest: tuple[Any, ...]) -> Any:
    if any(not isinstance(other, tuple | list) or len(other) != len(one) for other in rest):
        raise ValueError(f"These trees differ: {len(one)} parts, and {[brief(o) for o in rest]}.")
    return zip(one, *rest, strict=True)
