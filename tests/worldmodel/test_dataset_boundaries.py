"""Where episodes end in arrays that hold several: autoresets, padding, lengths, types of steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dm_env
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tests.worldmodel.test_dataset_names import (
    TIANSHOU,
    TORCHRL,
    F,
    T,
    check,
    read,
    together,
    walks,
)
from worldmodel.envs.config import EnvConfig
from worldmodel.replay import Replay, ReplayConfig
from worldmodel.replay.datasets import Convention, Dataset, DatasetError

Arrays = dict[str, Any]
STEPS = ["auto"] * 2 + [None, "auto", "steps_first"]


class Walk(gymnasium.Env[Any, Any]):
    """x' = x + 2 a, and earns x'; of T steps, every other episode terminated."""

    observation_space = spaces.Box(-100, 100, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self) -> None:
        self.number = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.number, self.t = self.number + 7, 0
        self.x = np.array([self.number], np.float32)
        return self.x.copy(), {}

    def step(self, action: Any) -> Any:
        self.x, self.t = self.x + 2 * action, self.t + 1
        end, even = self.t == T, self.number % 2 == 0
        return self.x.copy(), float(self.x[0]), end and even, end and not even, {}


def vector_rows(mode: AutoresetMode, final: bool = True) -> Arrays:
    """What a loop over gymnasium's own vector environment keeps, [3 T + 5, 2, ...]."""
    envs = SyncVectorEnv([Walk, Walk], autoreset_mode=mode)
    envs.action_space.seed(0)
    obs, _ = envs.reset()
    rows = []
    for _ in range(3 * T + 5):
        action = envs.action_space.sample()
        after, reward, terminated, truncated, info = envs.step(action)
        last = after.copy()
        if final and "final_obs" in info:
            last[info["_final_obs"]] = np.stack(info["final_obs"][info["_final_obs"]])
        rows.append((obs, action, reward, terminated, truncated, last))
        obs = after
    names = ("observations", "actions", "rewards", "terminations", "truncations",
             "next_observations")  # fmt: skip
    return {name: np.array([row[i] for row in rows]) for i, name in enumerate(names)}


def test_autoresets_of_a_vector_environment_are_no_steps(tmp_path: Path) -> None:
    """At the next step, the row after an end leads into the next episode, and its action nowhere;
    at the same step, the next observation is of the next episode unless the last one is kept."""
    rows = vector_rows(AutoresetMode.NEXT_STEP)
    dataset = read(tmp_path, rows)
    check(dataset, [T, T, T, 2] * 2, ends=2)
    assert any("6 rows in which a vector environment" in line for line in dataset.findings)
    del rows["next_observations"]
    doubtful = read(tmp_path, rows, "taken_at", *STEPS[1:])
    assert any("offline_alignment=next_step" in line for line in doubtful.findings)
    check(read(tmp_path, rows, "next_step", *STEPS[1:]), [T, T, T, 1] * 2, ends=2)
    check(read(tmp_path, vector_rows(AutoresetMode.SAME_STEP)), [T, T, T, 5] * 2, ends=4)
    naive = vector_rows(AutoresetMode.SAME_STEP, final=False)
    dataset = read(tmp_path, naive)
    check(dataset, [T - 1] * 8)
    assert any("8 last steps are left out" in line for line in dataset.findings)


def test_ends_that_the_next_observations_go_through_are_asked_about(tmp_path: Path) -> None:
    ends = np.tile(np.arange(T) == T - 1, 3)
    x = np.arange(3 * T + 1, dtype=np.float32)[:, None]
    arrays = {"obs": x[:-1], "next_obs": x[1:], "actions": F["a"], "rewards": np.zeros(3 * T),
              "terminals": ends}  # fmt: skip
    with pytest.raises(DatasetError, match="offline_alignment=next_step or =same_step"):
        read(tmp_path, arrays)
    assert read(tmp_path, arrays, "taken_at").summary.lengths == [T] * 3
    assert read(tmp_path, arrays, "same_step").summary.lengths == [T - 1] * 3
    arrays["rewards"] = np.ones(3 * T)  # the world went on after a flag
    assert read(tmp_path, arrays).summary.lengths == [T] * 3


