"""Killed at any moment and started again, a run is the run that was never killed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.run.config import TrainConfig
from agents.run.train import train
from agents.run.trainer import Trainer
from scripts.studies import bench_faults
from scripts.studies.bench_faults import Settings, compare, kill, live, small_run
from worldmodel import checkpoint

SILENT = lambda text: None  # noqa: E731


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run of 110 steps that nobody disturbed."""
    config = small_run(tmp_path_factory.mktemp("runs") / "alone", Settings(steps=110))
    train(config, SILENT)
    return config


@pytest.mark.parametrize(
    "settings",
    [
        Settings(steps=110),
        Settings(steps=100, storage="disk"),
        pytest.param(Settings(steps=900, num_envs=3), marks=pytest.mark.slow),
        pytest.param(Settings(steps=900, num_envs=2, vector="async"), marks=pytest.mark.slow),
    ],
    ids=["memory", "disk", "three-envs", "processes"],
)
def test_kills_change_nothing(tmp_path: Path, settings: Settings) -> None:
    config = small_run(tmp_path / "alone", settings)
    live(config)
    assert checkpoint.load(tmp_path / "alone")["counters"]["updates"] > 5
    rng = np.random.default_rng(0)
    told = kill(replace(config, run=str(tmp_path / "killed")), 2, rng, longest=1.2)
    assert told.kills >= 1
    assert compare(tmp_path / "alone", tmp_path / "killed") == []


def test_the_comparison_finds_what_differs(alone: TrainConfig, tmp_path: Path) -> None:
    train(replace(alone, run=str(tmp_path), seed=1), SILENT)
    found = compare(alone.folder, tmp_path)
    kinds = {line.partition(":")[0] for line in found}
    assert kinds == {"metrics", "checkpoint", "replay"}
    assert any("agent.optim" in line for line in found)


@pytest.mark.parametrize("moment", ["replay.save", "checkpoint.save", "replay.commit"])
def test_a_kill_within_a_save_loses_that_save_alone(
    alone: TrainConfig, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends right after each part of a save; the run goes on to the same end."""
    config = replace(alone, run=str(tmp_path))
    trainer = Trainer(config, SILENT)

    class Killed(BaseException):
        pass

    def dies(after: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            after(*args, **kwargs)
            raise Killed

        return call

    owner = checkpoint if moment == "checkpoint.save" else trainer.state.replay
    name = moment.partition(".")[2]
    save, calls = trainer.save, []

    def third_save_is_the_last() -> None:
        calls.append(1)
        if len(calls) == 3:
            monkeypatch.setattr(owner, name, dies(getattr(owner, name)))
        save()

    monkeypatch.setattr(trainer, "save", third_save_is_the_last)
    trainer.config = replace(config, checkpoint_minutes=0.05 / 60)
    with pytest.raises(Killed):
        trainer.run()
    monkeypatch.undo()
    trainer.close()
    train(config, SILENT)
    assert compare(alone.folder, tmp_path) == []


def test_a_damaged_newest_checkpoint_costs_one_interval(tmp_path: Path) -> None:
    config = replace(small_run(tmp_path, Settings(steps=110)), checkpoint_minutes=0.1 / 60)
    train(config, SILENT)
    newest, before = checkpoint.found(tmp_path)
    newest.write_bytes(newest.read_bytes()[:-5])
    step = torch.load(before, weights_only=True)["counters"]["agent_steps"]
    said: list[str] = []
    trainer = Trainer(replace(config, steps=120), said.append)
    assert any("newer than the checkpoint" in text for text in said)
    assert trainer.state.counters.agent_steps == step
    assert any("is damaged" in text and before.name in text for text in said)
    trainer.run()
    assert trainer.state.counters.agent_steps == 120
    trainer.close()


def test_a_damaged_replay_is_the_reason_where_no_checkpoint_is_left(
    alone: TrainConfig, tmp_path: Path
) -> None:
    shutil.copytree(alone.folder, tmp_path / "run")
    for path in (tmp_path / "run" / "replay").glob("*.bin"):
        path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(
        checkpoint.CheckpointError, match=r"^\S.*[Rr]eplay.* There is no other checkpoint"
    ):
        Trainer(replace(alone, run=str(tmp_path / "run"), steps=120), SILENT)


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_deterministic_runs_are_equal_to_the_bit(tmp_path: Path, threads: int) -> None:
    config = small_run(tmp_path / "a", Settings(steps=80))
    config = replace(config, deterministic=True, threads=threads, eval_every=0)
    try:
        for name in ("a", "b"):
            train(replace(config, run=str(tmp_path / name)), SILENT)
            assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(1)
    assert compare(tmp_path / "a", tmp_path / "b") == []


def test_the_measure_of_faults_counts_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    lives: list[float | None] = []

    def start(config: Any, longest: float | None = None, begun: bool = True) -> int | None:
        lives.append(longest)
        return 0 if longest is None or len(lives) > 6 else -9

    told = kill(small_run(Path("nowhere"), Settings()), 4, np.random.default_rng(0), 1.0, start)
    assert told.kills == 4
    assert lives[-1] is None
    assert all(0 <= x <= 1 for x in lives[:-1] if x is not None)
    assert bench_faults.live is live
