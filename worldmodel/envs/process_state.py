"""What belongs to the whole process and not to an environment, kept while one is made or reset."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

_log = logging.getLogger(__name__)
_said: set[str] = set()
_theirs: Any = None  # the state of PyTorch's global generator, as environments see it


@contextmanager
def kept_process_state() -> Iterator[None]:
    """Put back what an environment changed for everybody: the working folder, in which runs lie;
    how NumPy answers errors; PyTorch's default dtype. From PyTorch's global generator it draws a
    stream of its own: seeded with each episode, as some do, it would repeat an agent's actions.

    PyTorch is not imported for this: environment processes go without it.
    """
    global _theirs
    torch: Any = sys.modules.get("torch")
    folder, errors = _working_folder(), np.geterr()
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
        if folder is not None and _working_folder() != folder:
            os.chdir(folder)
            _say(f"the working folder, which is '{folder}'")


def _working_folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None


def _say(what: str) -> None:
    if what not in _said:
        _said.add(what)
        _log.warning("warning: the environment changed %s; it is put back.", what)
