"""`scripts/evaluate.py` in another world than the training's: env words."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from agents.apps.evaluate import evaluate_command
from agents.run.train import train
from tests.agents.test_run_train import SILENT, settings
from worldmodel.envs import EnvConfig


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    base = settings(folder, final_episodes=0)
    env = EnvConfig("tests.envs_for_tests:CountingEnv", kwargs={"length": 6, "end": "truncated"})
    assert train(replace(base, env=replace(env, state=True, image_size=[32, 32])), SILENT) == 0
    return folder


@pytest.mark.parametrize(
    ("words", "lengths"),
    [
        ([], [6, 6]),
        (["env.time_limit=4"], [4, 4]),
        (["env.kwargs.length=9"], [9, 9]),
        (["env.kwargs.length=99", "env.longest_episode=11"], [11, 11]),
    ],
)
def test_another_level_or_limit(run: Path, words: list[str], lengths: list[int]) -> None:
    assert evaluate_command(SILENT, [f"run={run}", "episodes=2", *words]) == 0
    assert json.loads((run / "evaluation" / "returns.json").read_text())["eval_lengths"] == lengths


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("env.tim_limit=4", "Unknown key"),
        ("env.kwargs.actions=box", "another than the run's: .*actions are continuous 2 instead"),
        ("env.kwargs.lenth=4", "Did you mean 'length'"),
    ],
)
def test_what_does_not_fit_is_one_line(run: Path, word: str, message: str) -> None:

    said: list[str] = []
    assert evaluate_command(said.append, [f"run={run}", "episodes=2", word]) == 2
    assert len(said) == 1
    assert re.search(message, said[0])
