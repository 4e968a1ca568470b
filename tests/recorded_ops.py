"""A recording of operations on the CPU, with the rules of a CUDA graph: what Python did is not
replayed, only the kernels are, on the memory that they had."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from worldmodel.accel.graphs import Recorded

# What a recording cannot hold: reads by the host, sizes that depend on them, the host's numbers.
FORBIDDEN = (
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "lift_fresh",
    "unique", "_unique2",
)  # fmt: skip


class Recorder(TorchDispatchMode):
    """Keeps every operation with its arguments and results while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.partition("::")[2]
        if name in FORBIDDEN or (name == "index" and _by_mask(args)):
            raise RuntimeError(f"{name} cannot be recorded")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        """The same operations again, their results where they were."""
        for func, args, kwargs, out in self.calls:
            aliases = [r.alias_info for r in func._schema.returns]
            if any(a is not None and not a.is_write for a in aliases):
                continue  # a view
            again = func(*args, **kwargs)
            for place, value in zip(_tensors(out), _tensors(again), strict=True):
                if place.data_ptr() != value.data_ptr():
                    place.copy_(value)


def _by_mask(args: Any) -> bool:
    return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])


def _tensors(out: Any) -> Iterator[Tensor]:
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, (list, tuple)):
        for x in out:
            yield from _tensors(x)


class RecordedOps(Recorded):
    """`Recorded` on a CPU, in earnest: the fourth call is recorded and every later one replayed."""

    replays = 0

    def __init__(self, function: Any, device: torch.device, warmup: int = 3) -> None:
        super().__init__(function, device, warmup)
        self._plain_calls = warmup

    def _record(self) -> Callable[[], None]:
        recorder, draws = Recorder(), torch.get_rng_state()
        kept = [(x, x.clone()) for x in self.changed()]
        with recorder:
            self._outputs = self._function(self._inputs)
        # A CUDA graph only notes what it is told while it is recorded; here it was also done.
        torch.set_rng_state(draws)
        for place, value in kept:
            place.copy_(value)

        def replay() -> None:
            self.replays += 1
            recorder.replay()

        return replay

    @staticmethod
    def changed() -> list[Tensor]:
        """Everything that the function writes in place: nothing, unless a test says more."""
        return []
