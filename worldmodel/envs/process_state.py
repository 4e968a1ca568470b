"""What belongs to the whole process and not to an environment, kept while one is made or reset."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

_log = logging.getLogger(__name__)
SIGNALS = (signal.SIGINT, signal.SIGTERM)
_said: set[str] = set()
_theirs: Any = None  # the state of PyTorch's global generator, as environments see it


@contextmanager
def kept_process_state() -> Iterator[None]:
    """Put back what an environment changed for everybody: the working folder, in which runs lie;
    how NumPy answers errors; what Ctrl-C and SIGTERM do; PyTorch's default dtype. From
    PyTorch's global generator it draws a stream of its own: seeded with each episode, as some do,
    it would repeat an agent's actions.

    PyTorch is not imported for this: environment processes go without it.
    """
    global _theirs
    torch: Any = sys.modules.get("torch")
    folder, errors = _working_folder(), np.geterr()
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    if torch is not None:
        ours, dtype = torch.get_rng_state(), torch.get_default_dtype()
        if _theirs is None:
            _theirs = torch.Generator().manual_seed(torch.initial_seed() ^ 1).get_state()
        torch.set_rng_state(_theirs)
    try:
        yield
    finally:
        if torch is not None:
            _theirs = torch.get_rng_state()
            torch.set_rng_state(ours)
            if torch.get_default_dtype() != dtype:
                torch.set_default_dtype(dtype)
                _say("PyTorch's default dtype")
        if np.geterr() != errors:
            np.seterr(**errors)
            _say("how NumPy answers errors")
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler and _can_set(handler):
                signal.signal(number, handler)
                _say("what Ctrl-C and SIGTERM do")
        if folder is not None and _working_folder() != folder:
            os.chdir(folder)
            _say(f"the working folder, which is '{folder}'")


def _can_set(handler: Any) -> bool:
    """Whether a handler can be put back: here, and if it was one of Python's."""
    return handler is not None and threading.current_thread() is threading.main_thread()


def _working_folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None


def _say(what: str) -> None:
    if what not in _said:
        _said.add(what)
        _log.warning("warning: the environment changed %s; it is put back.", what)
