"""The infos of several environments as one dict, in gymnasium's form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

DEEPEST = 8  # levels of dicts that are merged; one may hold itself


def merged(infos: Sequence[Mapping[str, Any]], depth: int = 1) -> dict[str, Any]:
    """For each key an array [N, ...] of the values, and under `_key` a bool [N] of who has it.

    Numbers and arrays of one shape keep their type, with zeros where they are missing; anything
    else becomes an object array, with None. Dicts are merged in turn, to DEEPEST levels.
    """
    out: dict[str, Any] = {}
    for key in dict.fromkeys(key for info in infos for key in info):
        has = np.array([key in info for info in infos])
        values = [info[key] for info in infos if key in info]
        if depth < DEEPEST and all(isinstance(value, dict) for value in values):
            out[key] = merged([info.get(key, {}) for info in infos], depth + 1)
        else:
            out[key] = _array(values, has)
        out[f"_{key}"] = has
    return out


def _array(values: list[Any], has: np.ndarray) -> np.ndarray:
    first = values[0]
    if all(type(value) is type(first) for value in values):
        if isinstance(first, (bool, int, float, np.number)):
            try:
                array = np.zeros(len(has), type(first))
                array[has] = values
                return array
            except OverflowError:
                pass  # a whole number that no array holds
        elif isinstance(first, np.ndarray):
            kinds = {(value.shape, value.dtype) for value in values}
            if len(kinds) == 1:
                array = np.zeros((len(has), *first.shape), first.dtype)
                array[has] = np.stack(values)
                return array
    array = np.full(len(has), None, object)
    for index, value in zip(np.flatnonzero(has), values, strict=True):
        array[index] = value
    return array
