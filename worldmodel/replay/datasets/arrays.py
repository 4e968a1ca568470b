"""Arrays out of files that came from anywhere: NPZ archives and HDF5 groups.

Nothing in them is executed, nothing outside of the file is opened, and no more memory is asked for
than there is: what a file says of its arrays is looked at before they are read.
"""

from __future__ import annotations

import itertools
import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.replay.memory import available_memory

# What NumPy, zipfile and h5py raise for files that they cannot read, much of it by oversight.
UNREADABLE = (
    OSError, ValueError, TypeError, LookupError, EOFError, SyntaxError, OverflowError, MemoryError,
    RuntimeError, tokenize.TokenError, zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error,
)  # fmt: skip
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
OBJECTS = np.array("Python objects, which are never loaded")  # instead of them


class Unreadable(ValueError):
    """A file of arrays cannot be read; the message is the reason alone."""


def read_npz(path: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an NPZ file by name, or those of the given names that it has.

    What holds Python objects is never loaded: OBJECTS stands for it. Raises Unreadable where the
    file is no archive, or does not fit into the memory.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise Unreadable("it is no NPZ archive")
            wanted = [name for name in file.files if names is None or name in names]
            objects = _check_archive(file.zip, wanted)
            arrays = {name: OBJECTS if name in objects else file[name] for name in wanted}
    except Unreadable:
        raise
    except UNREADABLE as error:
        raise Unreadable(_reason(error)) from error
    odd = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    if odd:
        raise Unreadable(f"'{odd[0]}' is no array")
    return arrays


def npz_names(path: Path) -> list[str]:
    """The names of the arrays of an NPZ file. Raises Unreadable where it is none."""
    try:
        with zipfile.ZipFile(path) as file:
            return [name.removesuffix(".npy") for name in file.namelist()]
    except UNREADABLE as error:
        raise Unreadable(_reason(error)) from error


def _check_archive(archive: Any, names: Collection[str]) -> set[str]:
    """Every array is as large as its entry, and together they fit into the memory; returns the
    names of those that hold Python objects."""
    total, objects = 0, set()
    for entry in archive.infolist():
        if entry.filename.removesuffix(".npy") not in names:
            continue
        with archive.open(entry) as file:
            version = np.lib.format.read_magic(file)
            if version not in HEADERS:
                raise Unreadable(f"'{entry.filename}' is of an unknown version {version}")
            shape, _, dtype = HEADERS[version](file)
        need = math.prod(shape) * dtype.itemsize
        if dtype.hasobject:
            objects.add(entry.filename.removesuffix(".npy"))
            continue
        if any(n < 0 for n in shape) or need > entry.file_size:
            raise Unreadable(f"'{entry.filename}' says that it is larger than it is")
        total += need
    _check_memory(total)
    return objects


def _check_memory(need: int) -> None:
    free = available_memory()
    if free is not None and need > free:
        raise Unreadable(f"it needs {need / 1e9:.1f} GB of memory, of which {free / 1e9:.1f} are "
                         "free")  # fmt: skip


def h5_episodes(
    path: Path, wanted: Callable[[Iterable[str]], bool]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """For every group of an HDF5 file whose names are `wanted`: the group's own name, and its
    arrays by theirs ("obs/image").

    Links are not followed, be it to other places or to other files. Raises Unreadable where the
    file is damaged, keeps its arrays elsewhere, or does not fit into the memory.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            for group in _groups(file, wanted):
                if group.name == "/_meta" and "_insertion_idx" in file.attrs:
                    yield from _buffers(file, _arrays(group))
                else:
                    yield group.name, _arrays(group)
    except Unreadable:
        raise
    except UNREADABLE as error:
        raise Unreadable(_reason(error)) from error


def _groups(
    group: Any, wanted: Callable[[Iterable[str]], bool], above: tuple[Any, ...] = ()
) -> Iterator[Any]:
    """The groups below (or this one) whose names are wanted, in natural order."""
    import h5py

    if wanted(group):
        yield group
        return
    place = h5py.h5o.get_info(group.id).addr
    if place in above:
        raise Unreadable(f"its group '{group.name}' lies within itself")
    for name in sorted(group, key=natural):
        own = isinstance(group.get(name, getlink=True), h5py.HardLink)
        if own and group.get(name, getclass=True) is h5py.Group:
            yield from _groups(group[name], wanted, (*above, place))


def _arrays(group: Any) -> dict[str, np.ndarray]:
    import h5py

    found: dict[str, Any] = {}

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item

    group.visititems(note)  # every object once, and no links
    for name, item in found.items():
        if item.external is not None or item.is_virtual:
            raise Unreadable(f"its array '{name}' lies in other files, which are not opened")
    _check_memory(sum(item.size * item.dtype.itemsize for item in found.values() if item.size))
    # An array of a null space has no shape and no values.
    return {name: np.asarray(item[()]) for name, item in found.items() if item.shape is not None}


def _buffers(file: Any, arrays: dict[str, np.ndarray]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The written rows of Tianshou's ring buffers, from the oldest on; the file holds all rows that
    there is room for. A vector of buffers lays them end to end."""
    room = len(next(iter(arrays.values())))
    several = "_offset" in file
    offsets = [int(i) for i in np.ravel(file["_offset"][()])] if several else [0]
    lengths = np.ravel(file["_lengths"][()]) if several else [file.attrs["_size"]]
    last = np.ravel(file["last_index"][()])
    for number, (start, stop) in enumerate(itertools.pairwise([*offsets, room])):
        length = int(lengths[number])
        rows = np.arange(start, start + length)
        if length == stop - start:
            rows = np.roll(rows, -(int(last[number]) + 1 - start))
        if length:
            yield f"buffer {number}", {name: value[rows] for name, value in arrays.items()}


def natural(name: str) -> list[tuple[int, Any]]:
    """A key for sorting, by which "episode_2" comes before "episode_12"."""
    parts: list[tuple[int, Any]] = []
    digits = ""
    for letter in f"{name}\0":
        if letter in "0123456789":
            digits += letter
            continue
        if digits:
            parts.append((0, int(digits[:4000])))
            digits = ""
        parts.append((1, letter))
    return parts


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
