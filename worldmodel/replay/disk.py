"""The few disk operations that a saved replay is made of; nothing else here writes or removes.

Folders may come from outside: only regular files are opened, and links are not followed.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import Any


def open_file(path: Path, write: bool = False) -> io.FileIO:
    """A regular file, unbuffered; for writing it is created where it is missing.

    Raises ValueError where something else bears that name, and OSError as the system does.
    """

    def opener(name: str, _: int) -> int:
        flags = os.O_RDWR | os.O_CREAT if write else os.O_RDONLY
        flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        return os.open(name, flags | getattr(os, "O_CLOEXEC", 0), 0o644)

    if path.is_symlink() or path.is_dir():
        raise ValueError(f"{path} is not a regular file; replay folders hold no links or folders.")
    file = io.FileIO(str(path), "r+" if write else "r", opener=opener)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError(f"{path} is not a regular file; replay folders hold nothing else.")
    return file


def size(file: io.FileIO) -> int:
    """How many bytes the file has."""
    return os.fstat(file.fileno()).st_size


def read(file: io.FileIO, out: Any, offset: int) -> None:
    """Fill a writable buffer from the file. Raises ValueError where the file ends too early."""
    view = memoryview(out).cast("B")
    file.seek(offset)
    while len(view):
        got = file.readinto(view)
        if not got:
            raise ValueError(f"{file.name!r} ends {len(view):,} bytes too early")
        view = view[got:]


def write(file: io.FileIO, data: Any, offset: int) -> None:
    """Write a whole buffer at a place of the file."""
    view = memoryview(data).cast("B")
    file.seek(offset)
    while len(view):
        view = view[file.write(view) :]


def sync(file: io.FileIO) -> None:
    """Return when what was written is on the disk."""
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Return when the names of a folder are on the disk, where the system can promise that."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace(old: Path, new: Path) -> None:
    """Rename a file; whoever looks sees either the old `new` or the new one."""
    os.replace(old, new)


def remove(path: Path) -> None:
    """Remove a file that may be gone already."""
    path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a small file as a whole: a reader sees the old text or the new, never a part."""
    fresh = path.with_suffix(".new")
    remove(fresh)
    with open_file(fresh, write=True) as file:
        write(file, text.encode(), 0)
        sync(file)
    replace(fresh, path)
    sync_folder(path.parent)
