"""Devices, precision and threads."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from typing import Any

import torch

from worldmodel.config import ConfigError

PRECISIONS = ("bfloat16", "float32")
MOST_THREADS = 1024


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" takes a CUDA GPU where there is one, else the CPU.

    Raises ConfigError for a name that torch does not know or a device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"Unknown device '{name}'. Allowed: auto, cpu, cuda, cuda:N, mps."
        ) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"Device '{name}' is not there: {torch.cuda.device_count()} CUDA GPUs are visible. "
            "Use device=cpu or device=auto, or look at `make doctor`."
        )
    return device


def set_threads(threads: int) -> int:
    """Use this many CPU threads inside operations (0: leave torch's choice); returns the number.

    Raises ConfigError for more than any machine has: the process would die in its first operation.
    """
    if not 0 <= threads <= MOST_THREADS:
        raise ConfigError(f"threads is {threads}; allowed: 0 (torch's choice) to {MOST_THREADS}.")
    if threads:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def set_deterministic(wanted: bool) -> None:
    """Allow only operations that give the same bits for the same input, or any again.

    On a CPU, with the same number of threads, they all do; on a GPU some get slower, and one that
    has no such form raises RuntimeError. A GPU's matrix library reads its setting at the first
    product of the process, so call this before that.
    Where any will do, a GPU tries several for each convolution, once, and keeps the quickest.
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = not wanted


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory instead of handing it back to the system.

    On a CPU every large temporary is otherwise mapped, zeroed and unmapped anew; this takes a
    sixth off an update (docs/RESULTS.md). Returns whether the C library took it (glibc only).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # the options' numbers in malloc.h
    options = {mmap_threshold: 1 << 30, trim_threshold: 2**31 - 1, top_pad: 64 << 20}
    return all(mallopt(option, value) == 1 for option, value in options.items())


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that no more memory was to be had, on a GPU or the CPU."""
    # PyTorch's CPU allocator has no error type of its own.
    return isinstance(
        error, MemoryError | torch.OutOfMemoryError
    ) or "can't allocate memory" in str(error)


def autocast(
    device: torch.device, precision: str, on_cpu: str = "float32"
) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision ("bfloat16") or float32: `precision` on a CUDA GPU, `on_cpu` on a CPU; many
    CPUs are slower with bfloat16."""
    for one in (precision, on_cpu):
        if one not in PRECISIONS:
            raise ValueError(f"Unknown precision '{one}'. Known: bfloat16, float32.")
    if device.type == "cpu" and on_cpu == "bfloat16":
        return torch.autocast("cpu", torch.bfloat16)
    if device.type == "cuda":
        if precision == "bfloat16":
            return torch.autocast("cuda", torch.bfloat16)
        torch.backends.cudnn.allow_tf32 = False  # float32 in convolutions, too, as in products
    return contextlib.nullcontext()
