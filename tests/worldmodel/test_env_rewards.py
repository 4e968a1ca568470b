"""Keys that only the replay sees, and reward functions in place of the task's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.model_batches import random_batch, tiny
from worldmodel.envs import EnvConfig, EnvError, RewardFunction, env_spec, make_env, make_vector
from worldmodel.replay import Replay, ReplayConfig
from worldmodel.rssm import WorldModel
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec

ENV = "tests.envs_for_tests:CountingEnv"
HERE = "tests.worldmodel.test_env_rewards"


def config(actions: str = "discrete", **settings: Any) -> EnvConfig:
    base: dict[str, Any] = {"id": ENV, "image_size": [32, 32], "keys": ["image"]}
    return EnvConfig(**base | settings, kwargs={"length": 4, "actions": actions})


SEEN: list[tuple[Any, ...]] = []


def witness(obs: Any, action: Any, next_obs: Any, info: Any) -> float:
    """The step that an action led to, and a memory of all that came."""
    SEEN.append((obs["count"].copy(), action, next_obs["count"].copy(), info))
    return 10.0 * next_obs["count"][1]


def together(obs: Any, action: Any, next_obs: Any, info: Any) -> np.ndarray:
    return 10.0 * next_obs["count"][:, 1]


together.vectorised = True  # type: ignore[attr-defined]


def broken(obs: Any, action: Any, next_obs: Any, info: Any) -> float:
    return 1.0 / (info["step"] - 2)


def two(obs: Any, action: Any, next_obs: Any, info: Any) -> Any:
    return [1.0, 2.0]


def nan(obs: Any, action: Any, next_obs: Any, info: Any) -> float:
    return float("nan") if info["step"] == 3 else 0.0


def short(obs: Any, action: Any, next_obs: Any, info: Any) -> Any:
    return np.zeros(len(action) - 1)


short.vectorised = True  # type: ignore[attr-defined]


def test_recorded_keys_arrive_and_no_model_sees_them() -> None:
    env = make_env(config(record=["count"]), seed=0)
    spec = env_spec(env)
    assert spec.obs["count"] == ObsSpec("recorded", (3,))
    assert sorted(spec.seen) == ["image"]
    obs, _ = env.reset()
    assert obs["count"].dtype == np.float32
    assert env.observation_space.contains(obs)
    obs, *_ = env.step(2)
    assert obs["count"].tolist() == [0, 1, 2]
    torch.manual_seed(0)
    model = WorldModel(spec, tiny())
    with_key, without = random_batch(spec), random_batch(spec)
    without.obs = {"image": with_key.obs["image"]}
    found = []
    for batch in (with_key, without):
        torch.manual_seed(1)
        found.append(model.losses(batch))
    assert set(found[0].losses) == {"dyn", "rep", "reward", "cont", "image"}
    assert torch.equal(found[0].states.stoch, found[1].states.stoch)
    assert sorted(model.decode(found[0].states)) == ["image"]


def test_a_recorded_key_survives_the_replay(tmp_path: Path) -> None:
    spec = EnvSpec({"x": ObsSpec("recorded", (2,))}, ActionSpec("discrete", (2,)))
    replay = Replay(spec, ReplayConfig(capacity=10), 1)
    nothing = np.zeros(1, bool)
    row = {"x": [[1.0, 2.0]], "action": [[1.0, 0.0]], "reward": [0.0], "is_first": ~nothing}
    replay.add(row | {"is_last": nothing, "is_terminal": nothing})
    state = replay.save(tmp_path)
    replay.commit()
    again = Replay(spec, ReplayConfig(capacity=10), 1)
    again.load(tmp_path, state)
    assert again.rows(0, 0, 1)["x"].tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (["cuont"], r"record names 'cuont', but the observation has \['count', 'image'\]"),
        (["image"], "record names 'image', which agents see"),
    ],
)
def test_impossible_records_are_refused(record: list[str], message: str) -> None:
    with pytest.raises(EnvError, match=message):
        make_env(config(record=record))


@pytest.mark.parametrize("actions", ["discrete", "box"])
def test_a_function_sees_what_an_action_led_from_and_to(actions: str) -> None:
    SEEN.clear()
    env = make_env(config(actions, record=["count"], reward=f"{HERE}:witness"), seed=0)
    env.reset()
    taken = [2, 0, 1] if actions == "discrete" else [np.array([0.5, 3.0]), np.zeros(2), -np.ones(2)]
    rewards = [env.step(action)[1] for action in taken]
    assert rewards == [10.0, 20.0, 30.0]
    for t, (before, action, after, info) in enumerate(SEEN):
        assert before[1] == t
        assert after[1] == t + 1
        assert np.array_equal(action, np.clip(taken[t], -1, 1) if actions == "box" else taken[t])
        # The environment's own record of what it was given: [-1, 1] there is [-2, 4].
        native = after[2] if actions == "discrete" else (after[2:] - 1) / 3
        assert np.allclose(native, action)
        assert (info["episode"], info["step"], info["reward"]) == (0, t + 1, t + 1.0)


def test_episodes_keep_their_numbers_when_a_run_goes_on() -> None:
    settings = config(record=["count"], reward=f"{HERE}:witness")
    first, second = (make_vector(settings, 1, seed=0) for _ in range(2))
    first.reset()
    for _ in range(7):  # four steps, a reset, two steps of the next episode
        first.step([0])
    then = first.snapshot()
    second.restore(then)
    SEEN.clear()
    for envs in (first, second):
        envs.step([0])
    assert [(info["episode"], info["step"]) for *_, info in SEEN] == [(1, 3), (1, 3)]


def test_a_vectorised_function_gives_the_same_rewards() -> None:
    rewards = []
    for name in ("witness", "together"):
        env = make_env(config(record=["count"], reward=f"{HERE}:{name}"), seed=0)
        env.reset()
        rewards.append([env.step(1)[1] for _ in range(4)])
    assert rewards[0] == rewards[1]


def test_a_restored_environment_has_the_same_reward() -> None:
    envs = make_vector(config(record=["count"], reward=f"{HERE}:witness"), 2, seed=0)
    envs.reset()
    for _ in range(3):
        envs.step(np.array([0, 1]))
    saved = envs.snapshot()
    other = make_vector(config(record=["count"], reward=f"{HERE}:witness"), 2, seed=0)
    obs, rewards, *_, infos = other.restore(saved)
    assert not infos["restarted"].any()
    assert rewards.tolist() == [30.0, 30.0]
    assert obs["count"][:, 1].tolist() == [3, 3]
    envs.close()
    other.close()


def test_a_function_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def seven(obs, action, next_obs, info):\n    return 7\n")
    assert RewardFunction(f"{file}:seven").one({}, 0, {}, {"episode": 0, "step": 1}) == 7.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hang", "does not name a function. Write module:function"),
        ("nowhere.at.all:hang", "There is no module 'nowhere.at.all'"),
        ("nowhere.py:hang", "There is no file 'nowhere.py'"),
        (f"{HERE}:witnes", "Did you mean 'witness'"),
        (f"{HERE}:SEEN", "is a list, not a function"),
    ],
)
def test_functions_that_do_not_exist_are_explained(name: str, message: str) -> None:
    with pytest.raises(EnvError, match=message):
        RewardFunction(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", r"failed at episode 0, step 2 \(line \d+\): ZeroDivisionError"),
        (
            "two",
            r"returned an array of shape \[2\] at episode 0, step 1; it must return one number",
        ),
        ("nan", "returned nan at episode 0, step 3; rewards must be finite"),
        ("short", r"shape \[0\] .* vectorised, so it must return \[1\] numbers"),
    ],
)
def test_functions_that_misbehave_are_explained(name: str, message: str) -> None:
    env = make_env(config(reward=f"{HERE}:{name}"), seed=0)
    env.reset()

    def play() -> None:
        for _ in range(4):
            env.step(0)

    with pytest.raises(EnvError, match=message):
        play()
