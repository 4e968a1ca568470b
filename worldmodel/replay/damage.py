"""Checksums over blocks of rows, and what becomes of rows that do not pass them.

A sequence must never join unrelated rows, so that a bad row takes everything older in its stream
with it; a bad value of a column costs the columns of its row only, a bad priority nothing else.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from worldmodel.replay.delta import Changes
from worldmodel.replay.index import BLOCK, Index, blocks, file_name
from worldmodel.replay.ring import DATA_DIRTY, FLAGS_DIRTY, Ring
from worldmodel.replay.schema import COLUMN, FIRST, LAST, PRIORITY, ROW, STORED, TERMINAL, finite
from worldmodel.types import Column


def checksums(
    ring: Ring, changes: list[Changes], before: Mapping[str, np.ndarray] | None
) -> dict[str, np.ndarray]:
    """CRC-32 of every block of rows in use, by file name; only the changed ones are counted anew
    on top of those `before`."""
    sums = {}
    for stream, used in enumerate(np.minimum(ring.count, ring.rows).tolist()):
        for field, about in ring.fields.items():
            name = file_name(field, stream)
            fresh = np.zeros(blocks(used), np.uint32)
            if before is not None:
                common = min(len(fresh), len(before[name]))
                fresh[:common] = before[name][:common]
            for block in _touched(changes[stream].of(about)).tolist():
                fresh[block] = _crc(ring.arrays[field][stream], block, used)
            sums[name] = fresh
    return sums


def everything(ring: Ring) -> list[Changes]:
    """Changes that name every slot in use."""
    runs = [np.array([[0, n]] if n else [], np.int64).reshape(-1, 2) for n in _used(ring)]
    return [Changes(run, run) for run in runs]


def drop_bad(ring: Ring, index: Index, folder: Path) -> None:
    """Drop what fails its checksum or cannot be, and warn how much that is."""
    assert index.sums is not None
    drop_damaged(ring, index.sums, folder)
    drop_impossible(ring, index.columns, folder)
    drop_torn(ring, folder)


def drop_damaged(ring: Ring, sums: Mapping[str, np.ndarray], folder: Path) -> None:
    """Check every block in use, drop what does not pass, and warn how much that is."""
    for stream, used in enumerate(_used(ring)):
        if not used:
            continue
        for field in ring.fields:
            given = sums[file_name(field, stream)]
            array = ring.arrays[field][stream]
            wrong = [b for b in range(len(given)) if _crc(array, b, used) != given[b]]
            if wrong:
                _drop_blocks(ring, stream, field, np.array(wrong), folder)


def drop_impossible(ring: Ring, columns: Mapping[str, Column], folder: Path) -> None:
    """Drop what no run can have written, though its checksums are right, and warn how much that
    is: numbers that are not finite or too large, flags that contradict each other."""
    for stream in range(ring.streams):
        held = np.arange(ring.oldest[stream], ring.count[stream])
        slots, used = held % ring.rows, _used(ring)[stream]
        arrays = {name: ring.arrays[name][stream][:used] for name in ring.fields}
        flags = arrays["flags"]
        bad = (flags & (LAST | TERMINAL) == TERMINAL) | (flags > FIRST | LAST | TERMINAL | STORED)
        for name, field in ring.fields.items():
            if field.dtype == np.float32 and not name.startswith((COLUMN, PRIORITY)):
                bad |= ~_each(arrays[name], np.isfinite)
        _drop(ring, stream, held[bad[slots]], folder, "no run can have recorded them")
        if PRIORITY in ring.fields:
            with np.errstate(invalid="ignore"):
                lost = ~((arrays[PRIORITY] > 0) & np.isfinite(arrays[PRIORITY]))
            _lose_priorities(ring, stream, slots[lost[slots]], folder, "no run can have given them")
        whole = np.ones(used, bool)
        for name, column in columns.items():
            values = arrays[COLUMN + name]
            if values.dtype.kind == "f":
                whole &= _each(values, finite)
            if column.below is not None:
                whole &= _each(values, partial(np.greater, column.below))
        lost = np.flatnonzero(~whole & (flags & STORED != 0))
        _lose_columns(ring, stream, lost, folder, "no run can have written them")


def drop_torn(ring: Ring, folder: Path) -> None:
    """Drop rows whose slots hold other rows than the counters say, and warn how many."""
    for stream in range(ring.streams):
        held = np.arange(ring.oldest[stream], ring.count[stream])
        wrong = ring.arrays[ROW][stream][held % ring.rows] != held
        _drop(ring, stream, held[wrong], folder, "their place was taken by newer rows")


def _drop_blocks(ring: Ring, stream: int, field: str, wrong: np.ndarray, folder: Path) -> None:
    held = np.arange(ring.oldest[stream], ring.count[stream])
    bad = held[np.isin(held % ring.rows // BLOCK, wrong)]
    if not ring.frozen:  # the next save writes these blocks anew, and their checksums
        slots = np.arange(_used(ring)[stream])
        ring.dirty[stream, slots[np.isin(slots // BLOCK, wrong)]] |= DATA_DIRTY
    if field == PRIORITY:
        reason = f"{file_name(field, stream)} is damaged"
        _lose_priorities(ring, stream, bad % ring.rows, folder, reason)
        return
    if not field.startswith(COLUMN):
        _drop(ring, stream, bad, folder, f"{file_name(field, stream)} is damaged")
        return
    lost = bad[ring.arrays["flags"][stream][bad % ring.rows] & STORED != 0] % ring.rows
    _lose_columns(ring, stream, lost, folder, f"{file_name(field, stream)} is damaged")


def _lose_columns(ring: Ring, stream: int, slots: np.ndarray, folder: Path, reason: str) -> None:
    """Forget the columns of the rows in these slots."""
    if len(slots):
        ring.arrays["flags"][stream][slots] &= 255 - STORED
        if not ring.frozen:
            ring.dirty[stream, slots] |= FLAGS_DIRTY
        warnings.warn(
            f"Replay at {folder}, stream {stream}: {len(slots):,} rows lost their columns; "
            f"{reason}.",
            stacklevel=7,
        )


def _lose_priorities(ring: Ring, stream: int, slots: np.ndarray, folder: Path, reason: str) -> None:
    """Give the rows in these slots a priority of 1."""
    if len(slots):
        ring.arrays[PRIORITY][stream][slots] = 1.0
        if not ring.frozen:
            ring.dirty[stream, slots] |= FLAGS_DIRTY
        warnings.warn(
            f"Replay at {folder}, stream {stream}: {len(slots):,} rows lost their priorities and "
            f"have that of 1 now; {reason}.",
            stacklevel=7,
        )


def _drop(ring: Ring, stream: int, bad: np.ndarray, folder: Path, reason: str) -> None:
    """Forget the newest of the bad rows and all before it."""
    if len(bad):
        held, oldest = int(ring.filled[stream]), int(ring.oldest[stream])
        ring.floor[stream] = bad.max() + 1
        warnings.warn(
            f"Replay at {folder}, stream {stream}: dropped the oldest {bad.max() + 1 - oldest:,} "
            f"rows of {held:,}; {reason}.",
            stacklevel=7,
        )


def _each(array: np.ndarray, test: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Whether all numbers of a row pass a test, bool [rows]; in parts, to take little memory."""
    passed = np.ones(len(array), bool)
    for start in range(0, len(array), 64 * BLOCK):
        part = array[start : start + 64 * BLOCK]
        passed[start : start + len(part)] = test(part).reshape(len(part), -1).all(-1)
    return passed


def _used(ring: Ring) -> list[int]:
    used: list[int] = np.minimum(ring.count, ring.rows).tolist()
    return used


def _touched(runs: np.ndarray) -> np.ndarray:
    """The blocks that runs of slots reach into."""
    marks = np.zeros(blocks(int(runs[-1, 1])) + 1 if len(runs) else 0, np.int64)
    if len(runs):
        np.add.at(marks, runs[:, 0] // BLOCK, 1)
        np.add.at(marks, (runs[:, 1] - 1) // BLOCK + 1, -1)
    return np.flatnonzero(marks.cumsum())


def _crc(array: np.ndarray, block: int, used: int) -> int:
    return zlib.crc32(array[block * BLOCK : min((block + 1) * BLOCK, used)].data)
