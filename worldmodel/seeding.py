"""Random numbers: seed every generator, derive seeds by name, save and restore the state."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch (all devices).

    Raises ValueError unless 0 <= seed < 2**32.
    """
    _check(seed)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def spawn(seed: int, name: str) -> int:
    """An independent seed in [0, 2**32) for one named use, the same on every machine and run.

    Raises ValueError unless 0 <= seed < 2**32.
    """
    _check(seed)
    # Python's own hash of a string changes from process to process.
    digest = hashlib.sha256(name.encode()).digest()
    words = [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 32, 4)]
    return int(np.random.SeedSequence([seed, *words]).generate_state(1, np.uint32)[0])


def rng_state() -> dict[str, Any]:
    """The state of the global generators as plain numbers, lists and tensors, so that a
    checkpoint with it loads with `torch.load(weights_only=True)`."""
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=False)
    return {
        "python": [version, list(words), gauss],
        "numpy": {
            "key": torch.from_numpy(legacy["state"]["key"].astype(np.int64)),
            "pos": int(legacy["state"]["pos"]),
            "has_gauss": int(legacy["has_gauss"]),
            "gauss": float(legacy["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what `rng_state` returned; devices that this machine lacks are passed over."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    numpy_state = state["numpy"]
    key = numpy_state["key"].cpu().numpy().astype(np.uint32)
    np.random.set_state(
        ("MT19937", key, numpy_state["pos"], numpy_state["has_gauss"], numpy_state["gauss"])
    )
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available():
        for device, cuda in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(cuda.cpu(), device)
    if state["mps"] is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"].cpu())


class Stream:
    """Random numbers of one's own for code that draws from PyTorch's global generators.

    Inside `with stream:` the global generators of the CPU and of `device` are this stream's; on
    leaving, they are as they were found, and the stream goes on from there the next time. The
    same seed gives the same draws. Not for two threads at once.

    Raises ValueError unless 0 <= seed < 2**32.
    """

    def __init__(self, seed: int, device: torch.device | None = None) -> None:
        self._cuda = device if device is not None and device.type == "cuda" else None
        self._outside: list[torch.Tensor] = []
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Begin anew; not inside `with`."""
        _check(seed)
        self._state = [torch.Generator().manual_seed(seed).get_state()]
        if self._cuda is not None:
            self._state.append(torch.Generator(self._cuda).manual_seed(seed).get_state())

    def state_dict(self) -> list[torch.Tensor]:
        """Where it is; not inside `with`."""
        return [state.clone() for state in self._state]

    def load_state_dict(self, state: list[torch.Tensor]) -> None:
        """Go on from there."""
        self._state = [part.cpu() for part in state[: len(self._state)]]

    def __enter__(self) -> Stream:
        assert not self._outside, "a stream cannot be entered twice"
        self._outside = self._exchange(self._state)
        return self

    def __exit__(self, *error: object) -> None:
        outside, self._outside = self._outside, []
        self._state = self._exchange(outside)

    def _exchange(self, fresh: list[torch.Tensor]) -> list[torch.Tensor]:
        """Put states in place of the global generators' and return those."""
        found = [torch.get_rng_state()]
        torch.set_rng_state(fresh[0])
        if self._cuda is not None:
            found.append(torch.cuda.get_rng_state(self._cuda))
            torch.cuda.set_rng_state(fresh[1], self._cuda)
        return found


@contextmanager
def aside(seed: int, streams: Sequence[Stream] = ()) -> Iterator[None]:
    """Inside, the global generators and these streams begin at a seed; on leaving, all are as they
    were found."""
    before, kept = rng_state(), [stream.state_dict() for stream in streams]
    seed_everything(seed)
    for number, stream in enumerate(streams):
        stream.seed(spawn(seed, f"stream {number}"))
    try:
        yield
    finally:
        set_rng_state(before)
        for stream, state in zip(streams, kept, strict=True):
            stream.load_state_dict(state)


def _check(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ValueError(f"Seed {seed} is outside the allowed range 0 ... 2**32 - 1.")
