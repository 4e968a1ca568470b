"""One environment's observation in memory that two processes see."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

ALIGN = 64  # bytes; every key begins at a multiple


class SharedRow:
    """A dict of arrays over a file that both processes map into their memory.

    path: of a file that another process made; None makes one. `unlink` once both have it: the
    memory lives on without its name, and nothing is left behind however the processes end.
    Raises OSError where there is no room for it.
    """

    def __init__(self, space: gymnasium.Space[Any], path: str | None = None) -> None:
        assert isinstance(space, spaces.Dict)
        places: dict[str, int] = {}
        size = 0
        for key, inner in space.spaces.items():
            places[key] = size
            assert inner.shape is not None
            nbytes = int(np.prod(inner.shape)) * np.dtype(inner.dtype).itemsize
            size += -(-max(nbytes, 1) // ALIGN) * ALIGN
        handle, self.path = _made(size) if path is None else (os.open(path, os.O_RDWR), path)
        try:
            self._memory = mmap.mmap(handle, size)
        finally:
            os.close(handle)
        self.arrays = {
            key: np.frombuffer(
                self._memory, inner.dtype, int(np.prod(inner.shape or ())), places[key]
            ).reshape(inner.shape or ())
            for key, inner in space.spaces.items()
        }

    def write(self, obs: Mapping[str, np.ndarray]) -> None:
        """Raises ValueError where an array does not fit."""
        for key, array in self.arrays.items():
            array[...] = obs[key]

    def unlink(self) -> None:
        """Take the file's name away."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)


def _made(size: int) -> tuple[int, str]:
    """A new file of that size, in memory where there is room."""
    for folder in ("/dev/shm", None):
        if folder is not None and not os.path.isdir(folder):
            continue
        handle, path = tempfile.mkstemp(prefix="worldmodel-env-", dir=folder)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle, 0, size)  # a promise; a hole would end in SIGBUS
            else:
                os.truncate(handle, size)
            return handle, path
        except OSError:
            os.close(handle)
            os.unlink(path)
            if folder is None:
                raise
    raise AssertionError("unreachable")
