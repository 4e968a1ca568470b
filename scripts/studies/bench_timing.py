"""Clocks for the measures of speed: windows, phases of a live object, and what the machine can do.

A phase is a method of the object that is measured, wrapped for the time of the measurement; time
and arithmetic go to the innermost one. The program is measured as it is, never a copy of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from worldmodel.config import ConfigError, RunError

REST = "rest"  # the phase of what no wrapped method covers


class Clock:
    """Seconds on a device: a GPU is waited for before the clock is read."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self) -> float:
        """Seconds by the wall, once all work that was asked for is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class Window(NamedTuple):
    """Seconds by the wall, and of this process's processor time, of one window."""

    wall: float
    cpu: float


def timed(clock: Callable[[], float], work: Callable[[], object], count: int = 1) -> Window:
    """`count` calls of `work`; the time of one."""
    spent, began = time.process_time(), clock()
    for _ in range(count):
        work()
    return Window((clock() - began) / count, (time.process_time() - spent) / count)


def summary(windows: Sequence[Window]) -> dict[str, Any]:
    """Median, quickest and quartiles of the windows, and the median of the processor time, all in
    seconds. The quickest, and the processor time, tell on a busy machine what a quiet one does."""
    low, middle, high = np.quantile([window.wall for window in windows], [0.25, 0.5, 0.75])
    return {
        "seconds": rounded(middle),
        "quickest_s": rounded(min(window.wall for window in windows)),
        "quartiles_s": [rounded(low), rounded(high)],
        "cpu_s": rounded(statistics.median(window.cpu for window in windows)),
    }


def rate(work: Callable[[], object], seconds: float) -> float:
    """Calls per second, over at least so many seconds."""
    done, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds or not done:
        work()
        done += 1
    return done / passed


def rounded(value: float, digits: int = 4) -> float:
    """To so many digits that mean something."""
    return float(f"{float(value):.{digits}g}")


@dataclass
class Spent:
    """What one phase took, over all its calls."""

    wall: float = 0.0
    cpu: float = 0.0
    flop: float = 0.0
    calls: int = 0


@dataclass
class Phases:
    """Where the time goes: wraps methods and gives all time to the innermost one.

        with Phases(clock) as phases:
            phases.wrap(agent.model, "encoder", "encoder")
            ...                                       then run what is to be measured

    flops: reads how many operations were counted so far. Leaving puts everything back.
    """

    clock: Callable[[], float]
    flops: Callable[[], float] = lambda: 0.0
    spent: dict[str, Spent] = field(default_factory=dict)
    _stack: list[str] = field(default_factory=list)
    _mark: tuple[float, float, float] = (0.0, 0.0, 0.0)
    _undo: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Phases:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def wrap(self, owner: Any, name: str, phase: str) -> None:
        """Time the method `name` of an object, a module or a class as `phase`; where it is a
        module of PyTorch, its `forward`."""
        method = getattr(owner, name)
        if isinstance(method, torch.nn.Module):
            owner, name, method = method, "forward", method.forward
        self.spent.setdefault(phase, Spent())

        def instead(*args: Any, **kwargs: Any) -> Any:
            if not self._stack:  # outside of what is measured
                return method(*args, **kwargs)
            with self.inside(phase):
                return method(*args, **kwargs)

        if name in vars(owner):
            self._undo.callback(setattr, owner, name, vars(owner)[name])
        else:
            self._undo.callback(delattr, owner, name)
        setattr(owner, name, instead)

    @contextlib.contextmanager
    def inside(self, phase: str) -> Iterator[None]:
        """Give what is done here, less the phases within it, to a phase."""
        self._book()
        self._stack.append(phase)
        self.spent.setdefault(phase, Spent()).calls += 1
        try:
            yield
        finally:
            self._book()
            self._stack.pop()

    def check_entered(self) -> None:
        """RunError where a wrapped method was never called: the program has changed, and the
        phases would not mean what they say."""
        missing = [name for name, spent in self.spent.items() if not spent.calls]
        if missing:
            raise RunError(
                f"These phases never ran: {', '.join(missing)}. The program calls other methods "
                "than those that are wrapped; name the new ones where the phases are set."
            )

    def _book(self) -> None:
        """What passed since the last change of phase belongs to the innermost one."""
        now = (self.clock(), time.process_time(), self.flops())
        if self._stack:
            spent = self.spent[self._stack[-1]]
            spent.wall += now[0] - self._mark[0]
            spent.cpu += now[1] - self._mark[1]
            spent.flop += now[2] - self._mark[2]
        self._mark = now


def matmul_peak(device: torch.device, precision: str, windows: int = 30) -> float:
    """Operations per second of a large matrix product, the best of several: what the arithmetic
    of this device and number of threads can reach. A product of [n, n] counts as 2 n^3."""
    gpu = device.type == "cuda"
    dtype = torch.bfloat16 if gpu and precision == "bfloat16" else torch.float32
    n, repeat = (8192, 10) if gpu else (1024, 1)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    out, clock = torch.empty_like(a), Clock(device)
    work = partial(torch.matmul, a, b, out=out)
    return 2.0 * n**3 / min(timed(clock, work, repeat).wall for _ in range(windows + 1))


def resident() -> int:
    """Bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class PeakMemory:
    """The most memory in use, bytes: of the GPU, or of this process and what it had before."""

    def __init__(self, device: torch.device) -> None:
        gc.collect()
        # What the C library keeps of freed memory would be used again unseen.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        self.device, self.before = device, resident()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
            return
        with contextlib.suppress(OSError):  # without it: the peak of the whole process
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        """Bytes at the highest moment since this object was made."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return resident()


def in_own_process(work: Callable[..., Any], *args: Any) -> Any:
    """What `work(*args)` returns in a process of its own, whose memory nothing else has touched.

    Raises ConfigError and RunError as `work` does, and RunError where the process died.
    """
    # A process that has asked for a GPU cannot hand that on by forking.
    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_send_result, args=(theirs, work, args))  # type: ignore[attr-defined]
    process.start()
    theirs.close()
    try:
        result = ours.recv()
    except EOFError:
        process.join()
        raise RunError(
            f"The process of a measurement ended with the code {process.exitcode}; -9 is what the "
            "system does when memory runs out. Choose smaller sizes."
        ) from None
    process.join()
    if isinstance(result, ConfigError | RunError):
        raise result
    return result


def _send_result(pipe: Any, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        pipe.send(work(*args))
    except RunError as error:
        pipe.send(error)
    except ValueError as error:  # whatever the package finds impossible
        pipe.send(ConfigError(str(error)))
