"""Small tables that people make: text in UTF-8 with a header and commas, semicolons, tabs or bars
between columns; or NPZ with one array for each column."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.apps.episodes import Episodes
from worldmodel.config import ConfigError
from worldmodel.replay.datasets.arrays import OBJECTS, Unreadable, npz_names, read_npz

PAIRS = ("episode_a", "start_a", "episode_b", "start_b", "length", "preferred")
SEPARATORS = ",;\t|"
TEXT = (".csv", ".tsv")
EVEN = 0.5  # an answer that prefers neither


def read_table(path: str | Path, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """The named columns, float64 [N] each, of a .csv, .tsv or .npz file; others are passed over.

    Raises ConfigError where the file or a column is missing, the columns differ in length, or an
    entry is not a finite number; with its line or index.
    """
    path = Path(path)
    if path.suffix not in (*TEXT, ".npz"):
        raise ConfigError(
            f"'{path}' must be a .csv, .tsv or .npz file with the columns {', '.join(columns)}. "
            "Save it as one."
        )
    if not path.is_file():
        raise ConfigError(f"There is no file '{path}' (looked in '{Path.cwd()}').")
    try:
        table = (_csv if path.suffix in TEXT else _npz)(path, columns)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"'{path}' is no text in UTF-8. Save it so: \"CSV UTF-8\" in a spreadsheet, "
            "to_csv(encoding='utf-8') in pandas."
        ) from error
    except (OSError, csv.Error, Unreadable) as error:
        raise ConfigError(f"'{path}' cannot be read: {error}.") from error
    if not len(table[columns[0]]):
        raise ConfigError(f"'{path}' holds no rows.")
    return {name: _numbers(path, name, values) for name, values in table.items()}


def whole_columns(
    table: dict[str, np.ndarray], names: Sequence[str], path: str
) -> dict[str, np.ndarray]:
    """Columns as int64; ConfigError where one holds anything but whole numbers."""
    for name in names:
        bad = np.flatnonzero(table[name] != np.round(table[name]))
        if len(bad):
            raise ConfigError(
                f"{place(path, bad[0])}{name} is {table[name][bad[0]]:g}, but must be a whole "
                "number."
            )
    return {name: table[name].astype(np.int64) for name in names}


def place(path: str | Path, index: int) -> str:
    """Where people find the entry of that index, to begin an error with: the line of a CSV, or the
    index itself."""
    where = f"line {index + 2}" if str(path).endswith(TEXT) else f"index {index}"
    return f"'{path}', {where}: "


def _csv(path: Path, columns: Sequence[str]) -> dict[str, Any]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        header_line = file.readline()
        file.seek(0)
        separator = max(SEPARATORS, key=header_line.count)
        reader = csv.DictReader(file, skipinitialspace=True, delimiter=separator)
        reader.fieldnames = header = [name.strip() for name in reader.fieldnames or []]
        _check_columns(path, columns, header)
        rows = list(reader)
    return {name: [row[name] or "" for row in rows] for name in columns}


def _npz(path: Path, columns: Sequence[str]) -> dict[str, Any]:
    _check_columns(path, columns, npz_names(path))
    table = read_npz(path, columns)
    for name, value in table.items():
        if value.dtype.kind not in "fiub":
            kind = "Python objects" if value is OBJECTS else value.dtype
            raise ConfigError(f"The array '{name}' of '{path}' holds {kind}, not numbers.")
    shapes = {name: value.shape for name, value in table.items()}
    if len(set(shapes.values())) > 1 or len(shapes[columns[0]]) != 1:
        raise ConfigError(
            f"The arrays of '{path}' must all be one-dimensional and equally long: {shapes}."
        )
    return table


def _check_columns(path: Path, columns: Sequence[str], found: Iterable[str]) -> None:
    missing = [name for name in columns if name not in found]
    if missing:
        raise ConfigError(
            f"'{path}' lacks the columns {', '.join(missing)}. It has "
            f"{', '.join(found) or 'none'}; needed: {', '.join(columns)}."
        )


def _numbers(path: Path, name: str, values: Sequence[Any]) -> np.ndarray:
    """A column as float64 [N]."""
    out = np.empty(len(values))
    for index, value in enumerate(values):
        try:
            out[index] = value
        except ValueError as error:
            raise ConfigError(
                f"{place(path, index)}{name} is '{value}', but must be a number, with a point "
                "before its decimals."
            ) from error
    bad = np.flatnonzero(~np.isfinite(out))
    if len(bad):
        raise ConfigError(
            f"{place(path, bad[0])}{name} is {out[bad[0]]}, but must be finite. Leave out rows "
            "that have no label."
        )
    return out


@dataclass(frozen=True)
class Pairs:
    """Segments a and b of each pair: episode [N, 2], first step [N, 2], rows [N]; preferred [N] is
    the probability that b is the better one. held_out: bool [N]."""

    episode: np.ndarray
    start: np.ndarray
    length: np.ndarray
    preferred: np.ndarray
    held_out: np.ndarray

    def __len__(self) -> int:
        return len(self.length)

    @property
    def episodes(self) -> list[int]:
        """The episodes that they come from."""
        return [int(number) for number in np.unique(self.episode)]

    def holding_out(self, which: np.ndarray) -> Pairs:
        """The same pairs, of which bool [N] are held out."""
        return replace(self, held_out=which)


def read_pairs(path: str, episodes: Episodes) -> Pairs:
    """The pairs of a table with the columns `PAIRS`; rows start ... start + length - 1 of each
    episode. None is held out. Raises ConfigError where one does not fit the replay."""
    table = read_table(path, PAIRS)
    numbers = whole_columns(table, PAIRS[:-1], path)
    preferred = table["preferred"]
    for i in range(len(preferred)):
        where = place(path, i)
        length = int(numbers["length"][i])
        if length < 1:
            raise ConfigError(f"{where}length is {length}, but must be at least 1.")
        for side in "ab":
            episode, start = (int(numbers[f"{n}_{side}"][i]) for n in ("episode", "start"))
            episodes.check(episode, start, where)
            episodes.check(episode, start + length - 1, where)
        if not 0 <= preferred[i] <= 1:
            raise ConfigError(
                f"{where}preferred is {preferred[i]:g}, but must be 0 (a is better), 1 (b is) or "
                "a probability between."
            )
    if (preferred == EVEN).all():
        raise ConfigError(
            f"'{path}' prefers nothing: preferred is 0.5 in every row, so there is no reward to "
            "learn."
        )
    return Pairs(
        np.stack([numbers["episode_a"], numbers["episode_b"]], 1),
        np.stack([numbers["start_a"], numbers["start_b"]], 1),
        numbers["length"],
        preferred,
        np.zeros(len(preferred), bool),
    )


def split_pairs(pairs: Pairs, holdout: float, seed: int) -> Pairs:
    """The pairs with a share of the episodes held out: those that touch one only judge the head.

    Raises ConfigError where that leaves none to learn from, or none to judge by.
    """
    if not holdout:
        return pairs
    episodes = np.array(pairs.episodes)
    count = max(1, round(holdout * len(episodes)))
    held = np.random.default_rng(seed).permutation(episodes)[:count]
    a, b = np.isin(pairs.episode, held).T
    out = a | b
    if out.all() or not out.any():
        raise ConfigError(
            f"The {len(pairs)} pairs come from {len(episodes)} episodes; holding {count} of them "
            f"out leaves {int((~out).sum())} pairs to learn from and {int(out.sum())} to judge by. "
            "Compare segments of more episodes, or say holdout=0 to fit the head unjudged."
        )
    return pairs.holding_out(out)
