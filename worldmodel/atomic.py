"""Files and folders that are replaced as a whole."""

from __future__ import annotations

import errno
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WORDS = ("new", "old")


@contextmanager
def replaced(final: Path) -> Iterator[Path]:
    """A fresh folder to write to, which takes the place of `final` when the block ends well.

    Whoever looks sees the old folder or the new one, never a part; after an error the old one is
    as it was. Of two processes that write at once each has a folder of its own to write to, and the
    later one's stays. It is killed between two renames at worst: then the old one stands beside,
    under its name with a dot before and ".old" and a number behind.
    """
    _sweep(final)
    fresh, old = (final.with_name(f".{final.name}.{word}-{os.getpid()}") for word in WORDS)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
        _swap(fresh, final, old)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _swap(fresh: Path, final: Path, old: Path) -> None:
    """Put `fresh` in the place of `final`, as often as another process does the same meanwhile."""
    while True:
        shutil.rmtree(old, ignore_errors=True)
        with suppress(FileNotFoundError):
            os.replace(final, old)
        try:
            os.replace(fresh, final)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                continue
            raise
        shutil.rmtree(old, ignore_errors=True)
        return


def _sweep(final: Path) -> None:
    """Remove what processes that were killed have left; an old folder only if it was replaced."""
    for word in WORDS if final.exists() else WORDS[:1]:
        for left in _left(final.parent, f".{final.name}.{word}-"):
            shutil.rmtree(left, ignore_errors=True)


def _left(folder: Path, start: str, end: str = "") -> Iterator[Path]:
    """What lies there under names of `start`, the number of a process that is gone, and `end`."""
    for left in folder.glob(f"{glob.escape(start)}*{glob.escape(end)}"):
        number = left.name.removesuffix(end).rpartition("-")[2]
        if number.isdigit() and _gone(int(number)):
            yield left


def _gone(process: int) -> bool:
    """Whether no such process runs here; where that cannot be asked harmlessly, False."""
    if os.name != "posix":
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    return False


@contextmanager
def replaced_file(final: Path) -> Iterator[Path]:
    """A name of the same suffix to write to, whose file takes the place of `final` when the block
    ends well; after an error the old file is as it was, and nothing of the new one is left. Each of
    several processes has a name of its own, and the later one's file stays."""
    start = f".{final.stem}.new-"
    final.parent.mkdir(parents=True, exist_ok=True)
    for left in _left(final.parent, start, final.suffix):
        left.unlink(missing_ok=True)
    fresh = final.with_name(f"{start}{os.getpid()}{final.suffix}")
    try:
        yield fresh
        os.replace(fresh, final)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def is_full(error: BaseException | None) -> bool:
    """Whether an error says that a disk, or what somebody may use of it, is full, itself or as what
    led to it: PyTorch's zip writer hides the reason in a RuntimeError."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False
