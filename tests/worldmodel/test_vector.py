"""Environments that step together: the rows, who owns them, seeds, spaces and actions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from worldmodel.envs import EnvConfig, EnvError, _Maker, make_env, make_vector
from worldmodel.envs.infos import merged
from worldmodel.envs.journal import env_seeds, episode_seed
from worldmodel.envs.vector import Vector

DICE = "tests.envs_for_tests:DiceEnv"
COUNTING = "tests.envs_for_tests:CountingEnv"
BOTH = pytest.mark.parametrize("vector", ["sync", "async"])


def dice(**kwargs: Any) -> EnvConfig:
    return EnvConfig(DICE, image_size=[32, 32], state=True, **kwargs)


def assert_same_rows(ours: Any, theirs: Any) -> None:
    """Observations, rewards and flags, to the bit."""
    assert ours[0].keys() == theirs[0].keys()
    for key in ours[0]:
        assert ours[0][key].dtype == theirs[0][key].dtype
        assert ours[0][key].tobytes() == theirs[0][key].tobytes(), key
    for one, other in zip(ours[1:4], theirs[1:4], strict=True):
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes()


@BOTH
def test_rows_are_those_of_gymnasiums_own_vector(vector: str) -> None:
    config = dice()
    makers = [_Maker(config, seed) for seed in env_seeds(4, 3)]
    theirs = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP)
    ours = make_vector(dice(vector=vector), 3, seed=4)
    for name in ("single_observation_space", "single_action_space", "action_space", "num_envs"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.observation_space == theirs.observation_space
    assert ours.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    assert ours.render_mode == theirs.render_mode
    try:
        nothing = (np.zeros(3), np.zeros(3, bool), np.zeros(3, bool))
        assert_same_rows((ours.reset()[0], *nothing), (theirs.reset()[0], *nothing))
        rng, ends, firsts = np.random.default_rng(0), 0, 0
        for _ in range(60):
            action = rng.integers(0, [2, 3], (3, 2))
            one, other = ours.step(action), theirs.step(action)
            assert_same_rows(one, other)
            assert not one[4].pop("restarted").any()
            assert one[4].pop("failures") == []
            assert one[4].keys() == other[4].keys()
            for key in other[4]:
                np.testing.assert_array_equal(one[4][key], other[4][key])
            firsts += int(("_drawn" in other[4]) and (~other[4]["_drawn"]).sum())
            ends += int((one[2] | one[3]).sum())
        assert ends > 5  # there was something to reset
        assert firsts > 5
    finally:
        ours.close()


def test_several_equal_as_many_single_ones() -> None:
    together = make_vector(dice(), 3, seed=9)
    rows = [together.reset()[0]]
    rng = np.random.default_rng(1)
    actions = rng.integers(0, [2, 3], (12, 3, 2))
    for action in actions:
        rows.append(together.step(action)[0])
    for index, seed in enumerate(env_seeds(9, 3)):
        env, over = make_env(dice(), seed), False
        alone = [env.reset()[0]]
        for action in actions:
            if over:
                obs, over = env.reset()[0], False
            else:
                obs, _, terminated, truncated, _ = env.step(action[index])
                over = terminated or truncated
            alone.append(obs)
        for one, row in zip(alone, rows, strict=True):
            for key in one:
                np.testing.assert_array_equal(one[key], row[key][index])


@BOTH
def test_rows_stay_as_they_were_returned(vector: str) -> None:
    envs = make_vector(dice(vector=vector), 2, seed=0)
    try:
        kept = [envs.reset()[0]]
        copies = [{key: value.copy() for key, value in kept[0].items()}]
        for _ in range(3):
            kept.append(envs.step(np.zeros((2, 2), int))[0])
            copies.append({key: value.copy() for key, value in kept[-1].items()})
        for row, copy in zip(kept, copies, strict=True):
            for key in row:
                np.testing.assert_array_equal(row[key], copy[key])
                row[key][:] = 0  # and may be written to
        assert envs.step(np.zeros((2, 2), int))[0]["image"].shape == (2, 32, 32, 3)
    finally:
        envs.close()


# Episodes and seeds


def test_every_reset_has_a_seed_of_its_own() -> None:
    env = make_env(dice(), seed=3)
    firsts = [env.reset()[0]["dice"].tolist() for _ in range(3)]
    assert len({tuple(row) for row in firsts}) == 3
    assert env.episode == 2
    again = make_env(dice(), seed=3)
    for _ in range(2):  # what was done in an episode does not reach the next one
        again.reset()
        again.step(np.array([1, 1]))
    assert again.reset()[0]["dice"].tolist() == firsts[2]
    assert again.reset(seed=3)[0]["dice"].tolist() == firsts[0]
    assert again.episode == 0
    assert again.reset()[0]["dice"].tolist() == firsts[1]


def test_episode_seeds_are_far_apart_and_fit_into_31_bits() -> None:
    seeds = {episode_seed(s, k) for s in range(40) for k in range(40)}
    assert len(seeds) == 1600
    assert max(seeds) < 2**31


def test_a_seed_given_to_reset_starts_the_numbering_anew() -> None:
    envs = make_vector(dice(), 2, seed=5)
    first = envs.reset()[0]["dice"]
    second = envs.reset()[0]["dice"]
    np.testing.assert_array_equal(envs.reset(seed=5)[0]["dice"], first)
    np.testing.assert_array_equal(envs.reset()[0]["dice"], second)
    other = envs.reset(seed=[env_seeds(5, 2)[0], None])[0]["dice"]
    np.testing.assert_array_equal(other[0], first[0])
    assert (other[1] != second[1]).any()  # its third episode
    with pytest.raises(EnvError, match="3 seeds were given for 2"):
        envs.reset(seed=[1, 2, 3])
    with pytest.raises(EnvError, match="seed is -1"):
        envs.reset(seed=-1)


# Actions: a wrong one is the caller's fault, and restarts nothing


@pytest.mark.parametrize(
    ("kind", "actions", "message"),
    [
        ("discrete", [0, 3], "lies outside"),
        ("discrete", [0, -1], "lies outside"),
        ("discrete", [0.0, 1.0], "whole numbers"),
        ("discrete", [0], r"shape \[2\], but are int64 \[1\]"),
        ("multidiscrete", [[0, 2], [2, 0]], "lies outside"),
        ("box", [[0.0, np.nan], [0, 0]], "not finite"),
        ("box", [["a", "b"], ["c", "d"]], "must be numbers"),
    ],
)
def test_wrong_actions_are_errors_and_change_nothing(kind: str, actions: Any, message: str) -> None:
    config = EnvConfig(COUNTING, pixels=False, kwargs={"actions": kind})
    envs = make_vector(config, 2, seed=0)
    with pytest.raises(EnvError, match="before the first reset"):
        envs.step(np.zeros(envs.action_space.shape or (), envs.action_space.dtype))
    envs.reset()
    with pytest.raises(EnvError, match=message):
        envs.step(np.array(actions))
    good = np.zeros(envs.action_space.shape or (), envs.action_space.dtype)
    assert envs.step(good)[0]["count"][:, 1].tolist() == [1, 1]
    assert envs.failures == 0


def test_the_action_after_an_end_may_be_anything() -> None:
    config = EnvConfig(COUNTING, pixels=False, kwargs={"actions": "box", "lengths": (1,)})
    envs = make_vector(config, 1, seed=0)
    envs.reset()
    envs.step(np.zeros((1, 2)))
    obs, reward, terminated, *_ = envs.step(np.full((1, 2), np.nan))
    assert (obs["count"][0, 1], reward[0], terminated[0]) == (0, 0, False)


@BOTH
def test_what_cannot_be_made_is_an_error_at_once_in_its_own_words(vector: str) -> None:
    for settings, message in (
        ({"id": "Pendulm-v1"}, "Did you mean 'Pendulum-v1'"),
        ({"id": COUNTING, "kwargs": {"lenght": 3}}, "Did you mean 'length'"),
    ):
        with pytest.raises(EnvError, match=message):
            make_vector(EnvConfig(vector=vector, **settings), 2)


def test_settings_that_no_process_can_be_sent_are_an_error() -> None:
    config = EnvConfig(COUNTING, vector="async", kwargs={"length": lambda: 3})
    with pytest.raises(EnvError, match="cannot be sent to another process"):
        make_vector(config, 1)


@pytest.mark.parametrize("name", ["timeout", "start_timeout", "max_failures"])
def test_limits_must_be_above_zero(name: str) -> None:
    setting: dict[str, Any] = {name: 0}
    with pytest.raises(EnvError, match=name):
        EnvConfig(COUNTING, **setting)


def test_a_closed_vector_says_so() -> None:
    envs = make_vector(dice(), 1, seed=0)
    envs.reset()
    envs.close()
    envs.close()
    with pytest.raises(EnvError, match="closed"):
        envs.step(np.zeros((1, 2), int))


def test_infos_keep_their_types() -> None:
    infos: list[dict[str, Any]] = [
        {"a": 1, "b": 0.5, "d": {"x": 1}, "v": np.ones(2), "huge": 2**80},
        {"a": 2, "c": True, "d": {}, "v": np.zeros(2), "odd": "word"},
        {"v": np.zeros(2), "odd": np.ones(3)},
    ]
    out = merged(infos)
    assert out["a"].tolist() == [1, 2, 0]
    assert out["_a"].tolist() == [True, True, False]
    assert out["b"].dtype == np.float64
    assert out["c"].dtype == bool
    assert out["d"]["x"].tolist() == [1, 0, 0]
    assert out["v"].shape == (3, 2)
    assert out["huge"].tolist() == [2**80, None, None]
    assert out["odd"][1] == "word"
    assert merged([{}, {}]) == {}


def test_info_entries_that_no_process_can_send_stay_behind() -> None:
    value = spaces.Box(0, 1, (1,), np.float32)
    kwargs = {
        "observation_space": value,
        "observation": np.zeros(1, np.float32),
        "info": {"good": 3},
    }
    config = EnvConfig(
        "tests.worldmodel.test_vector:SecretInfo", vector="async", pixels=False, kwargs=kwargs
    )
    envs = make_vector(config, 1)
    try:
        infos = envs.reset()[1]
        assert infos["good"].tolist() == [3]
        assert "secret" not in infos
    finally:
        envs.close()


def SecretInfo(**kwargs: Any) -> Any:
    from tests.envs_for_tests import OddSpacesEnv

    kwargs["info"] = {**kwargs["info"], "secret": lambda: 0}
    return OddSpacesEnv(**kwargs)


def test_make_vector_returns_our_own() -> None:
    assert isinstance(make_vector(dice(), 1), Vector)
