"""The study of one model for several tasks: its arithmetic, and what it refuses to count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scripts.studies import bench_reuse
from scripts.studies.bench import MEASURES
from scripts.studies.bench_reuse import Settings, Study
from tests.agents.test_run_train import settings
from worldmodel.config import ConfigError, RunError


def test_it_is_a_measure() -> None:
    assert "reuse" in MEASURES
    assert bench_reuse.FUNCTIONS.is_file()


def test_the_share_is_of_the_way_from_random_to_direct(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {"dreamt": -30.0, "direct": -20.0}
    told = {"agent_steps": 0, "updates": 7, "wall_clock_s": 1.5}
    monkeypatch.setattr(bench_reuse.report, "read_summary", lambda run: told)
    monkeypatch.setattr(Study, "score", lambda self, run, task: scores[run.name])
    monkeypatch.setattr(Study, "random", lambda self, task: -120.0)
    study = Study(Settings(folder=str(tmp_path)), 3)
    figure = study.figure("usual", "spin", tmp_path / "dreamt", tmp_path / "direct")
    assert figure["share"] == 0.9
    assert (figure["from"], figure["task"], figure["seed"]) == ("usual", "spin", 3)
    assert (figure["agent_steps"], figure["updates"], figure["train_seconds"]) == (0, 7, 1.5)


def test_half_a_run_is_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(config: Any, say: Any) -> int:
        return 143

    monkeypatch.setattr(bench_reuse, "train", stopped)
    with pytest.raises(RunError, match="the same command continues"):
        bench_reuse.finish(settings(tmp_path))


def test_direct_runs_are_paid_by_the_function_and_alike_otherwise(tmp_path: Path) -> None:
    study = Study(Settings(folder=str(tmp_path)), 1)
    usual, explored = (study.composed(name, tmp_path) for name in ("pendulum", "explore"))
    assert usual.seed == explored.seed == 1
    assert usual.length == explored.length
    assert usual.budget == 2188
    assert bench_reuse.paid(usual.env, "reward") == usual.env
    assert str(bench_reuse.paid(usual.env, "hang").reward).endswith("pendulum_rewards.py:hang")
    assert explored.agent.model.control == {"disagreement": 1.0}
    assert not explored.agent.model.heads["reward"].trains_latent


@pytest.mark.parametrize("given", [{"tasks": ["fly"]}, {"parts": ["usul"]}])
def test_unknown_parts_and_tasks(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Known: "):
        Settings(**given)
