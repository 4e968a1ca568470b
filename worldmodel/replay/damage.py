"""Checksums over blocks of rows, and what becomes of rows that do not pass them.

A sequence must never join unrelated rows, so that a bad row takes everything older in its stream
with it; a bad stored latent costs that latent only.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from worldmodel.replay.delta import Changes
from worldmodel.replay.index import BLOCK, blocks, file_name
from worldmodel.replay.ring import DATA_DIRTY, Ring
from worldmodel.replay.schema import LATENT, ROW


def checksums(
    ring: Ring, changes: list[Changes], before: Mapping[str, np.ndarray] | None
) -> dict[str, np.ndarray]:
    """CRC-32 of every block of rows in use, by file name; only the changed ones are counted anew
    on top of those `before`."""
    sums = {}
    for stream, used in enumerate(np.minimum(ring.count, ring.rows).tolist()):
        for field in ring.fields:
            name = file_name(field, stream)
            fresh = np.zeros(blocks(used), np.uint32)
            if before is not None:
                common = min(len(fresh), len(before[name]))
                fresh[:common] = before[name][:common]
            for block in _touched(changes[stream].of(field)).tolist():
                fresh[block] = _crc(ring.arrays[field][stream], block, used)
            sums[name] = fresh
    return sums


def everything(ring: Ring) -> list[Changes]:
    """Changes that name every slot in use."""
    runs = [np.array([[0, n]] if n else [], np.int64).reshape(-1, 2) for n in _used(ring)]
    return [Changes(run, run) for run in runs]


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
    if field not in ("deter", "stoch"):
        _drop(ring, stream, bad, folder, f"{file_name(field, stream)} is damaged")
        return
    flags = ring.arrays["flags"][stream]
    lost = bad[flags[bad % ring.rows] & LATENT != 0] % ring.rows
    flags[lost] &= 255 - LATENT
    if len(lost):
        warnings.warn(
            f"Replay at {folder}, stream {stream}: {len(lost):,} rows lost their stored latents; "
            f"{file_name(field, stream)} is damaged.",
            stacklevel=6,
        )


def _drop(ring: Ring, stream: int, bad: np.ndarray, folder: Path, reason: str) -> None:
    """Forget the newest of the bad rows and all before it."""
    if len(bad):
        held, oldest = int(ring.filled[stream]), int(ring.oldest[stream])
        ring.floor[stream] = bad.max() + 1
        warnings.warn(
            f"Replay at {folder}, stream {stream}: dropped the oldest {bad.max() + 1 - oldest:,} "
            f"rows of {held:,}; {reason}.",
            stacklevel=6,
        )


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
