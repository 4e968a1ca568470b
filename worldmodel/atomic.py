"""Files and folders that are replaced as a whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(final: Path) -> Iterator[Path]:
    """A fresh folder to write to, which takes the place of `final` when the block ends well.

    Whoever looks sees the old folder or the new one, never a part; after an error the old one is
    as it was. It is killed between two renames at worst: then the old one stands beside, under its
    name with a dot before and ".old" behind.
    """
    fresh, old = (final.with_name(f".{final.name}.{word}") for word in ("new", "old"))
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            os.replace(final, old)
        os.replace(fresh, final)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


@contextmanager
def replaced_file(final: Path) -> Iterator[Path]:
    """A name of the same suffix to write to, whose file takes the place of `final` when the block
    ends well; after an error the old file is as it was, and nothing of the new one is left."""
    fresh = final.with_name(f".{final.stem}.new{final.suffix}")
    final.parent.mkdir(parents=True, exist_ok=True)
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
