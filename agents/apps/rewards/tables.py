"""Small tables that people make: CSV with a header, or NPZ with one array for each column."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from worldmodel.config import ConfigError
from worldmodel.replay.datasets.arrays import Unreadable, npz_names, read_npz


def read_table(path: str | Path, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """The named columns, float64 [N] each, of a .csv or .npz file; others are passed over.

    Raises ConfigError where the file or a column is missing, the columns differ in length, or an
    entry is not a finite number; with its line or index.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".npz"):
        raise ConfigError(
            f"'{path}' must be a .csv or .npz file with the columns {', '.join(columns)}."
        )
    if not path.is_file():
        raise ConfigError(f"There is no file '{path}' (looked in '{Path.cwd()}').")
    try:
        table = (_csv if path.suffix == ".csv" else _npz)(path, columns)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"'{path}' cannot be read: {error}.") from error
    if not len(table[columns[0]]):
        raise ConfigError(f"'{path}' holds no rows.")
    return table


def whole(table: dict[str, np.ndarray], names: Sequence[str], path: str) -> dict[str, np.ndarray]:
    """Columns as int64; ConfigError where one holds anything but whole numbers."""
    for name in names:
        bad = np.flatnonzero(table[name] != np.round(table[name]))
        if len(bad):
            raise ConfigError(
                f"'{path}', {line(path, bad[0])}: {name} is {table[name][bad[0]]:g}, but must be a "
                "whole number."
            )
    return {name: table[name].astype(np.int64) for name in names}


def line(path: str | Path, index: int) -> str:
    """How people find the entry of that index: the line of a CSV, or the index itself."""
    return f"line {index + 2}" if str(path).endswith(".csv") else f"index {index}"


def _csv(path: Path, columns: Sequence[str]) -> dict[str, np.ndarray]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        header = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = header
        _all_there(path, columns, header)
        rows: list[list[float]] = []
        for index, row in enumerate(reader):
            rows.append([_number(path, index, name, row[name]) for name in columns])
    return dict(zip(columns, np.array(rows).reshape(-1, len(columns)).T, strict=True))


def _npz(path: Path, columns: Sequence[str]) -> dict[str, np.ndarray]:
    try:
        _all_there(path, columns, npz_names(path))
        table = read_npz(path, columns)
    except Unreadable as error:
        raise ConfigError(f"'{path}' cannot be read: {error}.") from error
    shapes = {name: value.shape for name, value in table.items()}
    if len(set(shapes.values())) > 1 or len(shapes[columns[0]]) != 1:
        raise ConfigError(
            f"The arrays of '{path}' must all be one-dimensional and equally long: {shapes}."
        )
    for name, value in table.items():
        if value.dtype.kind not in "fiub":
            raise ConfigError(f"The array '{name}' of '{path}' holds {value.dtype}, not numbers.")
        bad = np.flatnonzero(~np.isfinite(value))
        if len(bad):
            raise ConfigError(_not_finite(path, bad[0], name, value[bad[0]]))
    return {name: value.astype(np.float64) for name, value in table.items()}


def _all_there(path: Path, columns: Sequence[str], found: Sequence[str]) -> None:
    missing = [name for name in columns if name not in found]
    if missing:
        raise ConfigError(
            f"'{path}' lacks the columns {', '.join(missing)}. It has "
            f"{', '.join(found) or 'none'}; needed: {', '.join(columns)}."
        )


def _number(path: Path, index: int, name: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError as error:
        raise ConfigError(
            f"'{path}', {line(path, index)}: {name} is '{text or ''}', but must be a number."
        ) from error
    if not np.isfinite(value):
        raise ConfigError(_not_finite(path, index, name, value))
    return value


def _not_finite(path: Path, index: int, name: str, value: float) -> str:
    return (
        f"'{path}', {line(path, index)}: {name} is {value}, but must be finite. Leave out rows "
        "that have no label."
    )
