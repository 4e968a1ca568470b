"""Dodge: what moves, what hits, and that it can be won."""

from __future__ import annotations

import numpy as np
from gymnasium.utils.env_checker import check_env

from worldmodel.envs import EnvConfig, env_spec, make_env
from worldmodel.envs.dodge import BALL, FALL, LIMIT, PLAYER, SIDE, Dodge


def test_it_is_an_environment_of_the_house() -> None:
    check_env(Dodge(render_mode="rgb_array"), skip_render_check=True)
    spec = env_spec(make_env(EnvConfig("worldmodel.envs.dodge:Dodge", image_size=[32, 32])))
    assert spec.obs["image"].shape == (SIDE, SIDE, 3)
    assert spec.action.sizes == (3,)


def test_a_ball_falls_and_hits_whoever_stands_below() -> None:
    env = Dodge()
    env.reset(seed=0)
    env.player, env.balls = 10, [[12, 0]]
    for step in range(1, 8):
        picture, reward, hit, cut, _ = env.step(0)
        assert env.balls[0] == [12, FALL * step]
        assert (reward, cut) == (1.0, False)
        assert hit == (FALL * step + BALL > SIDE - PLAYER[1])
    assert hit
    assert picture[FALL * 7, 12].tolist() == [255, 0, 0]
    assert picture[SIDE - 1, 10].tolist()[1] == 255


def test_who_steps_aside_lives_until_it_is_cut_off() -> None:
    env = Dodge()
    for seed in range(10):
        env.reset(seed=seed)
        for step in range(1, LIMIT + 1):
            action = 0
            if env.balls:  # to the nearer side that has room, until the ball passes
                left, right = env.balls[0][0] - PLAYER[0], env.balls[0][0] + BALL
                ways = [(env.player - left, 1)] if left >= 0 else []
                ways += [(right - env.player, 2)] if right <= SIDE - PLAYER[0] else []
                if left < env.player < right:
                    action = min(ways)[1]
            _, _, hit, cut, _ = env.step(action)
            assert not hit, (seed, step)
        assert cut


def test_episodes_follow_their_seeds() -> None:
    runs = []
    for _ in range(2):
        env = Dodge()
        env.reset(seed=4)
        runs.append([env.step(i % 3)[0] for i in range(10)])
    assert all(np.array_equal(a, b) for a, b in zip(*runs, strict=True))
