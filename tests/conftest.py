"""What all tests share: one thread each, folders that are made once, and runs without pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from worldmodel import plots

Once = Callable[[str, Callable[[Path], Any]], Path]

# Models as small as theirs lose more time to waking threads than threads save.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """once(name, make): the folder that make(folder) fills, for all who ask for this name, in any
    process of pytest-xdist. It is only read: who changes it, changes a copy."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], Any]) -> Path:
        folder, done = base / "once" / name, base / "once" / f"{name}.done"
        done.parent.mkdir(exist_ok=True)
        with FileLock(done.with_suffix(".lock")):
            if not done.exists():
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are empty files: drawing them takes most of the time of a report."""

    def save(made: Any, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        plots.close(made)
        return path

    monkeypatch.setattr(plots, "save", save)
