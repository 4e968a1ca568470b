"""A function of tensors as one launch on a CUDA GPU, whose results come home while it goes on.

An update of a small network is thousands of kernels, and to launch one takes the host longer than
to run it takes the GPU. A CUDA graph keeps the whole sequence and launches it at once. Python runs
only while the sequence is recorded, so that a function which is to be recorded

    keeps all that changes from call to call in tensors on the device, and writes it in place
    reads none of them: no `if`, no index, no number that depends on what a tensor holds
    makes no tensors from numbers of the host, but by filling

On other devices the same object calls the function as it is.
"""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Function = Callable[[Tensors], Tensors]


class OnItsWay:
    """Tensors that a device is still computing, and their copies on the host."""

    def __init__(self, tensors: Tensors) -> None:
        self._host = {name: _home(x) for name, x in tensors.items()}
        self._event: torch.cuda.Event | None = None
        if any(x.is_cuda for x in tensors.values()):
            self._event = torch.cuda.Event()
            self._event.record()

    def wait(self) -> Tensors:
        """The copies, once they are whole."""
        if self._event is not None:
            self._event.synchronize()
        return self._host


class Recorded:
    """`function(inputs)` for tensors by name, always of the same shapes and types.

    warmup: the first calls, which run the function as it is: libraries choose their algorithms and
    memory meanwhile. The next call records it; from then on it is replayed, and Python within it
    no longer runs. Where recording fails, a warning says why, and the function runs as it is.
    """

    def __init__(self, function: Function, device: torch.device, warmup: int = 3) -> None:
        self._function, self._device = function, device
        self._plain_calls: float = warmup if device.type == "cuda" else float("inf")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._inputs: Tensors = {}
        self._outputs: Tensors = {}
        self._replay: Callable[[], None] | None = None

    def launch(self, inputs: Tensors) -> OnItsWay:
        """Begin to compute the function of these tensors, which may lie on the host or the device.

        Raises ValueError where their names, shapes or types are not those of the first call.
        """
        with self._own_stream():
            self._take(inputs)
            return OnItsWay(self._run())

    @contextlib.contextmanager
    def _own_stream(self) -> Iterator[None]:
        """After all that was asked for elsewhere, and before all that will be."""
        if self._stream is None:
            yield
            return
        caller = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            yield
        caller.wait_stream(self._stream)

    def _take(self, inputs: Tensors) -> None:
        """Put the inputs where the recorded kernels will look for them."""
        if not self._inputs:
            self._inputs = {k: torch.empty_like(x, device=self._device) for k, x in inputs.items()}
        given, known = _kinds(inputs), _kinds(self._inputs)
        if given != known:
            raise ValueError(f"These inputs are {given}; those of the first call were {known}.")
        for name, place in self._inputs.items():
            place.copy_(_fetchable(inputs[name], self._device), non_blocking=True)

    def _run(self) -> Tensors:
        if self._replay is None and self._plain_calls <= 0:
            try:
                self._replay = self._record()
            except RuntimeError as error:
                self._plain_calls = float("inf")
                warnings.warn(_describe(error), stacklevel=4)
        if self._replay is None:
            self._plain_calls -= 1
            return self._function(self._inputs)
        self._replay()
        return self._outputs

    def _record(self) -> Callable[[], None]:
        gc.collect()  # a graph that is freed while another one is recorded may spoil it
        graph, generator = torch.cuda.CUDAGraph(), _generator(self._device)
        spare = generator.clone_state()
        try:
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._outputs = self._function(self._inputs)
        except RuntimeError:
            # Its state still waits for the end of the recording, and would refuse to draw.
            generator.graphsafe_set_state(spare)
            raise
        return graph.replay


def _generator(device: torch.device) -> torch.Generator:
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]


def _kinds(tensors: Tensors) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {name: (tuple(x.shape), x.dtype) for name, x in tensors.items()}


def _fetchable(x: Tensor, device: torch.device) -> Tensor:
    """The same numbers where a GPU can fetch them while the host goes on."""
    return x.pin_memory() if device.type == "cuda" and x.is_cpu and not x.is_pinned() else x


def _home(x: Tensor) -> Tensor:
    """A copy on the host, of which a GPU's is whole only later."""
    return x.clone() if x.is_cpu else x.to("cpu", non_blocking=True)


def _describe(error: RuntimeError) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return (
        f"The update could not be recorded as a CUDA graph ({reason}), so its "
        "kernels are launched one by one, which is slower. agent.cuda_graph=false says so at once."
    )
