"""Next observations by what they hold: an array whose rows are the following rows of another one.

Names alone do not tell "obs2" of SpinningUp or "obs_tp1" of baselines from a second camera, and a
next observation that is observed shows a model the future.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from worldmodel.replay.datasets.align import same_rows
from worldmodel.replay.datasets.recording import DatasetError
from worldmodel.replay.datasets.vocabulary import PAST

SAMPLE = 200  # rows that are looked at
ENOUGH = 4  # of them that differ from the row before: fewer tell nothing
MOST = 0.5  # a share of those that a next observation matches; the others are ends of episodes

Arrays = dict[str, tuple[str, np.ndarray]]  # key -> name and values


def take_followers(where: str, plain: Arrays, chosen: frozenset[str]) -> Arrays:
    """Move the next observations among `plain` out of it; returns them by the key of what they
    follow. chosen: names that somebody wants observed.

    An array is one if it holds the following rows of another, and its name has the other's in it.
    Raises DatasetError where the rows say so, and the names do not.
    """
    found: Arrays = {}
    for key, (name, value) in list(plain.items()):
        if name in chosen or key in chosen:
            continue
        before = followed(value, {k: v for k, v in plain.items() if k != key})
        if before is None or before in found or PAST.search(plain[before][0].lower()):
            continue
        if plain[before][0].lower() not in name.lower():
            raise DatasetError(
                f"{where}: '{name}' holds the following rows of '{plain[before][0]}', so it shows "
                f"the future. Say it: offline_names={{next_observation: {name}}}, or "
                f"{{observation: [{plain[before][0]}, {name}]}} where both are observed."
            )
        found[before] = plain.pop(key)
    return found


def partner(where: str, name: str, value: np.ndarray, plain: Arrays) -> str:
    """The key of the observation that `name`, mapped as a next observation, belongs to. Raises
    DatasetError where none does."""
    alike = [key for key, (_, other) in plain.items() if other.shape == value.shape]
    found = followed(value, plain) or (alike[0] if len(alike) == 1 else None)
    if found is None:
        shapes = {other: list(array.shape) for other, array in plain.values()}
        raise DatasetError(
            f"{where}: offline_names says that '{name}' {list(value.shape)} is a next observation, "
            f"but it continues none of the observations, which are {shapes}."
        )
    return found


def followed(value: np.ndarray, others: Mapping[str, tuple[str, np.ndarray]]) -> str | None:
    """The key of the array whose following rows `value` [T, ...] holds; None where there is none,
    or too little changes to tell."""
    if len(value) <= ENOUGH:
        return None
    rows = np.linspace(0, len(value) - 2, SAMPLE).astype(int) if len(value) > SAMPLE else (
        np.arange(len(value) - 1))  # fmt: skip
    for key, (_, other) in others.items():
        if other.shape != value.shape or other.dtype.kind not in "biuf":
            continue
        here, after = other[rows], other[rows + 1]
        moved = ~same_rows(here, after)
        if moved.sum() < ENOUGH or len(np.unique(after[moved], axis=0)) < ENOUGH:
            continue
        if same_rows(value[rows], after)[moved].mean() > MOST:
            return key
    return None
