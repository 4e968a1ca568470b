"""A disk that is really full: a file system in memory, where this machine lets us make one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.run.evaluate import EvalResult
from agents.run.report import write_returns
from agents.run.train import train
from tests.agents.test_run_train import SILENT, settings, summary_of
from worldmodel.config import guarded
from worldmodel.log import write_json, write_picture, write_tensors, write_video
from worldmodel.plots import write_table

KILOBYTES = 8192
FILES: dict[str, Callable[[Path], object]] = {
    "a.json": lambda path: write_json(path, list(range(5000))),
    "a.png": lambda path: write_picture(path, np.zeros((64, 64, 3), np.uint8)),
    "a.mp4": lambda path: write_video(path, [np.zeros((64, 64, 3), np.uint8)] * 9),
    "a.pt": lambda path: write_tensors(path, torch.zeros(9999)),
    "a.csv": lambda path: write_table(path, ("x",), [(i,) for i in range(9999)]),
    "returns.csv": lambda path: write_returns(path.parent, EvalResult([1.0] * 999, [1] * 999), {}),
}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={KILOBYTES}k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("this machine lets us mount nothing")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Take all that is left."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free))
    return ballast


def left(disk: Path) -> set[str]:
    return {str(p.relative_to(disk)) for p in disk.rglob("*") if p.is_file()} - {"ballast"}


def test_training_does_not_begin_on_a_full_disk(disk: Path) -> None:
    ballast, said = fill(disk), []
    code = guarded(lambda: train(settings(disk / "run"), SILENT), said.append)
    assert (code, len(said)) == (2, 1)
    assert "The disk is full" in said[0] or "are free. Make room" in said[0]
    assert left(disk) <= {"run/.lock"}
    ballast.unlink()
    assert train(settings(disk / "run"), SILENT) == 0  # the same command, once there is room
    assert summary_of(disk / "run")["agent_steps"] == 60


@pytest.mark.parametrize("name", FILES)
def test_no_half_of_a_file_is_left(disk: Path, name: str) -> None:
    (disk / name).write_text("before")
    ballast, said = fill(disk), []

    def write() -> int:
        FILES[name](disk / name)
        return 0

    assert guarded(write, said.append) == 2
    assert said == ["error: The disk is full. Make room, and give the same command again."]
    assert left(disk) == {name}
    assert (disk / name).read_text() == "before"
    ballast.unlink()
    assert write() == 0
    assert (disk / name).stat().st_size > 6
