"""Ring buffers: per environment and key one preallocated array, in memory or memory-mapped.

Rows are named by their absolute number, counted from the first row that a stream ever received.
Row r lies in slot r % rows; it is still there while oldest <= r < count.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from worldmodel.replay.schema import LATENT, ROW, Field

DATA_DIRTY, FLAGS_DIRTY = 1, 2  # a whole row; its flags or its stored latent only


def file_name(field: str, stream: int) -> str:
    """The file of one field of one stream; observation names may hold any character."""
    return f"{quote(field, safe='')}.{stream:04d}.bin"


class Ring:
    """`streams` rings of `rows` rows each; `fields` describes a row.

    directory: where the memory-mapped files lie, or None to keep the rows in memory.
    Raises ValueError when memory or disk cannot hold the whole ring.
    """

    def __init__(
        self, fields: Mapping[str, Field], streams: int, rows: int, directory: Path | None
    ) -> None:
        self.fields = dict(fields)
        self.streams, self.rows, self.directory = streams, rows, directory
        self._check_room()
        self.count = np.zeros(streams, np.int64)
        self.floor = np.zeros(streams, np.int64)  # above 0 only after recovery from a crash
        self.dirty = np.zeros((streams, rows), np.uint8)  # what the last save has not seen
        self._maps: list[np.memmap] = []
        self.arrays = {
            name: [self._allocate(name, field, n) for n in range(streams)]
            for name, field in self.fields.items()
        }

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
        # A process killed in here leaves -1, and the half-written row is never believed.
        self.arrays[ROW][stream][slot] = -1
        for name, value in values.items():
            self.arrays[name][stream][slot] = value
        self.arrays[ROW][stream][slot] = row
        self.dirty[stream, slot] = DATA_DIRTY | FLAGS_DIRTY
        self.count[stream] = row + 1

    def read(self, name: str, stream: int, start: int, out: np.ndarray) -> None:
        """Copy rows start, start + 1, ... of one stream into out, [T, ...]."""
        array, slot, length = self.arrays[name][stream], start % self.rows, len(out)
        head = min(length, self.rows - slot)
        out[:head] = array[slot : slot + head]
        if head < length:
            out[head:] = array[: length - head]

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

    def mark_latent(self, stream: int, start: int, length: int) -> None:
        """Note that rows start ... start + length - 1 have a new stored latent."""
        slots = np.arange(start, start + length) % self.rows
        self.arrays["flags"][stream][slots] |= LATENT
        self.dirty[stream, slots] |= FLAGS_DIRTY

    def flush(self) -> None:
        """Bring memory-mapped rows to the disk."""
        for array in self._maps:
            array.flush()

    def _allocate(self, name: str, field: Field, stream: int) -> np.ndarray:
        shape = (self.rows, *field.shape)
        if self.directory is None:
            return np.zeros(shape, field.dtype)  # the system hands out pages when first touched
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / file_name(name, stream)
        with path.open("ab") as file:  # only ever longer: what lies there may be worth loading
            if file.tell() < self.rows * field.nbytes:
                _reserve(file.fileno(), self.rows * field.nbytes)
        array = np.memmap(path, field.dtype, "r+", shape=shape)
        self._maps.append(array)
        return np.asarray(array)  # slices of a plain array cost less than those of a memmap

    def _check_room(self) -> None:
        steps = self.streams * self.rows
        need = steps * self.row_bytes
        what = f"Replay of {steps:,} steps x {self.row_bytes:,} bytes needs {need / 1e9:.1f} GB"
        if self.directory is None:
            free = available_memory()
            if free is not None and need > free:
                raise ValueError(
                    f"{what}, but only {free / 1e9:.1f} GB of memory are free. Choose a smaller "
                    f"capacity (at most {free // self.row_bytes:,}) or storage=disk."
                )
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        there = sum(f.stat().st_blocks * 512 for f in self.directory.glob("*.bin"))
        free = shutil.disk_usage(self.directory).free + there
        if need > free:
            raise ValueError(
                f"{what}, but only {free / 1e9:.1f} GB of disk are free at {self.directory}. "
                f"Choose a smaller capacity (at most {free // self.row_bytes:,}) or another "
                "directory."
            )


def available_memory() -> int | None:
    """Bytes of memory that this process could still take, or None where nobody can tell."""
    limits = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    except OSError:
        if "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", {}):
            limits.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):  # no control group, or "max": no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits, default=None)


def _reserve(file: int, size: int) -> None:
    """Make a file this long with its blocks allocated, where the file system can: a disk that
    fills up later would otherwise kill the process at a write to the mapped memory."""
    try:
        os.posix_fallocate(file, 0, size)
    except AttributeError:  # not on this system
        os.truncate(file, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.truncate(file, size)
