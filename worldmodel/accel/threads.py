"""Loops in machine code, shared by the threads that torch itself runs on."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
ALONE = 1 << 15  # numbers that one thread handles sooner than it finds a second one


@cache
def _team() -> Any:
    """`GOMP_parallel` of the OpenMP library that torch itself runs on, or None.

    Its threads wait for the next operation by spinning. Threads of our own would have to share the
    cores with them, which takes longer than doing without.
    """
    own = Path(torch.__file__).parent / "lib"
    for library in (*sorted(own.glob("libgomp*.so*")), "libgomp.so.1"):
        try:
            return ctypes.CDLL(str(library)).GOMP_parallel
        except (OSError, AttributeError):
            continue
    return None


def ranges(count: int, numbers: int) -> list[tuple[int, int]]:
    """[0, count) in as many ranges as torch has threads; in one where there is little to do."""
    threads = min(torch.get_num_threads(), count) if numbers > ALONE else 1
    if threads == 1:
        return [(0, count)]
    edges = [count * i // threads for i in range(threads + 1)]
    return list(itertools.pairwise(edges))


def share(
    kernel: Any, parts: list[tuple[int, int]], *args: Any, own: Sequence[np.ndarray] = ()
) -> None:
    """kernel(first, last, *args, *own) for every part, side by side; `own` has a row for each."""
    if len(parts) == 1:
        kernel(*parts[0], *args, *(array[0] for array in own))
        return
    numbers, failures = itertools.count(), []

    def work(_: Any) -> None:  # in each thread of the team, however many there are
        try:
            while (i := next(numbers)) < len(parts):
                kernel(*parts[i], *args, *(array[i] for array in own))
        except BaseException as error:  # would be lost in the library
            failures.append(error)

    team = _team()
    if team is None:
        work(None)
    else:
        team(_TASK(work), None, len(parts), 0)
    if failures:
        raise failures[0]


def sums_for(parts: list[tuple[int, int]], width: int) -> np.ndarray:
    """Zeros [parts, width] to add to, each row on cache lines of its own."""
    return np.zeros((len(parts), width + 32), np.float32)[:, :width]


def array_of(x: Tensor) -> np.ndarray:
    return x.detach().numpy()
