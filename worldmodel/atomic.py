"""Folders that are replaced as a whole."""

from __future__ import annotations

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
