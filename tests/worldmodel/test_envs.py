"""What make_env promises: repeats, limits, alignment, spaces, seeds and clear errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from tests.envs_for_tests import OddSpacesEnv
from worldmodel import types
from worldmodel.envs import EnvConfig, EnvError, describe, env_spec, make_env, make_vector, notes
from worldmodel.envs import spaces as flat

COUNTING = "tests.envs_for_tests:CountingEnv"
LEFT_RIGHT = "tests.envs_for_tests:LeftRightEnv"


def counting(**kwargs: Any) -> EnvConfig:
    names = {"length", "end", "actions", "masked", "lengths"}
    inner = {k: kwargs.pop(k) for k in list(kwargs) if k in names}
    return EnvConfig(COUNTING, image_size=[32, 32], kwargs=inner, **kwargs)


def odd(space: spaces.Space[Any], value: Any, **kwargs: Any) -> tuple[gymnasium.Env, OddSpacesEnv]:
    """An environment with that observation, and the native one inside."""
    names = {"action_space", "info", "result"}
    inner = {k: kwargs.pop(k) for k in list(kwargs) if k in names}
    inner |= {"observation_space": space, "observation": value}
    env = make_env(EnvConfig("tests.envs_for_tests:OddSpacesEnv", kwargs=inner, **kwargs))
    native = env.unwrapped
    assert isinstance(native, OddSpacesEnv)
    return env, native


def box(*shape: int, dtype: Any = np.float32) -> spaces.Box:
    high = 255 if dtype == np.uint8 else np.inf
    return spaces.Box(0 if dtype == np.uint8 else -np.inf, high, shape, dtype)


# Time


def test_action_repeat_sums_rewards_and_stops_at_the_end() -> None:
    env = make_env(counting(length=5, action_repeat=3))
    env.reset()
    obs, reward, terminated, _, _ = env.step(0)
    assert (reward, terminated, obs["count"][1]) == (1 + 2 + 3, False, 3)
    obs, reward, terminated, _, _ = env.step(0)
    assert (reward, terminated, obs["count"][1]) == (4 + 5, True, 5)


def test_action_repeat_renders_only_the_last_frame() -> None:
    env, native = odd(box(2), np.zeros(2, np.float32), action_repeat=4)
    env.reset()
    obs, *_ = env.step(0)
    assert native.renders == 2
    assert obs["image"].max() == 4  # drawn after the fourth step


def test_time_limit_counts_agent_steps_and_truncates() -> None:
    env = make_env(counting(length=100, action_repeat=2, time_limit=3))
    env.reset()
    flags = [env.step(0)[2:4] for _ in range(3)]
    assert flags == [(False, False), (False, False), (False, True)]


def test_time_limit_replaces_the_registered_one() -> None:
    env = make_env(EnvConfig("Pendulum-v1", pixels=False, time_limit=205))
    env.reset()
    ends = [env.step(np.zeros(1))[3] for _ in range(205)]
    assert ends == [False] * 204 + [True]


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_terminated_and_truncated_stay_apart(end: str) -> None:
    env = make_env(counting(length=1, end=end))
    env.reset()
    assert env.step(0)[2:4] == (end == "terminated", end == "truncated")


def test_steps_out_of_order_are_errors() -> None:
    env = make_env(counting(length=1))
    with pytest.raises(EnvError, match="before the first reset"):
        env.step(0)
    env.reset()
    env.step(0)
    with pytest.raises(EnvError, match="after the end of the episode"):
        env.step(0)


# Vectors of environments


@pytest.mark.parametrize("vector", ["sync", "async"])
def test_autoreset_is_next_step(vector: str) -> None:
    """rows of one environment, length 2:  o0 -r1-> o1 -r2-> o2 (end)  -0-> o'0 -r1-> o'1"""
    env = make_vector(counting(length=2, end="alternate", vector=vector), 2, seed=0)
    obs, _ = env.reset()
    rows = [obs["count"][0].tolist()]
    rewards, ends, cuts = [], [], []
    for action in (1, 2, 1, 2, 1):
        obs, reward, terminated, truncated, _ = env.step(np.array([action, 0]))
        rows.append(obs["count"][0].tolist())
        rewards.append(reward[0])
        ends.append(terminated[0])
        cuts.append(truncated[0])
        assert obs["image"][0, 0, 0].tolist() == [*rows[-1][:2], 0]
    env.close()
    # The action 1 of the third call is ignored: it found an episode at its end.
    assert rows == [[0, 0, 0], [0, 1, 1], [0, 2, 2], [1, 0, 0], [1, 1, 2], [1, 2, 1]]
    assert rewards == [1, 2, 0, 1, 2]
    assert ends == [False, True, False, False, False]
    assert cuts == [False, False, False, False, True]


def test_async_equals_sync() -> None:
    def run(vector: str) -> list[np.ndarray]:
        config = EnvConfig(LEFT_RIGHT, image_size=[32, 32], vector=vector)
        env = make_vector(config, 2, seed=3)
        rows = [env.reset()[0]["image"]]
        for i in range(12):
            obs, reward, *_ = env.step(np.array([i % 2, 0]))
            rows += [obs["image"], reward]
        env.close()
        return rows

    for ours, theirs in zip(run("sync"), run("async"), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_seeds_reproduce_and_differ_between_environments() -> None:
    def start(seed: int) -> np.ndarray:
        env = make_vector(EnvConfig("Pendulum-v1", pixels=False), 3, seed)
        return env.reset()[0]["state"]

    np.testing.assert_array_equal(start(1), start(1))
    assert len(np.unique(np.concatenate([start(1), start(2)]), axis=0)) == 6


def test_a_seed_serves_the_first_reset_only() -> None:
    env = make_env(EnvConfig("Pendulum-v1", pixels=False), seed=5)
    first, second = (env.reset()[0]["state"].tolist() for _ in range(2))
    assert first != second
    assert first == env.reset(seed=5)[0]["state"].tolist()


# Observations


def test_rendered_frames_stand_in_for_images() -> None:
    env = make_env(EnvConfig("Pendulum-v1", image_size=[32, 48]))
    assert list(env_spec(env).obs) == ["image"]
    assert env.reset(seed=0)[0]["image"].shape == (32, 48, 3)
    both = make_env(EnvConfig("Pendulum-v1", state=True))
    assert env_spec(both).keys("vector") == ["state"]
    assert env_spec(both).keys("image") == ["image"]


def test_a_resized_frame_is_its_area_average() -> None:
    native = np.zeros((512, 256, 3), np.uint8)
    native[:, :128] = 200
    env, _ = odd(box(512, 256, 3, dtype=np.uint8), native, image_size=[32, 32])
    image = env.reset()[0]["image"]
    assert (image[:, :16] == 200).all()
    assert (image[:, 16:] == 0).all()


@pytest.mark.parametrize("shape", [(48, 64, 3), (3, 48, 64), (48, 64), (48, 64, 1), (48, 64, 12)])
def test_image_layouts(shape: tuple[int, ...]) -> None:
    env, _ = odd(box(*shape, dtype=np.uint8), np.full(shape, 7, np.uint8), image_size=[32, 64])
    image = env.reset()[0]["image"]
    channels = {(48, 64): 1, (3, 48, 64): 3}.get(shape, shape[-1])
    assert image.shape == (32, 64, channels) == env.observation_space["image"].shape  # type: ignore[index]
    assert (image == 7).all()


def test_crop_and_grayscale() -> None:
    native = np.zeros((50, 60, 3), np.uint8)
    native[10:-8, 6:-22] = 90  # 32 x 32 remain
    env, _ = odd(
        box(50, 60, 3, dtype=np.uint8),
        native,
        image_size=[32, 32],
        crop=[10, 8, 6, 22],
        grayscale=True,
    )
    image = env.reset()[0]["image"]
    assert image.shape == (32, 32, 1)
    assert (image == 90).all()


def test_images_are_copies() -> None:
    native = np.zeros((32, 32, 3), np.uint8)
    env, _ = odd(box(32, 32, 3, dtype=np.uint8), native, image_size=[32, 32])
    image = env.reset()[0]["image"]
    native[:] = 1
    assert (image == 0).all()


def test_nested_mixed_observations_become_flat() -> None:
    space = spaces.Dict(
        {
            "cam": spaces.Dict({"left": box(40, 40, 3, dtype=np.uint8)}),
            "pose": spaces.Tuple([box(2, 2, dtype=np.float64), spaces.Discrete(3, start=-1)]),
            "gear": spaces.MultiDiscrete([2, 3]),
            "lamps": spaces.MultiBinary(2),
            "grid": box(7, 7, 3, dtype=np.uint8),
        }
    )
    value = {
        "cam": {"left": np.full((40, 40, 3), 9, np.uint8)},
        "pose": (np.arange(4.0).reshape(2, 2), -1),
        "gear": np.array([1, 2]),
        "lamps": np.array([0, 1], np.int8),
        "grid": np.full((7, 7, 3), 2, np.uint8),
    }
    env, _ = odd(space, value)
    obs, _ = env.reset()
    assert obs["pose_0"].tolist() == [0, 1, 2, 3]
    assert obs["pose_1"].tolist() == [1, 0, 0]
    assert obs["gear"].tolist() == [0, 1, 0, 0, 1]
    assert obs["lamps"].tolist() == [1, 0, 0, 1]
    assert obs["grid"].shape == (147,)  # symbols on a tiny grid are no picture
    spec = env_spec(env)
    assert spec.keys("image") == ["cam_left"]
    assert spec.keys("discrete") == ["gear", "lamps", "pose_1"]
    assert spec.obs["gear"].sizes == (2, 3)
    for key, entry in spec.obs.items():
        assert obs[key].shape == entry.shape
        assert obs[key].dtype == (np.uint8 if entry.kind == "image" else np.float32)
        assert env.observation_space[key].contains(obs[key])  # type: ignore[index]
    assert "cam_left: image 64 x 64 x 3" in describe(spec)
    assert "gear: discrete 5 (one-hot, classes 2, 3)" in describe(spec)


def test_the_spec_of_a_vector_is_that_of_one() -> None:
    config = counting(masked=True)
    vector = make_vector(config, 2)
    assert env_spec(vector) == env_spec(make_env(config))


def test_pixels_off_leaves_the_rest_and_keys_choose() -> None:
    assert list(env_spec(make_env(counting(pixels=False))).obs) == ["count"]
    assert list(env_spec(make_env(counting(keys=["image"]))).obs) == ["image"]


# Actions


def test_box_actions_are_scaled_and_clipped_at_the_edge() -> None:
    space = spaces.Box(np.array([-2, 0], np.float32), np.array([2, 10], np.float32))
    env, native = odd(box(1), np.zeros(1, np.float32), pixels=False, action_space=space)
    assert env.action_space == spaces.Box(-1, 1, (2,), np.float32)
    env.reset()
    given = np.array([-3.0, 0.5], np.float32)
    env.step(given)
    env.step(np.array([9.0, -9.0]))
    assert np.array(native.actions).tolist() == [[-2, 7.5], [2, 0]]
    assert given.tolist() == [-3.0, 0.5]  # what the caller may store is untouched
    assert all(space.contains(a) for a in native.actions)


@pytest.mark.parametrize(
    ("space", "action", "native", "sizes"),
    [
        (spaces.Discrete(3, start=5), 2, 7, (3,)),
        (spaces.MultiDiscrete([2, 4]), [1, 3], [1, 3], (2, 4)),
        (spaces.MultiBinary(3), [1, 0, 1], [1, 0, 1], (2, 2, 2)),
    ],
)
def test_discrete_actions(space: Any, action: Any, native: Any, sizes: tuple[int, ...]) -> None:
    env, inner = odd(box(1), np.zeros(1, np.float32), pixels=False, action_space=space)
    assert env_spec(env).action == types.ActionSpec("discrete", sizes)
    env.reset()
    env.step(env_spec(env).action.decode(env_spec(env).action.encode(action)))
    assert np.array_equal(inner.actions[0], native)
    assert space.contains(inner.actions[0])
    assert type(inner.actions[0]) is type(space.sample())  # np.int64, say, which has item and shape


def test_an_action_entry_with_equal_bounds_stays_at_them() -> None:
    space = spaces.Box(np.array([-2, 3, 0], "f4"), np.array([2, 3, 10], "f4"))
    env, native = odd(box(1), np.zeros(1, np.float32), pixels=False, action_space=space)
    env.reset()
    env.step(np.array([-1.0, 0.7, 1.0]))
    assert native.actions[0].tolist() == [-2, 3, 10]


@pytest.mark.parametrize("action", [3, -1, 0.5, np.array([0, 1])])
def test_wrong_discrete_actions_are_errors(action: Any) -> None:
    env = make_env(counting())
    env.reset()
    with pytest.raises(EnvError, match="action"):
        env.step(action)


@pytest.mark.parametrize("action", [np.array([np.nan, 0.0]), np.zeros(3)])
def test_wrong_box_actions_are_errors(action: Any) -> None:
    env = make_env(counting(actions="box"))
    env.reset()
    with pytest.raises(EnvError, match="action"):
        env.step(action)


@pytest.mark.parametrize(
    "space",
    [box(2), spaces.Box(1, 1, (2,)), spaces.Dict({"a": spaces.Discrete(2)}), spaces.Text(3),
     spaces.Box(-1e38, 1e38, (2,))],
)  # fmt: skip
def test_unsupported_action_spaces_are_errors(space: Any) -> None:
    with pytest.raises(EnvError, match="action space"):
        odd(box(1), np.zeros(1, np.float32), pixels=False, action_space=space)


# Masks


def test_the_name_of_the_mask_is_the_shared_one() -> None:
    assert flat.MASK_KEY == types.MASK_KEY


def test_masks_come_from_a_dict_observation() -> None:
    env = make_env(counting(masked=True, length=3))
    assert env_spec(env).has_mask
    assert env.reset()[0]["action_mask"].tolist() == [1, 0, 0]
    assert env.step(0)[0]["action_mask"].tolist() == [0, 1, 0]


def test_masks_come_from_info_on_request() -> None:
    env = make_env(EnvConfig("Taxi-v4", pixels=False, action_mask=True))
    assert env_spec(env).obs["state"].sizes == (500,)
    obs, info = env.reset(seed=0)
    assert obs["action_mask"].dtype == np.float32
    assert obs["action_mask"].tolist() == info["action_mask"].tolist()
    assert not env_spec(make_env(EnvConfig("Taxi-v4", pixels=False))).has_mask


def test_a_mask_without_actions_is_an_error_unless_the_episode_is_over() -> None:
    nothing, some = np.zeros(2, np.int8), np.array([0, 1], np.int8)
    state = np.zeros(1, np.float32)
    options = {"pixels": False, "action_mask": True}
    env, native = odd(
        box(1),
        state,
        info={"action_mask": some},
        result=(state, 0.0, True, False, {"action_mask": nothing}),
        **options,
    )
    assert env.reset()[0]["action_mask"].tolist() == [0, 1]
    assert env.step(1)[0]["action_mask"].tolist() == [1, 1]
    native.info = {"action_mask": nothing}
    with pytest.raises(EnvError, match="allows no action"):
        env.reset()
    native.info = {}
    with pytest.raises(EnvError, match="info has no 'action_mask'"):
        env.reset()


# Environments that misbehave

OK = np.zeros(2, np.float32)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ((np.zeros(3, np.float32), 0.0, False, False, {}), r"has shape \[3\].*declares \[2\]"),
        ((np.array(["a", "b"]), 0.0, False, False, {}), "dtype"),
        ((np.array([0, np.nan], np.float32), 0.0, False, False, {}), r"nan at index \[1\]"),
        (({"a": OK}, 0.0, False, False, {}), "observation"),
        ((OK, float("inf"), False, False, {}), "reward is inf"),
        ((OK, np.zeros(2), False, False, {}), "reward must be one number"),
        ((OK, None, False, False, {}), "reward must be one number"),
        ((OK, 0.0, None, False, {}), "terminated must be True or False"),
        ((OK, 0.0, False, "no", {}), "truncated must be True or False"),
        ((OK, 0.0, False, {}), "returned a tuple of 4"),
    ],
)
def test_misbehaviour_is_one_clear_error(result: Any, message: str) -> None:
    env, _ = odd(box(2), OK, pixels=False, result=result)
    env.reset()
    with pytest.raises(EnvError, match=message):
        env.step(0)


@pytest.mark.parametrize("reward", [1, np.float32(1), np.array(1.0), True, np.ones(1), [[1]]])
def test_any_scalar_reward_is_fine(reward: Any) -> None:
    env, _ = odd(box(2), OK, pixels=False, result=(OK.astype(np.float64), reward, False, False, {}))
    env.reset()
    obs, value, *_ = env.step(0)
    assert value == 1.0
    assert obs["state"].dtype == np.float32


@pytest.mark.parametrize(
    ("space", "value", "message"),
    [
        (spaces.Discrete(3), 3, "outside of Discrete"),
        (spaces.Discrete(3), 0.5, "whole numbers"),
        (spaces.Dict({"a": box(1)}), {"b": np.zeros(1)}, r"keys \['b'\].*declares \['a'\]"),
        (spaces.Dict({"a": box(1)}), np.zeros(1), "must be a dict"),
        (spaces.Tuple([box(1)]), (), "tuple of 1"),
    ],
)
def test_observations_outside_of_their_space_are_errors(
    space: Any, value: Any, message: str
) -> None:
    env, _ = odd(space, value, pixels=False)
    with pytest.raises(EnvError, match=message):
        env.reset()


def test_float_images_are_errors() -> None:
    env, _ = odd(box(32, 32, 3, dtype=np.uint8), np.zeros((32, 32, 3), np.float32))
    with pytest.raises(EnvError, match="dtype float32, but the environment declares uint8"):
        env.reset()


@pytest.mark.parametrize("space", [spaces.Text(5), spaces.Sequence(box(1)), spaces.Dict({})])
def test_unusable_spaces_are_errors(space: Any) -> None:
    with pytest.raises(EnvError, match=r"no fixed size|Nothing to observe"):
        odd(space, None, pixels=False)


def test_what_cannot_be_read_is_named_beside_what_can() -> None:
    parts = {"mission": spaces.Text(5), "way": spaces.Discrete(4), "v": box(2)}
    with pytest.raises(EnvError, match=r"Leave it out: env.keys=\[v,way\]"):
        odd(spaces.Dict(parts), None, pixels=False)
    env, _ = odd(spaces.Dict(parts), None, pixels=False, keys=["v", "way"])
    assert notes(env)["mission"] == "left out, since a Text space has no fixed size"


def test_arrays_that_hold_nothing_are_not_observed() -> None:
    parts = spaces.Dict({"v": box(2), "none": box(0)})
    env, _ = odd(parts, None, pixels=False)
    assert list(env_spec(env).obs) == ["v"]
    assert notes(env)["none"] == "left out, since it holds nothing"
    with pytest.raises(EnvError, match=r"keys names 'none', which holds nothing: its shape is \[0"):
        odd(parts, None, pixels=False, keys=["none"])
    with pytest.raises(EnvError, match="Nothing to observe"):
        odd(box(0), None, pixels=False)


def test_pixels_of_an_environment_that_cannot_draw_are_an_error() -> None:
    with pytest.raises(EnvError, match=r"Set env\.pixels=false"):
        make_env(EnvConfig("tests.worldmodel.test_envs:Blind"))


class Blind(OddSpacesEnv):
    def __init__(self) -> None:
        super().__init__(box(2), OK)


class Demanding(OddSpacesEnv):
    """Cannot be made without a size; its close never works."""

    def __init__(self, size: int, level: str = "easy", port: int = 1) -> None:
        if port > 1:
            raise OSError(f"address in use: {port}")
        super().__init__(box(2), OK)

    def close(self) -> None:
        raise RuntimeError("connection closed already")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "Could not make .*:Demanding: TypeError: .*'size'. Give it: env.kwargs.size=...$"),
        ({"size": 1, "port": 2}, r"OSError: address in use: 2 \(test_envs.py, line .*'port': 2}.$"),
        ({"size": 1, "levle": "hard"}, "Did you mean 'level'"),
    ],
)
def test_a_constructor_that_raises_is_one_line(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvError, match=message):
        make_env(EnvConfig("tests.worldmodel.test_envs:Demanding", kwargs=kwargs, pixels=False))


def test_a_close_that_raises_is_a_warning_and_hides_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = EnvConfig("tests.worldmodel.test_envs:Demanding", kwargs={"size": 1})
    with pytest.raises(EnvError, match=r"Set env\.pixels=false"):
        make_env(config)
    make_env(replace(config, pixels=False)).close()
    make_vector(replace(config, pixels=False), 1).close()
    words = "close() of the environment failed: RuntimeError: connection closed already"
    assert [words in record.message for record in caplog.records] == [True] * 3


# Names and settings


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"id": "Pendulm-v1"}, "Unknown environment 'Pendulm-v1'. Did you mean 'Pendulum-v1'"),
        ({"id": "x", "suite": "dcm"}, "Unknown suite 'dcm'. Known: .*Did you mean 'dmc'"),
        ({"id": "walker_wlak", "suite": "dmc"}, "Did you mean 'walker_walk'"),
        ({"id": "Pong", "suite": "atari"}, "Did you mean 'pong'"),
        ({"id": "tests.envs_for_tests:CountngEnv"}, "Did you mean 'CountingEnv'"),
        ({"id": "no_such_package.mod:Env"}, "Cannot import the module"),
        ({"id": COUNTING, "kwargs": {"lenght": 3}}, "Did you mean 'length'"),
        (
            {"id": "Pendulum-v1", "kwargs": {"gg": 9.0}},
            "argument of .Pendulum-v1. .gg.. Known: g, render_mode",
        ),
        ({"id": "my_games/Chess-v0"}, "package that registers it must be imported"),
        ({"id": "MiniGrid-Empty-5x5-v0"}, "in front, env.id=minigrid:MiniGrid-Empty-5x5-v0"),
        ({"id": COUNTING, "keys": ["imag"]}, "keys names 'imag'"),
        ({}, "No environment is named"),
    ],
)
def test_unknown_names_are_errors(config: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvError, match=message):
        make_env(EnvConfig(**config))


@pytest.mark.parametrize(
    "settings",
    [
        {"image_size": [30, 32]},
        {"image_size": [64, 65536]},
        {"num_envs": 100_000},
        {"action_repeat": 10**9},
        {"image_size": [16, 16]},
        {"image_size": [64]},
        {"action_repeat": 0},
        {"vector": "asinc"},
        {"crop": [1, 2]},
    ],
)
def test_impossible_settings_are_errors(settings: dict[str, Any]) -> None:
    with pytest.raises(EnvError):
        EnvConfig("Pendulum-v1", **settings)


@pytest.mark.parametrize("form", ["tuple", "flat"])
def test_a_mask_in_parts_is_a_mask(form: str) -> None:
    config = EnvConfig("tests.envs_for_tests:PartsEnv", pixels=False, kwargs={"form": form})
    env = make_env(config)
    spec = env_spec(env)
    assert (sorted(spec.obs), spec.has_mask) == (["action_mask", "x"], True)
    obs, _ = env.reset()
    for expected in ([1, 0, 1, 0, 0], [0, 1, 0, 1, 0], [1, 0, 0, 0, 1]):
        assert obs["action_mask"].tolist() == expected
        rest = spec.action.encode(np.array([1, 2]))
        obs = env.step(spec.action.decode(spec.action.permitted(rest, obs["action_mask"])))[0]


def test_masks_that_fit_no_action_are_refused() -> None:
    with pytest.raises(EnvError, match="action_mask holds 2 parts"):
        make_env(EnvConfig("tests.envs_for_tests:PartsEnv", pixels=False, kwargs={"form": "names"}))
    env = make_env(
        EnvConfig("tests.envs_for_tests:PartsEnv", pixels=False, kwargs={"form": "tuple"})
    )
    one: Any = env.unwrapped
    seen = {"x": np.zeros(2, np.float32), "action_mask": (np.ones(3, np.int8), np.ones(2, np.int8))}
    one._seen = lambda: seen
    with pytest.raises(EnvError, match=r"one array for each of the factors \[2, 3\]"):
        env.reset()
    for none in (([1, 1], object()), ([1, 1], 1)):
        seen["action_mask"] = none
        with pytest.raises(EnvError, match=r"action_mask must hold 5 zeros and ones, .* but is"):
            env.reset()
    seen["action_mask"] = (np.ones(2, np.int8), np.zeros(3, np.int8))
    with pytest.raises(EnvError, match="allows no action"):
        env.reset()
