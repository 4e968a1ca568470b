"""`scripts/evaluate.py` in another world than the training's: env words."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from agents.apps.evaluate import EvaluateConfig, evaluate_command
from agents.run.train import train
from tests.agents.test_run_train import SILENT, settings
from worldmodel.config import ConfigError
from worldmodel.envs import EnvConfig


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    base = settings(folder, final_episodes=0)
    env = EnvConfig("tests.envs_for_tests:CountingEnv", kwargs={"length": 6, "end": "truncated"})
    assert train(replace(base, env=replace(env, state=True, image_size=[32, 32])), SILENT) == 0
    return folder


@pytest.mark.parametrize(
    ("words", "lengths", "folder"),
    [
        ([], [6, 6], ""),
        (["env.time_limit=4"], [4, 4], "time_limit=4"),
        (["env={time_limit: 4}"], [4, 4], "time_limit=4"),
        (["env.kwargs.length=9"], [9, 9], "kwargs.length=9"),
        (
            ["env.kwargs.length=99", "env.longest_episode=11"],
            [11, 11],
            "kwargs.length=99,longest_episode=11",
        ),
    ],
)
def test_another_level_or_limit(
    run: Path, words: list[str], lengths: list[int], folder: str
) -> None:
    """Each in a folder of its own, so that none replaces another."""
    assert evaluate_command(SILENT, [f"run={run}", "episodes=2", *words]) == 0
    path = run / "evaluation" / folder / "returns.json"
    assert json.loads(path.read_text())["eval_lengths"] == lengths


def test_no_two_environments_share_a_folder() -> None:
    long = "a" * 200
    values = ["a/b", "a:b", f"{long}/1", f"{long}/2", "Käse", "K\u00e4ze", 4]
    names = {EvaluateConfig("run", env={"kwargs": {"level": x}}).folder(None).name for x in values}
    assert len(names) == len(values)
    assert all(len(name) < 200 and name.isascii() for name in names)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("env.tim_limit=4", "Unknown setting of env 'tim_limit'.*Did you mean 'time_limit'"),
        ("env=CartPole-v1", "Give its entries by name: env.NAME="),
        ("env.kwargs.actions=box", "another than the run's: .*actions are continuous 2 instead"),
        ("env.kwargs.lenth=4", "Did you mean 'length'"),
    ],
)
def test_what_does_not_fit_is_one_line(run: Path, word: str, message: str) -> None:

    said: list[str] = []
    assert evaluate_command(said.append, [f"run={run}", "episodes=2", word]) == 2
    assert len(said) == 1
    assert re.search(message, said[0])


def test_evaluations_in_another_world_than_training(tmp_path: Path) -> None:
    """The constructor's arguments of evaluations: in the run's own, in later ones, and what later
    words say instead."""
    base = settings(tmp_path, final_episodes=2)
    kwargs = {"length": 6, "end": "truncated"}
    env = EnvConfig(
        "tests.envs_for_tests:CountingEnv", kwargs=kwargs, eval_kwargs={"length": 8}, state=True,
        image_size=[32, 32],
    )  # fmt: skip
    assert train(replace(base, env=env), SILENT) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["eval_lengths"] == [8, 8]
    lengths = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["episode/length"] for line in lengths if "episode/length" in line} == {6}
    for words, length in ([], 8), (["env.kwargs.length=9"], 9), (["env.eval_kwargs.length=7"], 7):
        assert evaluate_command(SILENT, [f"run={tmp_path}", "episodes=1", *words]) == 0
        folder = tmp_path / "evaluation" / "".join(words).removeprefix("env.")
        found = json.loads((folder / "returns.json").read_text())
        assert found["eval_lengths"] == [length]


def test_evaluations_that_cannot_be_are_refused_at_the_start(tmp_path: Path) -> None:
    base = settings(tmp_path, final_episodes=2)
    env = EnvConfig("tests.envs_for_tests:CountingEnv", state=True, image_size=[32, 32])
    for eval_kwargs, message in (
        ({"lenth": 4}, "Did you mean 'length'"), ({"actions": "box"}, "actions are continuous 2"),
    ):  # fmt: skip
        asked = replace(base, env=replace(env, eval_kwargs=eval_kwargs))
        with pytest.raises(ConfigError, match=message):
            train(asked, SILENT)
    with pytest.raises(ConfigError, match="Leave one of them out"):
        replace(asked, eval_envs=0)
