"""The redo log of one save: the rows that it changes, and the index that will then be true.

    rows            per stream and field, those of the runs of slots below, one after the other
    footer          JSON: parent, data and changed (runs [start, stop) of slots per stream),
                    crcs (of the rows, by file name), index
    trailer         length and CRC-32 of the footer, MAGIC

parent names the index on whose files the log rests; a log with no parent rests on nothing.
Applying a log twice, or to files that it is half applied to, gives what applying it once gives.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from worldmodel.replay import disk
from worldmodel.replay.index import LONGEST, Index, ReplayDamaged, file_name
from worldmodel.replay.schema import ROW, Field

DELTA, FRESH = "delta.bin", "delta.new.bin"
FOLDING = "folding.bin"  # a delta that a checkpoint committed; the base files may be half-way
MAGIC = b"wmdelta3"
TRAILER = struct.Struct("<QI8s")
GAP = 16  # unchanged slots between two runs that are not worth an end and a start
CHUNK = 1 << 22  # bytes moved at once


class Changes(NamedTuple):
    """Slots of one stream that differ from the base files: whole rows, and rows of which only
    what changes later may differ, as runs [start, stop) in an array [n, 2]."""

    data: np.ndarray
    changed: np.ndarray

    def of(self, field: Field) -> np.ndarray:
        """The runs that concern one field."""
        return self.changed if field.changes else self.data


class Part(NamedTuple):
    """The rows of one field of one stream within a log."""

    field: str
    stream: int
    name: str  # of the base file
    runs: np.ndarray
    offset: int
    row_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes of its rows."""
        return _slots(self.runs) * self.row_bytes


def runs_of(marks: np.ndarray, gap: int = 0) -> np.ndarray:
    """Where marks are not zero, as [start, stop) runs, [n, 2]; runs at most `gap` apart are one."""
    on = np.flatnonzero(marks)
    if not len(on):
        return np.empty((0, 2), np.int64)
    last = np.flatnonzero(np.diff(on) > gap + 1)
    return np.stack([on[np.append(0, last + 1)], on[np.append(last, len(on) - 1)] + 1], -1)


