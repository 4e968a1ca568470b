"""Runs that learn from a recording: what they take from it, how they count, and that they go on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import agents
from agents.run.config import TrainConfig
from agents.run.train import train
from agents.run.trainer import Trainer
from tests.agents.counting_agent import CountingAgent, CountingConfig
from tests.agents.test_run_train import SILENT, lines_of, settings, summary_of
from worldmodel import checkpoint
from worldmodel.config import ConfigError
from worldmodel.envs import EnvConfig
from worldmodel.types import ActionSpec


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 60 steps, whose replay is the recording."""
    folder = tmp_path_factory.mktemp("recorded")
    train(settings(folder), SILENT)
    return folder


def offline(folder: Path, recorded: Path, **changes: Any) -> TrainConfig:
    return settings(folder, **{"offline": str(recorded), "updates": 20, **changes})


def weight(folder: Path) -> torch.Tensor:
    out: torch.Tensor = checkpoint.load(folder)["agent"]["weight"]
    return out


def test_it_counts_updates_and_takes_no_step(tmp_path: Path, recorded: Path) -> None:
    said: list[str] = []
    config = offline(tmp_path, recorded, log_every=5, eval_every=10, eval_episodes=1)
    assert train(config, said.append) == 0
    summary = summary_of(tmp_path)
    assert (summary["agent_steps"], summary["env_frames"], summary["updates"]) == (0, 0, 20)
    assert summary["eval_returns"] == [15.0, 15.0]  # in the environment that is named
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines if "number" in line] == [5, 10, 15, 20]
    assert [line["step"] for line in lines if "eval/return" in line] == [10, 20]
    assert any("12 episodes of 4 to 5 steps, 59 in all" in text for text in said)
    assert isinstance(agents.load(tmp_path).agent, CountingAgent)
    there, here = agents.load_replay(recorded), agents.load_replay(tmp_path)
    rows, ours = there.rows(0, 0, 50), here.rows(0, 0, 50)
    assert all(np.array_equal(rows[key], ours[key]) for key in rows)


def test_without_an_environment_it_learns_all_the_same(tmp_path: Path, recorded: Path) -> None:
    train(offline(tmp_path, recorded, env=EnvConfig(id="none")), SILENT)
    summary = summary_of(tmp_path)
    assert summary["updates"] == 20
    assert "eval_return_mean" not in summary
    assert not any("eval/return" in line for line in lines_of(tmp_path))
    assert agents.load(tmp_path).spec.action == ActionSpec("discrete", (3,))


def test_it_learns_as_long_as_its_steps_would_have_earned(tmp_path: Path, recorded: Path) -> None:
    config = offline(tmp_path, recorded, updates=0, steps=60, prefill=20)  # 2 of 8 rows a step
    assert config.length == 10
    train(config, SILENT)
    assert summary_of(tmp_path)["updates"] == 10


@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_stopped_and_continued_it_is_the_same(tmp_path: Path, recorded: Path, storage: str) -> None:
    base = offline(tmp_path / "a", recorded)
    base = replace(base, replay=replace(base.replay, storage=storage))
    train(base, SILENT)
    source = tmp_path / "recording"
    shutil.copytree(recorded, source)
    parts = replace(base, run=str(tmp_path / "b"), offline=str(source))
    train(replace(parts, updates=7), SILENT)
    shutil.rmtree(source)  # its rows are in the run's own replay
    said: list[str] = []
    train(parts, said.append)
    [replay] = [line for line in said if line.startswith("replay: ")]
    assert replay.startswith("replay: 71 of 500 steps"), replay  # what it will hold, not nothing
    assert torch.equal(weight(tmp_path / "a"), weight(tmp_path / "b"))
    assert summary_of(tmp_path / "b")["updates"] == 20


def test_a_kill_costs_the_updates_since_the_checkpoint(tmp_path: Path, recorded: Path) -> None:
    train(offline(tmp_path / "a", recorded), SILENT)
    config = offline(tmp_path / "b", recorded)
    killed = Trainer(config, SILENT)
    for _ in range(5):
        killed.learner.update()
    killed.save()
    for _ in range(5):
        killed.learner.update()  # lost
    killed.close()
    train(config, SILENT)
    assert torch.equal(weight(tmp_path / "a"), weight(tmp_path / "b"))


def test_an_update_that_is_not_finite_is_skipped_and_not_counted(
    tmp_path: Path, recorded: Path
) -> None:
    config = offline(tmp_path, recorded, agent=CountingConfig(bad_update=6))
    train(config, SILENT)
    summary = summary_of(tmp_path)
    assert (summary["updates"], summary["skipped_updates"]) == (20, 1)


def npz(folder: Path, **changes: np.ndarray) -> str:
    """An episode of the counting environment as somebody else writes it."""
    arrays: dict[str, np.ndarray] = {
        "image": np.zeros((6, 64, 64, 3), np.uint8),
        "count": np.arange(18, dtype=np.float32).reshape(6, 3),
        "action": np.array([0, 1, 2, 0, 1]),
        "reward": np.arange(5.0),
    }
    np.savez(folder / "episode.npz", **arrays | changes)
    return str(folder / "episode.npz")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"action": np.zeros(3, np.int64)}, "6 observations for 3 actions"),
        ({"action": np.zeros((5, 2), np.float32)}, "action space is Discrete"),
        ({"count": np.zeros((6, 7), np.float32)}, "'count' has 7 numbers"),
        ({"reward": np.full(5, np.nan)}, "reward of step 0 is not finite"),
    ],
)
def test_a_recording_that_does_not_fit_ends_before_training(
    tmp_path: Path, changes: dict[str, np.ndarray], words: str
) -> None:
    config = settings(tmp_path / "run", offline=npz(tmp_path, **changes), updates=5)
    with pytest.raises(ConfigError, match=words):
        train(config, SILENT)
    assert not checkpoint.exists(tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"offline": "nowhere"}, "'nowhere' does not exist"),
        ({"offline_alignment": "sideways"}, "Known: auto, taken_at, led_to"),
        ({"offline_action_range": [1.0, -1.0]}, "low < high"),
        ({"agent": CountingConfig(batch_length=90)}, "one sequence takes 90"),
        ({"env": EnvConfig(id="Pendulum-v1", state=True)}, "is of another environment"),
    ],
)
def test_settings_that_cannot_be(
    tmp_path: Path, recorded: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        train(offline(tmp_path, recorded, **changes), SILENT)
    assert not checkpoint.exists(tmp_path)


def test_no_environment_is_for_recordings_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="env=none is for learning from a recording"):
        settings(tmp_path, env=EnvConfig(id="none"))


def test_updates_end_an_online_run_too(tmp_path: Path) -> None:
    config = settings(tmp_path, updates=4)
    train(config, SILENT)
    summary = summary_of(tmp_path)
    assert summary["updates"] == 4
    assert summary["agent_steps"] < 60
    said: list[str] = []
    train(config, said.append)
    assert any("finished already" in text for text in said)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
