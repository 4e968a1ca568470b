"""Replay on disk: raw rows per field and stream, and a small index that makes them valid.

    <field>.<stream>.bin   rows by slot, as in memory; only as long as rows were written
    index.json             what the rows are, counters, caller's extras; renamed into place last

Every slot carries the number of its row. A save (or a process with memory-mapped rows) that is
killed half-way leaves slots whose number is not the one that the index implies; loading drops
those and everything older in the stream, so that no sequence ever joins unrelated rows.
"""

from __future__ import annotations

import json
import os
import secrets
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.replay.ring import DATA_DIRTY, FLAGS_DIRTY, Ring, file_name
from worldmodel.replay.schema import ROW

INDEX = "index.json"
VERSION = 1
CHANGING = ("deter", "stoch", "flags")  # fields that change in rows already saved


class ReplayDamaged(ValueError):
    """A saved replay cannot give what is asked of it; an older checkpoint may still find its."""


class Saver:
    """Saves and loads one ring; remembers where the last save went, to write only changes."""

    def __init__(self, ring: Ring, signature: dict[str, Any]) -> None:
        self._ring = ring
        self._about = {
            "version": VERSION,
            **signature,
            "environments": ring.streams,
            "rows per environment": ring.rows,
        }
        self._last: tuple[Path, str] | None = None  # folder and token of the last save
        mapped = ring.directory
        self._guarded = mapped is not None and (mapped / INDEX).exists()

    def check_loaded(self) -> None:
        """Raises ValueError where new rows would destroy a saved replay that was not loaded."""
        if self._guarded:
            raise ValueError(
                f"{self._ring.directory} holds a saved replay. Load it before adding rows, or "
                "choose an empty directory."
            )

    def save(self, directory: Path, extra: dict[str, Any]) -> None:
        """Write the ring and the caller's extras (anything JSON can hold)."""
        self.check_loaded()
        ring = self._ring
        directory.mkdir(parents=True, exist_ok=True)
        if _same(directory, ring.directory):
            ring.flush()
        else:
            if self._last is None or self._last != (directory, _token(directory)):
                (directory / INDEX).unlink(missing_ok=True)
                for stale in directory.glob("*.bin"):
                    stale.unlink()
                ring.dirty[:] = 0
                for stream in range(ring.streams):
                    rows = np.arange(ring.oldest[stream], ring.count[stream])
                    ring.dirty[stream, rows % ring.rows] = DATA_DIRTY | FLAGS_DIRTY
            self._write_changes(directory)
        token = secrets.token_hex(8)
        index = {
            **self._about,
            "count": ring.count.tolist(),
            "floor": ring.floor.tolist(),
            "extra": extra,
            "token": token,
        }
        _replace(directory / INDEX, json.dumps(index, indent=1))
        ring.dirty[:] = 0
        self._last = (directory, token)

    def load(self, directory: Path) -> dict[str, Any]:
        """Fill the ring from a folder and return the extras.

        Raises ValueError where the saved replay differs or is damaged, FileNotFoundError where
        the folder has no index or a data file is missing.
        """
        ring, index = self._ring, self._read_index(directory)
        count = np.asarray(index["count"], np.int64)
        places = []
        for stream, filled in enumerate(np.minimum(count, ring.rows).tolist()):
            for name in ring.fields:
                path = directory / file_name(name, stream)
                rows = ring.arrays[name][stream][:filled]
                if filled:
                    _check_size(path, rows.nbytes)
                    places.append((path, rows))
        # From here on nothing is wrong with the files, and the ring may change.
        if not _same(directory, ring.directory):  # otherwise the ring is a map of these files
            for path, rows in places:
                with path.open("rb") as file:
                    file.readinto(_bytes(rows))
        ring.count[:], ring.floor[:] = count, index["floor"]
        for stream in range(ring.streams):
            self._drop_torn(stream, directory)
        ring.dirty[:] = 0
        self._guarded = False
        self._last = (directory, index["token"])
        return index["extra"]

    def _read_index(self, directory: Path) -> dict[str, Any]:
        path = directory / INDEX
        if not path.exists():
            raise FileNotFoundError(f"No saved replay at {directory}: {INDEX} is missing.")
        try:
            index = json.loads(path.read_text())
            differs = [k for k, v in self._about.items() if index[k] != v]
            numbers = [*index["count"], *index["floor"]]
            if not all(isinstance(n, int) and n >= 0 for n in numbers):
                raise TypeError("count and floor must be row numbers")
            _ = index["extra"], index["token"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); use an older checkpoint.") from error
        if differs:
            lines = [f"  {k}: saved {index[k]}, here {self._about[k]}" for k in differs]
            raise ValueError(
                f"The replay saved at {directory} differs from this one:\n" + "\n".join(lines)
            )
        return index

    def _drop_torn(self, stream: int, directory: Path) -> None:
        ring = self._ring
        held = np.arange(ring.oldest[stream], ring.count[stream])
        wrong = np.flatnonzero(ring.arrays[ROW][stream][held % ring.rows] != held)
        if len(wrong):
            ring.floor[stream] = held[wrong[-1]] + 1
            warnings.warn(
                f"Replay at {directory}, stream {stream}: dropped the oldest {wrong[-1] + 1:,} "
                f"rows of {len(held):,}; a run was killed while it overwrote them.",
                stacklevel=4,
            )

    def _write_changes(self, directory: Path) -> None:
        ring = self._ring
        for stream in range(ring.streams):
            dirty = ring.dirty[stream]
            data = _runs(dirty & DATA_DIRTY)
            changed = _runs(dirty)
            torn = np.full(max((b - a for a, b in data), default=0), -1, np.int64)
            _write(directory / file_name(ROW, stream), torn, data, whole=False)
            for name in ring.fields:
                runs = changed if name in CHANGING else data
                if name != ROW:
                    path = directory / file_name(name, stream)
                    _write(path, ring.arrays[name][stream], runs)
            _write(directory / file_name(ROW, stream), ring.arrays[ROW][stream], data)


def _same(a: Path, b: Path | None) -> bool:
    return b is not None and a.resolve() == b.resolve()


def _check_size(path: Path, need: int) -> None:
    if not path.exists():
        raise FileNotFoundError(f"Replay file {path} is missing; use an older checkpoint.")
    if path.stat().st_size < need:
        raise ValueError(
            f"Replay file {path} is truncated: it has {path.stat().st_size:,} bytes, the index "
            f"needs {need:,}. Use an older checkpoint."
        )


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """Where flags are not zero, as [start, stop) pairs."""
    on = np.concatenate([[False], flags != 0, [False]])
    edges = np.flatnonzero(on[1:] != on[:-1]).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _write(path: Path, array: np.ndarray, runs: list[tuple[int, int]], whole: bool = True) -> None:
    """Write array[a:b] (whole) or array[:b - a] to rows a ... b - 1 of a file, and sync it."""
    if not runs:
        return
    row_bytes = array.nbytes // len(array)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
        for a, b in runs:
            file.seek(a * row_bytes)
            file.write(_bytes(array[a:b] if whole else array[: b - a]))
        file.flush()
        os.fsync(file.fileno())


def _bytes(array: np.ndarray) -> memoryview:
    """The memory of a contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8).data


def _token(directory: Path) -> str | None:
    try:
        return json.loads((directory / INDEX).read_text())["token"]
    except (OSError, ValueError, KeyError):
        return None


def _replace(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new, never a part."""
    fresh = path.with_suffix(".new")
    with fresh.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