@dataclass(frozen=True)
class Delta:
    """A log in an open file, its footer read and checked, its rows not yet; a context that closes
    the file."""

    file: io.FileIO
    index: Index
    parent: str | None
    changes: list[Changes]
    crcs: dict[str, int]

    @classmethod
    def open(cls, path: Path) -> Delta:
        """Raises FileNotFoundError, or ReplayDamaged where the footer cannot be believed."""
        file = disk.open_file(path)
        try:
            return cls(file, *_footer(file))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            file.close()
            raise ReplayDamaged(f"{path} is damaged ({error}).") from error

    def __enter__(self) -> Delta:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def parts(self) -> Iterator[Part]:
        """All parts in the order of the file."""
        return _parts(self.index.fields, self.changes)

    def check(self) -> None:
        """Raises ReplayDamaged where rows differ from what was written."""
        buffer = bytearray(CHUNK)
        for part in self.parts():
            crc = 0
            for at in range(0, part.nbytes, CHUNK):
                view = memoryview(buffer)[: min(CHUNK, part.nbytes - at)]
                disk.read(self.file, view, part.offset + at)
                crc = zlib.crc32(view, crc)
            if crc != self.crcs[part.name]:
                raise ReplayDamaged(f"{self.file.name} is damaged (rows for {part.name}).")

    def fold(self, folder: Path) -> None:
        """Write the rows into the base files, and sync these. Row numbers are taken away first
        and come last, so that whoever reads along sees which rows are not whole."""
        buffer = bytearray(CHUNK)
        parts = [part for part in self.parts() if len(part.runs)]
        for part in parts:
            if part.field == next(iter(self.index.fields)):
                self._hide(folder, part)
            with disk.open_file(folder / part.name, write=True) as file:
                for offset, slot, rows in _pieces(part):
                    view = memoryview(buffer)
                    if rows * part.row_bytes > CHUNK:  # one row of more than a chunk
                        view = memoryview(bytearray(part.row_bytes))
                    view = view[: rows * part.row_bytes]
                    disk.read(self.file, view, offset)
                    disk.write(file, view, slot * part.row_bytes)
        for part in parts:  # all of them after all writing: the first one does most of the work
            with disk.open_file(folder / part.name, write=True) as file:
                disk.sync(file)
        disk.sync_folder(folder)  # some files may be new

    def overlay(self, arrays: Mapping[str, list[np.ndarray]]) -> None:
        """Write the rows into a ring's arrays instead."""
        for part in self.parts():
            offset, array = part.offset, arrays[part.field][part.stream]
            for start, stop in part.runs.tolist():
                disk.read(self.file, array[start:stop], offset)
                offset += (stop - start) * part.row_bytes

    def _hide(self, folder: Path, part: Part) -> None:
        """Take the row numbers away from the slots whose whole rows will change."""
        runs = self.changes[part.stream].data
        nobody = np.full(min(CHUNK // 8, int((runs[:, 1] - runs[:, 0]).max())), -1, np.int64)
        with disk.open_file(folder / file_name(ROW, part.stream), write=True) as file:
            for _, slot, rows in _pieces(part._replace(runs=runs, row_bytes=8)):
                disk.write(file, nobody[:rows], slot * 8)


def write(
    folder: Path,
    arrays: Mapping[str, list[np.ndarray]],
    changes: list[Changes],
    index: Index,
    parent: str | None,
) -> None:
    """Write and sync a log under a new name, then rename it to DELTA."""
    fresh = folder / FRESH
    disk.remove(fresh)
    try:
        with disk.open_file(fresh, write=True) as file:
            out, crcs = _Out(file), {}
            for part in _parts(index.fields, changes):
                crc, array = 0, arrays[part.field][part.stream]
                for start, stop in part.runs.tolist():
                    rows = array[start:stop].data.cast("B")
                    crc = zlib.crc32(rows, crc)
                    out.add(rows)
                crcs[part.name] = crc
            about = {"parent": parent, "crcs": crcs, "index": index.to_json()}
            runs = {k: [getattr(c, k).tolist() for c in changes] for k in Changes._fields}
            footer = json.dumps({**about, **runs}).encode()
            out.add(footer)
            out.add(TRAILER.pack(len(footer), zlib.crc32(footer), MAGIC))
            out.flush()
            disk.sync(file)
    except OSError:
        disk.remove(fresh)  # a full disk, say: give the room back
        raise
    disk.replace(fresh, folder / DELTA)
    disk.sync_folder(folder)


class _Out:
    """Writes one piece after the other, small ones together."""

    def __init__(self, file: io.FileIO) -> None:
        self._file, self._offset, self._small = file, 0, bytearray()

    def add(self, data: Any) -> None:
        if len(data) < CHUNK // 16:
            self._small += data
            if len(self._small) >= CHUNK:
                self.flush()
            return
        self.flush()
        self._write(data)

    def flush(self) -> None:
        if self._small:
            self._write(self._small)
            self._small = bytearray()

    def _write(self, data: Any) -> None:
        disk.write(self._file, data, self._offset)
        self._offset += len(data)


def _slots(runs: np.ndarray) -> int:
    return int((runs[:, 1] - runs[:, 0]).sum())


def _parts(fields: Mapping[str, Field], changes: list[Changes]) -> Iterator[Part]:
    offset = 0
    for stream, change in enumerate(changes):
        for name, field in fields.items():
            runs = change.of(field)
            part = Part(name, stream, file_name(name, stream), runs, offset, field.nbytes)
            yield part
            offset += part.nbytes


def _pieces(part: Part) -> Iterator[tuple[int, int, int]]:
    """(offset in the log, first slot, rows) of at most a chunk each, but at least one row."""
    offset, most = part.offset, max(1, CHUNK // part.row_bytes)
    for start, stop in part.runs.tolist():
        for slot in range(start, stop, most):
            rows = min(most, stop - slot)
            yield offset, slot, rows
            offset += rows * part.row_bytes


def _footer(file: io.FileIO) -> tuple[Index, str | None, list[Changes], dict[str, int]]:
    total = disk.size(file)
    if total < TRAILER.size:
        raise ValueError("it is too short")
    trailer = bytearray(TRAILER.size)
    disk.read(file, trailer, total - TRAILER.size)
    length, crc, magic = TRAILER.unpack(trailer)
    start = total - TRAILER.size - length
    if magic != MAGIC or start < 0 or length > LONGEST:
        raise ValueError("it has no end")
    text = bytearray(length)
    disk.read(file, text, start)
    if zlib.crc32(text) != crc:
        raise ValueError("the checksum of its footer is wrong")
    footer = json.loads(text)
    index = Index.from_json(footer["index"])
    parent = footer["parent"]
    if parent is not None and not isinstance(parent, str):
        raise ValueError("its parent is no token")
    runs = [
        [_runs(given, used) for given, used in zip(footer[kind], index.filled, strict=True)]
        for kind in Changes._fields
    ]
    changes = [Changes(*pair) for pair in zip(*runs, strict=True)]
    if parent is None and [_slots(r) for both in runs for r in both] != index.filled * 2:
        raise ValueError("it has no parent, and not all rows")
    parts = list(_parts(index.fields, changes))
    if {part.name for part in parts} != set(footer["crcs"]):
        raise ValueError("its checksums are not those of its rows")
    if sum(part.nbytes for part in parts) != start:
        raise ValueError("its length is not that of its rows")
    return index, parent, changes, footer["crcs"]


def _runs(value: Any, used: int) -> np.ndarray:
    runs = np.asarray(value)
    if not runs.size:
        return np.empty((0, 2), np.int64)
    if runs.dtype.kind != "i" or runs.shape[1:] != (2,):
        raise ValueError("its runs are not pairs of numbers")
    edges = runs.astype(np.int64).ravel()
    if edges[0] < 0 or edges[-1] > used or np.any(np.diff(edges) <= 0):
        raise ValueError("its runs leave the ring")
    return edges.reshape(-1, 2)