def test_a_ring_of_stable_baselines3_is_parted_at_its_seam(tmp_path: Path) -> None:
    buffers = pytest.importorskip("stable_baselines3.common.buffers")
    space = (Walk.observation_space, Walk.action_space)
    buffer = buffers.ReplayBuffer(2 * T + 2, *space, handle_timeout_termination=True)
    for number, walk in enumerate(walks()):
        for t in range(T - (number == 2)):
            info = [{"TimeLimit.truncated": bool(walk["end"][t]) and number == 1}]
            buffer.add(walk["x"][t], walk["x"][t + 1], walk["a"][t], walk["r"][t],
                       walk["end"][t], info)  # fmt: skip
    arrays = {k: v for k, v in vars(buffer).items() if isinstance(v, np.ndarray)}
    dataset = read(tmp_path, arrays)
    check(dataset, [2, 3, T, 2], ends=1)  # the third goes on at the front, over the first
    assert any("parted there" in line for line in dataset.findings)
    half = buffers.ReplayBuffer(40, *space, handle_timeout_termination=True)
    for t, walk in ((t, walks()[0]) for t in range(T - 1)):
        half.add(walk["x"][t], walk["x"][t + 1], walk["a"][t], walk["r"][t], False, [{}])
    dataset = read(tmp_path, {k: v for k, v in vars(half).items() if isinstance(v, np.ndarray)})
    check(dataset, [T - 1])
    assert any("36 rows at the end hold zeros alone" in line for line in dataset.findings)


def test_padded_episodes_end_where_their_steps_do(tmp_path: Path) -> None:
    """TorchRL pads its trajectories and says so in a mask; others pad without a word."""
    lengths = [T, T - 2, T]
    index = np.arange(3 * T).reshape(3, T)
    valid = np.arange(T) < np.array(lengths)[:, None]
    padded = {
        k: np.where(
            valid.reshape(*valid.shape, *[1] * (v.ndim - 1)), v[index], np.zeros_like(v[:1])
        )
        for k, v in TORCHRL.items()
    }
    dataset = read(tmp_path, {**padded, "collector/mask": valid})
    check(dataset, lengths, ends=2)
    assert any("2 rows are left out, as the mask" in line for line in dataset.findings)
    check(read(tmp_path, {**padded, "mask": valid}), lengths, ends=2)
    padded["next/terminated"][1, T - 3] = True  # no mask, but an end before the zeros
    del padded["next/done"]
    check(read(tmp_path, padded), lengths, ends=3)
    masks = np.ones((3, T))
    masks[:, -1] = 0  # of OGBench: the world ends in rows that hold steps
    stacked = {k: v.reshape(3, T, *v.shape[1:]) for k, v in TIANSHOU.items()}
    check(read(tmp_path, {**stacked, "masks": masks}), [T] * 3, ends=3)


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("meta/episode_ends", [T, 2 * T, 3 * T]),
        ("episode_lengths", [T, T, T]),
        ("ep_offset", [0, T, 2 * T]),
        ("traj_len", [T, T, T]),
    ],
)
def test_an_entry_for_each_episode_says_where_they_end(
    tmp_path: Path, name: str, entries: list[int]
) -> None:
    """As Diffusion Policy keeps them, whose arrays stand below `data/`."""
    arrays = {"data/action": F["a"], "data/state": F["x"], "data/reward": F["r"]}
    dataset = read(tmp_path, {**arrays, name: np.array(entries)}, "taken_at")
    check(dataset, [T - 1] * 3)
    assert any(f"not used: {name} (says where" in line for line in dataset.findings)
    with pytest.raises(DatasetError, match="looks like a number of the episode"):
        read(tmp_path, {**arrays, "episode_lengths": np.array([T, T + 1])}, "taken_at")


