"""Disks fill and memory ends: the run stops with one clear line, its checkpoint intact."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.run import folder
from agents.run.train import train
from tests.agents.counting_agent import CountingAgent
from tests.agents.test_run_train import SILENT, lines_of, settings, summary_of
from worldmodel import checkpoint
from worldmodel.config import RunError
from worldmodel.replay import Replay, ReplayConfig


def test_says_what_is_needed_and_what_is_free(tmp_path: Path) -> None:
    said: list[str] = []
    train(settings(tmp_path, steps=20), said.append)
    text = "\n".join(said)
    assert "GB free)" in text
    assert "memory: replay grows to" in text


def test_stops_with_a_checkpoint_before_memory_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(tmp_path, checkpoint_minutes=1e-9)  # looks after every step
    answers = iter([10**12] * 30 + [10**6] * 10)
    monkeypatch.setattr(folder, "available_memory", lambda: next(answers))
    with pytest.raises(RunError, match=r"Memory is ending: 1 MB are free, 268 .*") as caught:
        train(config, SILENT)
    step = checkpoint.load(tmp_path)["counters"]["agent_steps"]
    assert 20 < step < 30
    assert f"saved at step {step}:" in str(caught.value)
    monkeypatch.undo()
    assert train(config, SILENT) == 0
    assert summary_of(tmp_path)["agent_steps"] == 60


def test_an_allocation_that_fails_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def huge(*_: Any, **__: Any) -> None:
        torch.empty(1 << 60, dtype=torch.uint8)

    monkeypatch.setattr("tests.agents.counting_agent.CountingAgent.update", huge)
    with pytest.raises(RunError, match=r"Memory ran out .* checkpoint .* is intact"):
        train(settings(tmp_path), SILENT)
    monkeypatch.undo()
    assert train(settings(tmp_path), SILENT) == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("spare", range(0, 40_000, 10_000))
def test_a_disk_that_fills_up_costs_nothing_that_was_saved(
    small_disk: Path, spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program takes all but `spare` bytes of the disk in the middle of a run."""
    config = settings(small_disk / "run", checkpoint_minutes=1e-9, replay=ReplayConfig(200))
    filler, update = small_disk / "filler", CountingAgent.update
    steps: list[int] = []

    def filled(agent: Any, replay: Replay) -> Any:
        if agent.updates == 5 and not filler.exists():
            steps.append(checkpoint.load(small_disk / "run")["counters"]["agent_steps"])
            disk = os.statvfs(small_disk)
            filler.write_bytes(b"x" * max(0, disk.f_bavail * disk.f_frsize - spare))
        return update(agent, replay)

    monkeypatch.setattr(CountingAgent, "update", filled)
    with pytest.raises(RunError, match=r"The disk is full .* is intact: make room"):
        train(config, SILENT)
    assert checkpoint.load(small_disk / "run")["counters"]["agent_steps"] >= steps[0] > 20
    filler.unlink()
    filler.mkdir()  # room again, and no second filling
    assert train(config, SILENT) == 0
    assert [line["step"] for line in lines_of(small_disk / "run")][:6] == [10, 20, 30, 40, 50, 60]
