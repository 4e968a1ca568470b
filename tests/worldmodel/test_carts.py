"""The two carts: what they pay, where they end, and that an episode can be played again."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from worldmodel.envs import EnvConfig, EnvError, make_env
from worldmodel.envs.carts import Balance, SwingUp
from worldmodel.models.known import end_function, reward_function


def test_it_pays_for_the_pole_s_tip_and_never_ends() -> None:
    env, function = make_env(EnvConfig("swing_up", "carts", pixels=False), seed=0), None
    function = reward_function("swing_up")
    assert function is not None
    obs, _ = env.reset(seed=3)
    rng, last = np.random.default_rng(0), False
    for step in range(200):
        action = rng.uniform(-1, 1, 1).astype(np.float32)
        after, reward, ended, last, _ = env.step(action)
        state, new = torch.tensor(obs["state"]), torch.tensor(after["state"])
        assert float(function(state, torch.tensor(action), new)) == pytest.approx(reward, abs=1e-5)
        assert not ended
        assert last == (step == 199)
        obs = after
    assert last


def test_it_hangs_and_would_pay_1_above_the_middle() -> None:
    env = SwingUp()
    env.reset(seed=0)
    env._data.qpos[:], env._data.qvel[:] = [0, np.pi], 0
    assert env.step(np.zeros(1, np.float32))[1] == pytest.approx(1, abs=1e-3)
    env._data.qpos[:], env._data.qvel[:] = 0, 0
    for _ in range(20):  # it stays where it hangs
        obs, reward, *_ = env.step(np.zeros(1, np.float32))
    assert np.abs(obs).max() < 0.01
    assert reward == pytest.approx(np.exp(-4), abs=1e-3)


def test_pushed_as_hard_as_gymnasium_s_it_moves_as_gymnasium_s() -> None:
    ours, theirs = Balance(), gymnasium.make("CartPole-v1")
    ours.reset(seed=0)
    obs, _ = theirs.reset(seed=0)
    ours.state = np.array(theirs.unwrapped.state)  # type: ignore[attr-defined]
    function = end_function("cartpole")
    assert function is not None
    for step in range(100):
        push = step % 3 // 2
        obs, reward, ended, *_ = theirs.step(push)
        mine, pay, fell, *_ = ours.step(np.array([2.0 * push - 1], np.float32))
        np.testing.assert_allclose(mine, obs, rtol=1e-4, atol=1e-5)
        assert (pay, fell) == (reward, ended)
        assert bool(function(*3 * [torch.tensor(mine)])) == fell
        if fell:
            return
    raise AssertionError("it should have fallen")


def test_pictures_and_errors() -> None:
    for name in ("swing_up", "balance"):
        env = make_env(EnvConfig(name, "carts"), seed=0)
        obs, _ = env.reset()
        assert obs["image"].std() > 10
    with pytest.raises(EnvError, match=r"Unknown cart 'swingup'.*Did you mean 'swing_up'"):
        make_env(EnvConfig("swingup", "carts"))
    with pytest.raises(EnvError, match="takes no arguments; given: length"):
        make_env(EnvConfig("balance", "carts", kwargs={"length": 2}))
