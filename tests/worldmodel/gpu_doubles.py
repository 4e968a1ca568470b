"""What the tests of Triton kernels share: a GPU where there is one, else a CPU that plays it.

On a CPU, Triton's interpreter runs the kernels; it must be chosen (TRITON_INTERPRET=1) before
Triton is imported, hence in a process of its own, which `test_gpu.py` starts.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from worldmodel.accel import fused
from worldmodel.rssm import scan

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRITON = importlib.util.find_spec("triton") is not None


def taken(*tensors: Tensor) -> bool:
    """`fused.on_gpu`, with a CPU for a GPU."""
    return all(x.dtype in fused.GPU_TYPES and x.numel() for x in tensors)


def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on tensors on a CPU are taken for tensors on a GPU."""
    for module in (fused, scan):
        monkeypatch.setattr(module, "in_loops", lambda *tensors: False)
        monkeypatch.setattr(module, "on_gpu", taken)


@contextlib.contextmanager
def launched(patch: pytest.MonkeyPatch, run: bool = True) -> Iterator[list[str]]:
    """The names of the kernels that are launched meanwhile (and run, or only noted)."""
    from worldmodel.accel import gpu
    from worldmodel.rssm import gpu as rssm_gpu

    names: list[str] = []
    launch = gpu.launch

    def noted(kernel, *args, **options):  # type: ignore[no-untyped-def]
        names.append(kernel.fn.__name__)
        if run:
            launch(kernel, *args, **options)

    with patch.context() as inside:
        inside.setattr(gpu, "launch", noted)
        inside.setattr(rssm_gpu, "launch", noted)
        yield names
