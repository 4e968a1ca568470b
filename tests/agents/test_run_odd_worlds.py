"""Environments that do not behave: episodes without an end, worlds of which there is one, worlds
that changed since the run."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.apps.play.reality import Reality
from agents.deploy.config import FallbackConfig
from agents.deploy.trial import World, fallback_alone
from agents.random import Random, RandomConfig
from agents.run.config import TrainConfig
from agents.run.evaluate import evaluate, frames_of
from agents.run.train import train
from tests.agents.counting_agent import CountingAgent, CountingConfig
from tests.agents.test_run_train import SILENT, lines_of, settings, summary_of
from tests.envs_for_tests import CountingEnv
from worldmodel.config import ConfigError
from worldmodel.envs import EnvConfig, EnvError, env_spec, make_env
from worldmodel.replay import Replay

CPU = torch.device("cpu")
HERE = "tests.agents.test_run_odd_worlds"
ENDLESS = EnvConfig(
    "tests.envs_for_tests:CountingEnv", kwargs={"length": 10**9}, state=True, longest_episode=7,
    image_size=[32, 32],
)  # fmt: skip


class One(CountingEnv):
    """A simulator at a port: there is room for one at a time."""

    alive = 0

    def __init__(self, **given: Any) -> None:
        if One.alive:
            raise OSError("address already in use: port 5005")
        One.alive = 1
        super().__init__(**given)

    def close(self) -> None:
        One.alive = 0


ONE = EnvConfig(f"{HERE}:One", kwargs={"length": 5}, state=True, image_size=[32, 32])


def counting(config: EnvConfig) -> CountingAgent:
    env = make_env(config)
    env.close()
    return CountingAgent(env_spec(env), CountingConfig(), CPU)


def test_episodes_without_an_end_are_cut_off_wherever_whole_ones_are_played() -> None:
    agent = counting(ENDLESS)
    result = evaluate(agent, agent.spec, ENDLESS, 3, num_envs=2, record=True)
    assert (result.lengths, result.cut_off, len(result.rows)) == ([7, 7, 7], 3, 8)
    assert "(3 cut off after 7 steps" in result.line()
    last = result.rows[-1]
    assert (last["is_last"], last["is_terminal"]) == (True, False)  # truncated
    vectors = replace(ENDLESS, id="Acrobot-v1", kwargs={}, pixels=False)
    blind = Random(env_spec(make_env(vectors)), RandomConfig(), CPU)
    assert len(frames_of(result, blind, blind.spec, replace(vectors, time_limit=9))) == 10


@pytest.mark.parametrize("limit", [{"time_limit": 9}, {"id": "Pendulum-v1", "kwargs": {}}])
def test_a_limit_of_its_own_stands(limit: dict[str, Any]) -> None:
    env = make_env(replace(ENDLESS, **limit), 0, whole=True)
    env.reset()
    steps = 1
    while not env.step(env.action_space.sample())[3]:
        steps += 1
    assert steps == limit.get("time_limit", 200)


def test_an_endless_run_ends_and_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    assert train(settings(tmp_path, env=ENDLESS), said.append) == 0
    summary = summary_of(tmp_path)
    assert (summary["eval_lengths"], summary["eval_cut_off"]) == ([7, 7], 2)
    assert any("No episode ended in 60 steps" in line for line in said)
    assert any("2 evaluation episodes were cut off" in line for line in said)


def one(folder: Path, **changes: Any) -> TrainConfig:
    return settings(folder, env=ONE, **changes)


def test_the_training_environment_makes_room_for_the_last_evaluation(tmp_path: Path) -> None:
    assert train(one(tmp_path, eval_envs=1), SILENT) == 0
    assert summary_of(tmp_path)["eval_lengths"] == [5, 5]


def test_an_evaluation_that_fails_costs_a_line(tmp_path: Path) -> None:
    said: list[str] = []
    assert train(one(tmp_path, eval_envs=2, eval_every=20), said.append) == 0
    failed = [line for line in said if "the evaluation failed" in line]
    assert len(failed) == 3  # at 20, at 40 and at the end
    assert "port 5005" in failed[0]
    assert "eval_envs=0" in failed[0]
    assert "eval_return_mean" not in summary_of(tmp_path)
    assert summary_of(tmp_path)["agent_steps"] == 60
    assert train(one(tmp_path, eval_envs=2, eval_every=20), SILENT) == 0  # finished: no failure


def test_no_last_evaluation_where_none_is_asked_for(tmp_path: Path) -> None:
    assert train(one(tmp_path, final_episodes=0), SILENT) == 0
    assert "eval_return_mean" not in summary_of(tmp_path)


def test_evaluations_are_played_on_the_training_environment_between_episodes(
    tmp_path: Path,
) -> None:
    env = replace(ONE, kwargs={"length": 7})
    asked = one(tmp_path, eval_envs=0, eval_every=20, eval_episodes=2)
    assert train(replace(asked, env=env), SILENT) == 0
    scores = [line for line in lines_of(tmp_path) if "eval/return" in line]
    # Asked for at 20, 40 and 60; played where an episode of seven steps has just ended.
    assert [line["step"] for line in scores] == [21, 42, 60]
    assert [line["eval/return"] for line in scores] == [28.0] * 3
    replay = Replay.open(tmp_path / "replay")
    lengths = [stop - start for _, start, stop in replay.episodes()]
    assert lengths[:8] == [8] * 8  # nothing of the evaluations, and no episode cut short by one


def test_only_one_training_environment_can_play_evaluations(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there must be one: give env\.num_envs=1"):
        settings(tmp_path, eval_envs=0, env=replace(ONE, num_envs=2))


def test_a_world_that_changed_is_one_error_with_every_difference() -> None:
    trained = counting(ENDLESS)
    other = replace(ENDLESS, kwargs={"actions": "box"}, image_size=[48, 32])
    wrong = (
        r"another than the run's: 'count' is vector 4 instead of vector 3; "
        r"'image' is image 48 x 32 x 3 instead of image 32 x 32 x 3; "
        r"actions are continuous 2 instead of discrete 3"
    )
    with pytest.raises(EnvError, match=wrong):
        evaluate(trained, trained.spec, other, 1)
    with pytest.raises(EnvError, match=wrong):
        make_env(other, spec=trained.spec)
    make_env(replace(ENDLESS, record=[]), spec=trained.spec).close()


def test_trials_and_walks_end_and_say_so() -> None:
    """Deployment counts the episodes that it cut off; a walk in the real world ends as they do."""
    spec = counting(ENDLESS).spec
    rest = FallbackConfig("hold", rest=[1, 0, 0])
    trial = fallback_alone(rest, spec, World(ENDLESS), 2, 0)
    assert (trial.ticks, trial.cut_off, len(trial.returns)) == (14, 2, 2)
    with closing(Reality(ENDLESS, spec, 0)) as real:
        moment, past = real.first, []
        while not moment.ended:
            past.append(np.eye(3, dtype=np.float32)[0])
            moment = real.advance(past[:-1], moment, past[-1])
        assert (len(past), moment.truncated) == (7, True)