def test_types_of_steps_and_discounts_of_dm_env(tmp_path: Path) -> None:
    """First rows hold an action and a reward of nothing; a discount of 0 is an end of the world."""
    rows = []
    for number, walk in enumerate(walks()):
        rows.append((dm_env.restart(walk["x"][0]), np.zeros(1)))
        for t in range(T):
            step = dm_env.transition(walk["r"][t], walk["x"][t + 1])
            if t == T - 1:
                ended = dm_env.truncation if number == 1 else dm_env.termination
                step = ended(walk["r"][t], walk["x"][t + 1])
            rows.append((step, walk["a"][t]))
    arrays = {
        "observation": np.array([s.observation for s, _ in rows]),
        "action": np.array([a for _, a in rows]),
        "reward": np.array([s.reward or np.nan for s, _ in rows]),
        "discount": np.array([1.0 if s.discount is None else s.discount for s, _ in rows]),
        "step_type": np.array([int(s.step_type) for s, _ in rows]),
    }
    check(read(tmp_path, arrays), [T] * 3, ends=2)
    del arrays["step_type"]
    one = {k: v[: T + 1] for k, v in arrays.items()}
    check(read(tmp_path, one), [T], ends=1)


def test_chunks_of_dreamerv3_end_where_their_names_say(tmp_path: Path) -> None:
    """Its older versions write what was never filled, whatever it is."""
    walk = walks(1)[0]
    rows = {"vector": walk["x"], "action": np.concatenate([walk["a"], [[0]]]),
            "reward": np.concatenate([[0], walk["r"]]), "is_first": np.arange(T + 1) == 0,
            "is_last": np.arange(T + 1) == T, "is_terminal": np.arange(T + 1) == T,
            "reset": np.arange(T + 1) == T}  # fmt: skip
    chunk = together([rows, {k: np.full_like(v[:4], 1) for k, v in rows.items()}])
    name = f"20261127T185759F808316-1wBFmdIMe9zdhcOLYQfjt6-0C23Ntkt5QoIJjLKlBxfY0-{T + 1}.npz"
    np.savez(tmp_path / name, **chunk)
    check(Dataset(str(tmp_path)), [T], "vector", ends=1)


def test_pictures_are_cropped_and_grey_as_those_of_the_environment(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (T + 1, 40, 32, 3)).astype(np.uint8)
    frames[:, :8] = 255  # to be cut off
    walk = walks(1)[0]
    arrays = {"image": frames, "actions": walk["a"], "rewards": walk["r"]}
    config = EnvConfig("none", image_size=[32, 32], crop=[8, 0, 0, 0], grayscale=True)
    for size in ((32, 32), None):
        dataset = read(tmp_path, arrays, config=config, image_size=size)
        assert dataset.spec.obs["image"].shape == (32, 32, 1)
        replay = Replay(dataset.spec, ReplayConfig(capacity=20), 1)
        dataset.fill(replay)
        gray = frames[:, 8:] @ [0.299, 0.587, 0.114]
        assert np.abs(replay.rows(0, 0, T + 1)["image"][..., 0] - gray).max() <= 1
    assert any("cropped by [8, 0, 0, 0], in grey" in line for line in dataset.findings)
    done = {**arrays, "image": frames[:, 8:, :, :1]}
    dataset = read(tmp_path, done, spec=dataset.spec, config=config)
    assert any("already, by its size" in line for line in dataset.findings)


def test_a_file_for_each_step_is_refused_with_what_to_do(tmp_path: Path) -> None:
    for t in range(3):
        np.savez(tmp_path / f"{t}.npz", actions=np.zeros(7), robot_obs=np.zeros(15),
                 rgb=np.zeros((40, 40, 3), np.uint8))  # fmt: skip
    with pytest.raises(DatasetError, match="where a file holds a single step, stack those"):
        Dataset(str(tmp_path), Convention("taken_at"))
