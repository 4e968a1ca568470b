"""Environments that answer anything: what passes is what their spaces say, and all else is a
failure of that environment, in our words."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import example, given
from hypothesis import strategies as st

import agents
from agents.random import RandomConfig
from agents.run.collect import Collector
from tests.fuzz.common import ARRAYS, SCALARS, altered, cases, deep, ours
from tests.fuzz.odd_env import ERRORS, ODD, SPACE, Will, good
from worldmodel.envs import EnvConfig, Vector, env_spec, make_env, make_vector
from worldmodel.images import ASKED
from worldmodel.replay import Replay, ReplayConfig

CONFIG = EnvConfig("tests.fuzz.odd_env:OddEnv", image_size=[32, 32], state=True, num_envs=2)
CPU = torch.device("cpu")

OBJECTS = st.one_of(
    st.sampled_from(ODD).map(Will),
    st.sampled_from([deep(50), deep(2000), object, print, set(), {1}, 1j, range(3), np.float32]),
    st.builds(lambda array: np.ma.masked_array(array, array != 0), ARRAYS),
    st.sampled_from(["M8[s]", "O", "S3", "U3", "V4", "f2", "c8"]).map(lambda d: np.zeros(2, d)),
    st.builds(lambda array: [array.tolist(), array], ARRAYS),
    ARRAYS.map(lambda array: torch.from_numpy(np.array(array))),
)
VALUES = st.one_of(SCALARS, ARRAYS, OBJECTS)
INFOS = st.one_of(
    st.dictionaries(
        st.one_of(st.sampled_from(["restarted", "failures", "_a", "a", "action_mask", "b"]),
                  SCALARS.filter(lambda key: not isinstance(key, float))),
        st.one_of(VALUES, st.dictionaries(st.sampled_from(["a", "_a"]), VALUES)), max_size=3,
    ),
    VALUES,
)  # fmt: skip
NEAR = {  # by place: values that are almost right, so that some pass
    "reward": st.one_of(st.floats(), st.integers(-3, 3), st.booleans(), ARRAYS),
    "terminated": st.one_of(st.booleans(), st.sampled_from([0, 1, np.bool_(True), 2, 0.5, "x"])),
    "vector": st.one_of(ARRAYS, st.lists(st.floats(width=32), min_size=2, max_size=2)),
    "class": st.one_of(st.integers(-3, 4), ARRAYS),
    "action_mask": st.lists(st.sampled_from([0, 1, 2, True, 1.0]), min_size=1, max_size=3),
    "image": st.sampled_from(["u1", "i8", "f4", "?"]).map(lambda d: np.ones((32, 32, 3), d)),
}
PLACES = ["obs", "reward", "terminated", "truncated", "info", "whole", *SPACE.spaces]
ANSWERS = st.one_of(
    st.just(("", None)),
    st.tuples(st.sampled_from(PLACES), VALUES),
    st.sampled_from(sorted(NEAR)).flatmap(lambda place: st.tuples(st.just(place), NEAR[place])),
    st.tuples(st.just("info"), INFOS),
    st.tuples(st.just("obs"), st.deferred(lambda: altered(good(), VALUES))),
    st.tuples(st.just("raise"), st.sampled_from(sorted(ERRORS))),
)
SCRIPTS = st.lists(ANSWERS, min_size=1, max_size=4).map(lambda script: [("", None), *script])


def play(config: EnvConfig, steps: int, kind: str) -> None:
    """Collect with random actions into a replay, which refuses what is not finite or misshapen."""
    with ours(kind), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy has its own words for odd values
        envs = make_vector(config, seed=0)
        try:
            spec = env_spec(envs)
            agent = agents.make("random", spec, RandomConfig(), CPU)
            replay = Replay(spec, ReplayConfig(capacity=60), envs.num_envs)
            collector = Collector(envs, spec, agent, 0)
            for _ in range(steps):
                collector.step(replay)
                right(envs, collector)
            envs.snapshot()
        finally:
            envs.close()


def right(envs: Vector, collector: Collector) -> None:
    """What arrived is what the spaces declare, whatever the environments said."""
    for key, space in envs.single_observation_space.spaces.items():  # type: ignore[attr-defined]
        assert all(space.contains(row) for row in collector.seen[key]), key
        assert np.isfinite(collector.seen[key]).all()
    for name in ("is_first", "is_last", "is_terminal"):
        assert collector.rows[name].dtype == bool
    assert np.isfinite(collector.rows["reward"]).all()


@pytest.mark.filterwarnings("ignore")
@cases(60, 400)
@given(SCRIPTS, st.integers(1, 2))
@example([("", None), ("raise", "wordless")], 2)
@example([("", None), ("info", "itself")], 1)
@example([("", None), ("reward", Will("repr"))], 1)
def test_answers_in_this_process(script: list[Any], repeat: int) -> None:
    config = replace(CONFIG, kwargs={"script": script}, action_repeat=repeat)
    play(config, 6, "environments, one process")


@pytest.mark.filterwarnings("ignore")
@cases(2, 10)
@given(SCRIPTS)
@example([("", None), ("raise", "wordless"), ("", None), ("info", {"a": Will("pickle"), "b": 1})])
def test_answers_of_processes(script: list[Any]) -> None:
    config = replace(CONFIG, kwargs={"script": script}, vector="async", timeout=20.0, num_envs=1)
    play(config, 6, "environments, processes")


# Spaces.

SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 8, 9, 33]), max_size=5).map(tuple)
RANGES = [
    (np.uint8, 0, 255), (np.uint8, 0, 1), (np.float32, -np.inf, np.inf), (np.float32, -1, 1),
    (np.float64, -1, np.inf), (np.float64, 0, 255), (np.int64, -1, 1), (np.float16, 0, 1),
    (np.int8, -1, 1), (np.bool_, 0, 1), (np.float32, 1, 1), (np.uint16, 0, 65535),
    (np.int32, -5, 300), (np.float32, 0, 1), (np.uint8, 3, 90),
]  # fmt: skip
BOXES = st.builds(
    lambda kind, shape: spaces.Box(kind[1], kind[2], shape, kind[0]),
    st.sampled_from(RANGES),
    SHAPES,
)
LEAVES = st.one_of(
    BOXES,
    BOXES,
    st.builds(spaces.Discrete, st.integers(1, 4), start=st.integers(-3, 3)),
    st.builds(spaces.MultiDiscrete, st.lists(st.integers(1, 3), min_size=1, max_size=3)),
    st.builds(spaces.MultiBinary, st.sampled_from([1, 3, (8, 8), (2, 2)])),
    st.builds(spaces.Text, st.integers(1, 3)),
    st.builds(lambda space: spaces.Sequence(space), st.just(spaces.Discrete(2))),
    st.just(spaces.Graph(spaces.Discrete(2), None)),
)
KEYS = st.sampled_from(["a", "b", "a_b", "image", "state", "action", "reward", "is_first", "deter",
                        "action_mask", "", "a/b", "a.b", "..", "ä", "frame", "row"])  # fmt: skip
SPACES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.dictionaries(KEYS, inner, max_size=3).map(spaces.Dict),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: spaces.Tuple(parts)),
    ),
    max_leaves=5,
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "pixels": st.booleans(), "state": st.booleans(), "action_mask": st.booleans(),
        "keys": st.lists(KEYS, max_size=2), "record": st.lists(KEYS, max_size=2),
        "kinds": st.dictionaries(KEYS, st.sampled_from(ASKED), max_size=2),
        "ranges": st.dictionaries(KEYS, st.sampled_from([[0, 1], [-1, 300]]), max_size=2),
        "longest_episode": st.integers(1, 3),
        "grayscale": st.booleans(), "time_limit": st.integers(1, 3),
        "crop": st.lists(st.integers(0, 40), min_size=4, max_size=4),
    },
)  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@cases(100, 800)
@given(SPACES, st.one_of(st.just(spaces.Discrete(2)), LEAVES), OPTIONS, st.booleans())
def test_spaces(
    observed: spaces.Space[Any], acted: spaces.Space[Any], options: dict[str, Any], renders: bool
) -> None:
    kwargs = {"observation_space": observed, "observation": None, "action_space": acted}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kwargs["observation"] = observed.sample()  # of millions of numbers, at times
    with ours("environments, spaces"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if renders:
            kwargs["render_mode"] = "rgb_array"
        config = EnvConfig("tests.envs_for_tests:OddSpacesEnv", image_size=[32, 32],
                           kwargs=kwargs, **options)  # fmt: skip
        env = make_env(config, 0, whole=True)
        try:
            spec = env_spec(env)
            obs, _ = env.reset()
            agent = agents.make("random", spec, RandomConfig(), CPU)
            for _ in range(2):
                assert env.observation_space.contains(obs)
                batch = {key: value[None] for key, value in obs.items()}
                action = spec.action.decode(agent.act(batch)[0])[0]
                obs, _, _, truncated, _ = env.step(action)
                if truncated:
                    break
            Replay(spec, ReplayConfig(capacity=10), 1)
        finally:
            env.close()
