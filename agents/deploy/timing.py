"""Time as something that can be handed in, and what keeps a control loop from pausing: garbage,
threads, and the C library's memory."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from worldmodel.accel import devices

SWITCH_S = 0.0005  # how long one Python thread may keep the others from the lock; usually 5 ms


class Clock(Protocol):
    """Seconds that never jump, and waiting for some of them to pass."""

    def now(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Seconds since some moment; the same for every process of the machine."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait at least so long."""
        if seconds > 0:
            time.sleep(seconds)


def calm() -> None:
    """One thread for torch, freed memory kept, quick handover between Python's threads."""
    torch.set_num_threads(1)
    devices.keep_freed_memory()
    sys.setswitchinterval(SWITCH_S)


@contextmanager
def no_garbage_pauses() -> Iterator[None]:
    """What is alive now is never searched again, and garbage is collected only by `Rest`."""
    was = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was:
            gc.enable()


class Rest:
    """Collects garbage in what is left of a cycle, never more than fits.

    Each generation's longest duration is remembered; it is collected when twice that is left.
    every: cycles between two collections of each generation.
    """

    def __init__(self, every: tuple[int, int, int] = (50, 500, 5000)) -> None:
        self._every = every
        self._longest = [0.001, 0.002, 0.01]
        self._cycles = 0
        self._due: set[int] = set()

    def __call__(self, left: float, now: Callable[[], float]) -> None:
        """left: seconds until the next cycle. now: the clock's `now`."""
        self._cycles += 1
        self._due |= {g for g, every in enumerate(self._every) if self._cycles % every == 0}
        if gc.isenabled():  # garbage is collected anyway
            return
        for generation in sorted(self._due, reverse=True):
            if left > 2 * self._longest[generation]:
                start = now()
                gc.collect(generation)
                took = now() - start
                self._longest[generation] = max(0.9 * self._longest[generation], took)
                self._due -= set(range(generation + 1))  # a collection takes the younger along
                return
