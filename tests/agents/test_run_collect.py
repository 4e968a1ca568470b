"""Collecting: a counting environment proves that every row says what happened."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from agents.random import Random, RandomConfig
from agents.run.collect import Collector
from tests.agents.counting_agent import ENV, CountingAgent, CountingConfig
from worldmodel.config import RunError
from worldmodel.envs import EnvConfig, env_spec, make_vector
from worldmodel.replay import Replay, ReplayConfig


def collect(steps: int, explore: bool = False, num_envs: int = 2, **kwargs: Any):
    kwargs = {"lengths": (3, 5, 1), "end": "alternate", **kwargs}
    envs = make_vector(EnvConfig(id=ENV, kwargs=kwargs, state=True), num_envs, seed=0)
    spec = env_spec(envs)
    agent = CountingAgent(spec, CountingConfig(), torch.device("cpu"))
    replay = Replay(spec, ReplayConfig(capacity=1000), num_envs, agent.columns)
    collector = Collector(envs, spec, agent, seed=1)
    episodes = [e for _ in range(steps) for e in collector.step(replay, explore)]
    streams = [replay.rows(n, 0, int(replay.counts[n])) for n in range(num_envs)]
    return collector, replay, episodes, streams


@pytest.mark.parametrize("actions", ["discrete", "multidiscrete", "box"])
@pytest.mark.parametrize("explore", [False, True])
def test_rows_say_what_happened(actions: str, explore: bool) -> None:
    torch.manual_seed(0)
    collector, _, _, streams = collect(40, explore, actions=actions)
    for rows in streams:
        episode, step = rows["count"][:, 0], rows["count"][:, 1]
        first, last = rows["is_first"], rows["is_last"]
        assert np.array_equal(first, step == 0)
        assert np.array_equal(step[1:], np.where(last[:-1], 0, step[:-1] + 1))
        assert np.array_equal(rows["reward"], step)  # the reward of a step is its number
        length = np.array([3, 5, 1])[episode.astype(int) % 3]
        assert np.array_equal(last, step == length)
        assert np.array_equal(rows["is_terminal"], last & (episode % 2 == 0))
        # The environment shows the native action that led here: the stored one, decoded.
        stored = rows["action"]
        assert not stored[first].any()
        if actions == "box":
            native = 1 + 3 * np.clip(stored, -1, 1)  # [-1, 1] -> [-2, 4]
        else:
            native = collector.spec.action.decode(stored).reshape(len(step), -1)
        assert np.allclose(rows["count"][~first, 2:], native[~first], atol=1e-6)
    if actions == "box" and not explore:
        assert max(np.abs(rows["action"]).max() for rows in streams) > 1  # kept unclipped


@pytest.mark.parametrize("explore", [False, True])
def test_columns_belong_to_their_rows(explore: bool) -> None:
    _, replay, _, _ = collect(40, explore)
    batch = replay.sample(200, 2, online=False, context=["seen"])
    known = ~batch.is_first[:, 0]
    # The context is the state after the row before: that row's step, counted from one.
    assert known.sum() > 50
    assert torch.equal(batch.context["seen"][known], batch.obs["count"][known, 0, 1])


def test_resets_are_not_steps() -> None:
    collector, _, episodes, streams = collect(40)
    now = collector.rows["is_first"]
    recorded = sum(int((~rows["is_first"]).sum()) for rows in streams)
    assert collector.steps == recorded + int((~now).sum())
    # Both environments play episodes of 3, 5 and 1 steps in turn, worth 6, 15 and 1.
    assert [e.length for e in episodes[::2]][:3] == [3, 5, 1]
    assert [e.score for e in episodes[::2]][:3] == [6, 15, 1]


def test_exploration_respects_masks() -> None:
    _, _, _, streams = collect(60, explore=True, masked=True)
    for rows in streams:
        real = ~rows["is_first"]
        chosen = rows["action"].argmax(-1)
        # Only action `step % 3` was allowed where it was chosen, one row earlier.
        assert np.array_equal(chosen[real], (rows["count"][real, 1].astype(int) - 1) % 3)


def test_exploring_agents_are_told_what_was_done() -> None:
    collector, _, _, _ = collect(1, explore=True, actions="box")
    assert np.allclose(collector.state.action, collector.rows["action"])


class BadRewardEnv(gymnasium.Env[Any, Any]):
    """Its third reward is not a number."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    count = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> Any:
        self.count += 1
        return np.zeros(3, np.float32), float("nan") if self.count == 3 else 0.0, False, False, {}


def bad_rewards(max_failures: int, say: Any = lambda text: None) -> tuple[Collector, Replay]:
    name = "tests.agents.test_run_collect:BadRewardEnv"
    envs = make_vector(EnvConfig(id=name, pixels=False, max_failures=max_failures), 1, seed=0)
    spec = env_spec(envs)
    replay = Replay(spec, ReplayConfig(capacity=100), 1)
    agent = Random(spec, RandomConfig(), torch.device("cpu"))
    return Collector(envs, spec, agent, seed=0, say=say), replay


def test_a_failing_environment_is_restarted_and_its_episode_cut_off() -> None:
    said: list[str] = []
    collector, replay = bad_rewards(100, said.append)
    failed = 0
    for _ in range(12):
        assert not collector.step(replay)  # no episode has an end of its own
        failed += len(collector.failures)
    rows = replay.rows(0, 0, int(replay.counts[0]))
    # Two good steps, then a third one that failed: its row is the first of a new episode.
    assert rows["is_first"].tolist() == [True, False, False] * 4
    # Replay closes an episode when the next one begins.
    assert rows["is_last"].tolist() == [False, False, True] * 3 + [False] * 3
    assert not rows["is_terminal"].any()
    assert not rows["action"][rows["is_first"]].any()
    assert failed == len(said) == 4
    assert "environment 0 was restarted: " in said[0]
    assert "reward is nan" in said[0]
    assert collector.steps == 8


def test_an_environment_that_fails_too_often_stops_the_run_with_its_own_words() -> None:
    collector, replay = bad_rewards(3)
    for _ in range(8):
        collector.step(replay)
    with pytest.raises(RunError, match=r"(?s)failed 3 times.*reward is nan.*finite"):
        collector.step(replay)
    # What is saved then stands at one moment: the newest row is not in replay yet.
    saved = collector.state_dict()
    assert saved["rows"]["is_first"].tolist() == [False]
    rows = replay.rows(0, 0, int(replay.counts[0]))
    assert rows["is_first"].tolist() == [True, False, False] * 2 + [True, False]
    assert len(saved["envs"][0]["actions"]) == 2
