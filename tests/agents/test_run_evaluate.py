"""Evaluation: whole episodes, exactly as many as asked, and no trace left behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agents.random import Random, RandomConfig
from agents.run.evaluate import EvalResult, evaluate, frames_of
from tests.agents.counting_agent import ENV, CountingAgent, CountingConfig
from worldmodel.envs import EnvConfig, env_spec, make_vector

COUNTING = EnvConfig(id=ENV, kwargs={"lengths": (2, 9)}, state=True)
LEFT_RIGHT = EnvConfig(id="tests.envs_for_tests:LeftRightEnv", image_size=[32, 32])
CPU = torch.device("cpu")


def spec_of(config: EnvConfig):
    envs = make_vector(config, 1, seed=0)
    envs.close()
    return env_spec(envs)


@pytest.mark.parametrize(("episodes", "num_envs"), [(1, 4), (4, 2), (5, 2), (7, 3)])
def test_shares_episodes_out_before_they_start(episodes: int, num_envs: int) -> None:
    agent = CountingAgent(spec_of(COUNTING), CountingConfig(), CPU)
    result = evaluate(agent, agent.spec, COUNTING, episodes, num_envs=num_envs)
    # Every environment alternates 2 and 9 steps. Taking whatever ends first would be biased
    # towards the short ones: of two environments, five episodes would be 2, 2, 9, 9, 2 only.
    n = min(num_envs, episodes)
    shares = [episodes // n + (i < episodes % n) for i in range(n)]
    expected = [[2, 9][k % 2] for share in shares for k in range(share)]
    assert result.lengths == expected
    assert result.returns == [length * (length + 1) / 2 for length in expected]
    assert result.mean == pytest.approx(np.mean(result.returns))


def test_uses_the_mode_of_the_policy_unless_told() -> None:
    agent = CountingAgent(spec_of(COUNTING), CountingConfig(), CPU)
    evaluate(agent, agent.spec, COUNTING, 1)
    assert set(agent.modes) == {"mode"}
    agent.modes.clear()
    evaluate(agent, agent.spec, COUNTING, 1, mode="sample")
    assert set(agent.modes) == {"sample"}
    with pytest.raises(ValueError, match="Unknown action mode 'best'"):
        evaluate(agent, agent.spec, COUNTING, 1, mode="best")
    with pytest.raises(ValueError, match="episodes=0"):
        evaluate(agent, agent.spec, COUNTING, 0)


def test_leaves_the_random_generators_alone_and_repeats_itself() -> None:
    agent = CountingAgent(spec_of(LEFT_RIGHT_COUNT), CountingConfig(), CPU)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    runs = [
        evaluate(agent, agent.spec, LEFT_RIGHT_COUNT, 3, seed=s, record=True).batch(agent.spec)
        for s in (1, 1, 2)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(runs[0].action, runs[1].action)
    assert not torch.equal(runs[0].action, runs[2].action)


LEFT_RIGHT_COUNT = EnvConfig(id=ENV, kwargs={"length": 30}, state=True)


def test_records_one_whole_episode() -> None:
    agent = CountingAgent(spec_of(COUNTING), CountingConfig(), CPU)
    result = evaluate(agent, agent.spec, COUNTING, 4, num_envs=2, record=True)
    batch = result.batch(agent.spec)
    assert batch.shape == (1, 3)  # a reset and two steps
    assert batch.is_first[0].tolist() == [True, False, False]
    assert batch.is_last[0].tolist() == [False, False, True]
    assert batch.obs["count"][0, :, 1].tolist() == [0, 1, 2]
    frames = frames_of(result, agent, agent.spec, COUNTING)
    assert [frame[0, 0, 1] for frame in frames] == [0, 1, 2]  # green counts the steps


def test_films_an_agent_that_sees_no_image() -> None:
    config = EnvConfig(id="CartPole-v1", pixels=False)
    agent = Random(spec_of(config), RandomConfig(), CPU)
    result = evaluate(agent, agent.spec, config, 1, record=True)
    frames = frames_of(result, agent, agent.spec, config)
    assert len(frames) > 5
    assert frames[0].shape == (256, 256, 3)
    assert any((frame != frames[0]).any() for frame in frames)


def test_one_episode_has_no_deviation() -> None:
    assert EvalResult([2.0], [5]).line() == "2.0 over 1 episode"
    assert EvalResult([2.0, 4.0], [5, 5]).line() == "3.0 ± 1.0 over 2 episodes"
