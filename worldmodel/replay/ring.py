"""Ring buffers: per environment and key one preallocated array, in memory or memory-mapped.

Rows are named by their absolute number, counted from the first row that a stream ever received.
Row r lies in slot r % rows; it is still there while oldest <= r < count.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.replay import disk
from worldmodel.replay.index import file_name
from worldmodel.replay.memory import available_memory
from worldmodel.replay.schema import PRIORITY, ROW, STORED, Field

# What no save has seen yet, and (shifted by SAVED) what is saved but not committed.
DATA_DIRTY, FLAGS_DIRTY = 1, 2  # a whole row; its flags or its columns only
SAVED = 2
# Without it Linux refuses private maps larger than memory, though few of their pages are used.
NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)

WORDS = [np.dtype(name) for name in ("int64", "int32", "int16", "uint8")]


class Ring:
    """`streams` rings of `rows` rows each; `fields` describes a row.

    directory: where the memory-mapped files lie, or None to keep the rows in memory. The files
    are mapped copy-on-write: what is written to the ring stays in memory, and out of the files,
    until `give_back` drops it. length: with it the ring is for reading only and holds that many
    slots; files are then neither made nor changed. expected: rows that will be added over all
    streams, where that is known. Raises ValueError where memory cannot hold those, or disk the
    whole ring.
    """

    def __init__(
        self,
        fields: Mapping[str, Field],
        streams: int,
        rows: int,
        directory: Path | None,
        length: int | None = None,
        expected: int | None = None,
    ) -> None:
        self.fields = dict(fields)
        self.streams, self.rows, self.directory = streams, rows, directory
        self.frozen, self.length = length is not None, rows if length is None else length
        full = streams * self.length
        self.expected = full if expected is None else min(full, expected)
        self._sparse = self._check_memory()
        self.count = np.zeros(streams, np.int64)
        self.floor = np.zeros(streams, np.int64)  # above 0 only after recovery from damage
        self._maps: list[mmap.mmap] = []
        self._words: dict[str, Tensor] = {}  # fields that lie in one block, as `_words_of` has it
        try:
            self.dirty = np.zeros((streams, 0 if self.frozen else rows), np.uint8)
            self.arrays = {name: self._allocate(name, field) for name, field in fields.items()}
        except (MemoryError, OverflowError, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.ENOMEM:
                raise
            raise ValueError(
                f"The system has no addresses for a replay of {full:,} steps ({error}). Choose a "
                f"smaller capacity; {self.expected:,} steps are expected."
            ) from error

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, all fields together."""
        return sum(field.nbytes for field in self.fields.values())

    @property
    def oldest(self) -> np.ndarray:
        """The oldest row that every stream still holds, [streams]."""
        return np.maximum(self.floor, self.count - self.rows)

    @property
    def filled(self) -> np.ndarray:
        """How many rows every stream holds, [streams]."""
        return self.count - self.oldest

    def append(self, stream: int, values: Mapping[str, Any]) -> None:
        """Write the next row of one stream."""
        row = int(self.count[stream])
        slot = row % self.rows
        for name, value in values.items():
            self.arrays[name][stream][slot] = value
        self.arrays[ROW][stream][slot] = row
        self.dirty[stream, slot] |= DATA_DIRTY | FLAGS_DIRTY
        self.count[stream] = row + 1

    def extend(self, stream: int, values: Mapping[str, Any], length: int) -> None:
        """Write the next rows of one stream, [T, ...] of every field."""
        skip = max(0, length - self.rows)  # rows that would be overwritten at once
        first, stop = int(self.count[stream]) + skip, int(self.count[stream]) + length
        numbers = np.arange(first, stop)
        for name, value in values.items():
            self.write(name, stream, first, value[skip:])
        self.write(ROW, stream, first, numbers)
        self.dirty[stream, numbers % self.rows] |= DATA_DIRTY | FLAGS_DIRTY
        self.count[stream] = stop

    def read(self, name: str, stream: int, start: int, out: np.ndarray) -> None:
        """Copy rows start, start + 1, ... of one stream into out, [T, ...].

        Raises ValueError where another process has overwritten them in the mapped files.
        """
        self._copy(name, stream, start, out)
        if not self.intact(stream, start, len(out)):
            raise _overwritten(stream, start, len(out))

    def take(
        self, names: Iterable[str], stream: np.ndarray, start: np.ndarray, length: int
    ) -> dict[str, Tensor]:
        """Copies [B, T, ...] of fields of the T rows from start [B] of stream [B].

        Raises ValueError where another process has overwritten them in the mapped files.
        """
        copies, whole = self.copies(names, stream, start, length)
        for b in np.flatnonzero(~whole)[:1]:
            raise _overwritten(int(stream[b]), int(start[b]), length)
        return copies

    def copies(
        self, names: Iterable[str], stream: np.ndarray, start: np.ndarray, length: int
    ) -> tuple[dict[str, Tensor], np.ndarray]:
        """What `take` returns, and whether no other process has overwritten those rows, [B]."""
        rows = start[:, None] + np.arange(length)  # [B, T]
        slots = torch.from_numpy((stream[:, None] * self.length + rows % self.rows).ravel())
        copies = {name: self._gather(name, stream, start, slots) for name in names}
        if not self.frozen or self.directory is None:
            return copies, np.ones(len(stream), bool)
        there = self._gather(ROW, stream, start, slots).numpy()  # after all copying
        return copies, (there.reshape(rows.shape) == rows).all(1)

    def intact(self, stream: int, start: int, length: int) -> bool:
        """Whether no other process has overwritten rows in the mapped files until now: a writer
        takes the row numbers away before it touches the rows."""
        if not self.frozen or self.directory is None:
            return True
        there = np.empty(length, np.int64)
        self._copy(ROW, stream, start, there)
        return np.array_equal(there, np.arange(start, start + length))

    def forget_overwritten(self) -> None:
        """Where another process writes the mapped files: let go of the rows that it has
        overwritten since, always the oldest ones."""
        if not self.frozen or self.directory is None:
            return
        for stream in range(self.streams):
            low, high = int(self.oldest[stream]), int(self.count[stream])
            while low < high:
                middle = (low + high) // 2
                if self.intact(stream, middle, 1):
                    high = middle
                else:
                    low = middle + 1
            self.floor[stream] = max(low, int(self.floor[stream]))

    def write(self, name: str, stream: int, start: int, values: np.ndarray) -> None:
        """Overwrite rows start, start + 1, ... of one stream with values, [T, ...]."""
        array, slot, length = self.arrays[name][stream], start % self.rows, len(values)
        head = min(length, self.rows - slot)
        array[slot : slot + head] = values[:head]
        if head < length:
            array[: length - head] = values[head:]

    def flag(self, stream: int, row: int) -> int:
        """The flag bits of one row."""
        return int(self.arrays["flags"][stream][row % self.rows])

    def add_flag(self, stream: int, row: int, bit: int) -> None:
        """Set one flag bit of a row that is already there."""
        if not self.flag(stream, row) & bit:
            self.arrays["flags"][stream][row % self.rows] |= bit
            self.dirty[stream, row % self.rows] |= FLAGS_DIRTY

    def write_priorities(self, stream: int, rows: np.ndarray, values: np.ndarray) -> None:
        """Set the priorities [B] of rows [B] of one stream."""
        self.arrays[PRIORITY][stream][rows % self.rows] = values
        self.dirty[stream, rows % self.rows] |= FLAGS_DIRTY

    def all_stored(self, stream: int, start: int, length: int) -> bool:
        """Whether rows start ... start + length - 1 have their columns."""
        flags = self.arrays["flags"][stream][np.arange(start, start + length) % self.rows]
        return bool((flags & STORED).all())

    def mark_stored(self, stream: int, start: int, length: int) -> None:
        """Note that rows start ... start + length - 1 have new values in their columns."""
        slots = np.arange(start, start + length) % self.rows
        self.arrays["flags"][stream][slots] |= STORED
        self.dirty[stream, slots] |= FLAGS_DIRTY

    def mark_all(self) -> None:
        """Note that every slot in use differs from the files."""
        self.dirty[:] = 0
        for stream, used in enumerate(np.minimum(self.count, self.rows).tolist()):
            self.dirty[stream, :used] = DATA_DIRTY | FLAGS_DIRTY

    def give_back(self) -> None:
        """Show again what the mapped files hold, in no private memory, except in rows that were
        changed since the last save."""
        if not self._maps:
            return
        kept = []
        for stream in range(self.streams):
            slots = np.flatnonzero(self.dirty[stream] & (DATA_DIRTY | FLAGS_DIRTY))
            if len(slots):
                values = {name: self.arrays[name][stream][slots] for name in self.fields}
                kept.append((stream, slots, values))
        for area in self._maps:
            area.madvise(mmap.MADV_DONTNEED)
        for stream, slots, values in kept:
            for name, rows in values.items():
                self.arrays[name][stream][slots] = rows

    def _gather(self, name: str, stream: np.ndarray, start: np.ndarray, slots: Tensor) -> Tensor:
        """Copies of one field, [B, T, ...]; slots [B * T]: where they lie in a block of all
        streams."""
        shape = (len(stream), len(slots) // max(1, len(stream)), *self.fields[name].shape)
        out = _empty(shape, self.fields[name].dtype)
        if name in self._words:  # one call, on all of torch's threads
            words = self._words[name]
            to = torch.from_numpy(out.reshape(-1).view(words.numpy().dtype))
            torch.index_select(words, 0, slots, out=to.view(-1, words.shape[1]))
        else:
            for b, (one, first) in enumerate(zip(stream.tolist(), start.tolist(), strict=True)):
                self._copy(name, one, first, out[b])
        return torch.from_numpy(out)

    def _copy(self, name: str, stream: int, start: int, out: np.ndarray) -> None:
        array, slot, length = self.arrays[name][stream], start % self.rows, len(out)
        head = min(length, self.rows - slot)
        out[:head] = array[slot : slot + head]
        if head < length:
            out[head:] = array[: length - head]

    def _allocate(self, name: str, field: Field) -> list[np.ndarray]:
        """Room for one field: a mapped array [length, ...] for each stream, or a part for each of
        one block in memory, which can then be copied from in one call."""
        shape = (self.length, *field.shape)
        if self.directory is None:  # the system hands out pages when first touched
            block = _zeros((self.streams, *shape), field.dtype, self._sparse)
            self._words[name] = _words_of(block, field)
            return list(block)
        arrays = [
            np.frombuffer(self._map(name, stream, self.length * field.nbytes), field.dtype)
            for stream in range(self.streams)
        ]
        if len(arrays) == 1:
            self._words[name] = _words_of(arrays[0], field)
        return [array.reshape(shape) for array in arrays]

    def _map(self, name: str, stream: int, size: int) -> mmap.mmap:
        """The file of one field and stream, mapped copy-on-write."""
        assert self.directory is not None
        self.directory.mkdir(parents=True, exist_ok=True)
        with disk.open_file(self.directory / file_name(name, stream), not self.frozen) as file:
            if not self.frozen and disk.size(file) < size:  # only ever longer
                _reserve(file.fileno(), size)
            area = mmap.mmap(
                file.fileno(),
                size,
                flags=mmap.MAP_PRIVATE | NORESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )
        self._maps.append(area)
        return area

    def _check_memory(self) -> bool:
        """Whether there is less memory than for all slots, of which not all will be used."""
        steps = self.streams * self.length if self.directory else self.expected
        need = steps * self.row_bytes
        what = f"Replay of {steps:,} steps x {self.row_bytes:,} bytes needs {need / 1e9:.1f} GB"
        if self.directory is None:
            free = available_memory()
            if free is not None and need > free:
                raise ValueError(
                    f"{what}, but only {free / 1e9:.1f} GB of memory are free. Choose a smaller "
                    f"capacity (at most {free // self.row_bytes:,}) or storage=disk."
                )
            return free is not None and self.streams * self.length * self.row_bytes > free
        if not self.frozen:
            self.directory.mkdir(parents=True, exist_ok=True)
            there = sum(f.stat().st_blocks * 512 for f in self.directory.glob("*.bin"))
            free = shutil.disk_usage(self.directory).free + there
            if need > free:
                raise ValueError(
                    f"{what}, but only {free / 1e9:.1f} GB of disk are free at {self.directory}. "
                    f"Choose a smaller capacity (at most {free // self.row_bytes:,}) or another "
                    "directory."
                )
        return False


def _zeros(shape: tuple[int, ...], dtype: np.dtype, sparse: bool) -> np.ndarray:
    """Zeros in memory; sparse: they may be more than there is of it, as long as few are used."""
    size = math.prod(shape) * dtype.itemsize
    if not sparse or not size:
        return np.zeros(shape, dtype)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
    return np.frombuffer(mmap.mmap(-1, size, flags=flags), dtype).reshape(shape)


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array for a copy; where a GPU is in use, one that `Batch.to` need not wait for."""
    if not torch.cuda.is_initialized():
        return np.empty(shape, dtype)
    # PyTorch keeps pinned memory, and hands it out again when all copies from it are done.
    like = torch.from_numpy(np.empty(0, dtype)).dtype
    return torch.empty(shape, dtype=like, pin_memory=True).numpy()


def _words_of(array: np.ndarray, field: Field) -> Tensor:
    """The same memory as rows [N, W] of the widest numbers that fit one: copying does not care
    what they mean, and is quicker with few of them."""
    word = next(w for w in WORDS if field.nbytes % w.itemsize == 0)
    return torch.from_numpy(array.reshape(-1).view(word).reshape(-1, field.nbytes // word.itemsize))


def _overwritten(stream: int, start: int, length: int) -> ValueError:
    return ValueError(
        f"Rows {start} to {start + length - 1} of stream {stream} were overwritten by "
        "the run that records them. Open the replay again to see the newer rows."
    )


def _reserve(file: int, size: int) -> None:
    """Make a file this long with its blocks allocated, where the file system can: a disk that
    fills up later would otherwise stop a commit half-way."""
    try:
        os.posix_fallocate(file, 0, size)
    except AttributeError:  # not on this system
        os.truncate(file, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.truncate(file, size)
