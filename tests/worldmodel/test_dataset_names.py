"""Recordings of other tools, by the names of their arrays: what is observed, what is not, and what
is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from worldmodel.envs.config import EnvConfig
from worldmodel.replay import Replay, ReplayConfig
from worldmodel.replay.datasets import Convention, Dataset, DatasetError
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec

T = 5
Arrays = dict[str, Any]


def walks(count: int = 3, first: float = 0.5) -> list[Arrays]:
    """Episodes of a world x' = x + a, reward x': their T + 1 states, T actions and T rewards."""
    out = []
    for number in range(count):
        a = np.float32(first) + np.arange(T, dtype=np.float32)[:, None] / 16
        x = np.concatenate([[[np.float32(number)]], a]).cumsum(0, dtype=np.float32)
        out.append({"x": x, "a": a / 2, "r": x[1:, 0], "end": np.arange(T) == T - 1})
    return out


def together(parts: list[Arrays]) -> Arrays:
    return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}


def before(walk: Arrays) -> Arrays:
    """Each action at the state where it was chosen, and the state after it."""
    return {"x": walk["x"][:-1], "x2": walk["x"][1:], "a": walk["a"], "r": walk["r"],
            "end": walk["end"]}  # fmt: skip


def numbered(parts: list[Arrays]) -> Arrays:
    for number, part in enumerate(parts):
        part["id"] = np.full(len(part["a"]), number)
    return together(parts)


def read(path: Path, arrays: Arrays, *convention: Any, **more: Any) -> Dataset:
    np.savez(path / "one.npz", **arrays)
    return Dataset(str(path / "one.npz"), Convention(*convention), **more)


def check(dataset: Dataset, lengths: list[int], key: str = "state", ends: int = 0) -> None:
    """Every step is x' = x + a and earns x'; only x is observed."""
    assert set(dataset.spec.obs) == {key}
    replay = Replay(dataset.spec, ReplayConfig(capacity=200), 1)
    dataset.fill(replay)
    found = [replay.rows(*place) for place in replay.episodes(complete=True)]
    assert [len(rows["action"]) - 1 for rows in found] == lengths
    for rows in found:
        assert np.allclose(np.diff(rows[key][:, 0]), 2 * rows["action"][1:, 0], atol=1e-5)
        assert np.allclose(rows["reward"][1:], rows[key][1:, 0])
    assert sum(rows["is_terminal"][-1] for rows in found) == ends


F = together([before(w) for w in walks()])
N = numbered([before(w) for w in walks()])
LEROBOT = {
    "observation.state": N["x"], "action": N["a"], "next.reward": N["r"], "next.done": N["end"],
    "next.success": N["end"], "episode_index": N["id"], "frame_index": np.tile(np.arange(T), 3),
    "timestamp": np.arange(3 * T) / 30, "index": np.arange(3 * T), "task_index": 0 * N["id"],
}  # fmt: skip
TIANSHOU = {"obs": F["x"], "act": F["a"], "rew": F["r"], "terminated": F["end"],
            "truncated": F["end"] & False, "done": F["end"], "obs_next": F["x2"]}  # fmt: skip
TORCHRL = {
    "observation": F["x"], "action": F["a"], "done": F["end"] & False,
    "terminated": F["end"] & False, "next/observation": F["x2"], "next/reward": F["r"][:, None],
    "next/done": F["end"][:, None], "next/terminated": F["end"][:, None],
    "next/truncated": F["end"][:, None] & False, "collector/traj_ids": N["id"],
    "next/episode_reward": F["r"], "sample_log_prob": F["r"], "step_count": F["r"],
}  # fmt: skip
OGBENCH = {"observations": F["x"], "next_observations": F["x2"], "actions": F["a"],
           "rewards": F["r"], "terminals": F["end"] * 1.0, "masks": 1.0 - F["end"],
           "qpos": F["x"]}  # fmt: skip
SB3 = {"obs": F["x"], "actions": F["a"], "rewards": F["r"],
       "episode_starts": np.tile(np.arange(T) == 0, 3), "values": F["r"]}  # fmt: skip
DREAMERV3 = together([
    {"vector": w["x"], "action": np.concatenate([w["a"], [[0]]]),
     "reward": np.concatenate([[0], w["r"]]), "is_first": np.arange(T + 1) == 0,
     "is_last": np.arange(T + 1) == T, "is_terminal": np.arange(T + 1) == T,
     "reset": np.arange(T + 1) == T, "log_x": w["x"]} for w in walks()])  # fmt: skip
RLDS = together([
    {"steps/observation": w["x"], "steps/action": np.concatenate([w["a"], [[0]]]),
     "steps/reward": np.concatenate([w["r"], [0]]), "steps/is_first": np.arange(T + 1) == 0,
     "steps/is_last": np.arange(T + 1) == T, "steps/is_terminal": np.arange(T + 1) == T,
     "steps/discount": np.ones(T + 1)} for w in walks()])  # fmt: skip
D3RLPY = {
    "columns": np.array(["observations", "actions"]), "num_episodes": np.array(3),
    **{f"{name}_{i}": value for i, w in enumerate(walks()) for name, value in {
        "observations": w["x"][:-1], "actions": w["a"], "rewards": w["r"][:, None],
        "terminated": np.array(True)}.items()},
}  # fmt: skip
IMITATION = {"obs": np.concatenate([w["x"] for w in walks()]), "acts": F["a"], "rews": F["r"],
             "terminal": np.array([True, False, True]), "indices": np.array([T, 2 * T]),
             "infos": np.array([{}] * 3 * T, object)}  # fmt: skip
STACKED = {
    k: np.stack([w[v] for w in walks()], 1)
    for k, v in {"observations": "x", "actions": "a", "rewards": "r", "dones": "end"}.items()
}


@pytest.mark.parametrize(
    ("arrays", "lengths", "key", "ends"),
    [
        (LEROBOT, [T - 1] * 3, "state", 0),
        (TIANSHOU, [T] * 3, "state", 3),
        (TORCHRL, [T] * 3, "state", 3),
        (OGBENCH, [T] * 3, "state", 3),
        (SB3, [T - 1] * 3, "state", 0),
        (DREAMERV3, [T] * 3, "vector", 3),
        (RLDS, [T] * 3, "state", 3),
        (D3RLPY, [T - 1] * 3, "state", 0),
        (IMITATION, [T] * 3, "state", 2),
    ],
    ids=["lerobot", "tianshou", "torchrl", "ogbench", "sb3", "dreamerv3", "rlds", "d3rlpy",
         "imitation"],
)  # fmt: skip
def test_the_arrays_of_other_tools_are_known(
    tmp_path: Path, arrays: Arrays, lengths: list[int], key: str, ends: int
) -> None:
    check(read(tmp_path, arrays), lengths, key, ends)


def test_masks_say_more_than_terminals(tmp_path: Path) -> None:
    """OGBench marks the end of a trajectory as terminal, and in masks whether the world ended."""
    check(read(tmp_path, {**OGBENCH, "masks": np.ones(3 * T)}), [T] * 3)


def test_buffers_with_steps_first_are_told_from_stacked_episodes(tmp_path: Path) -> None:
    """stable-baselines3 keeps [steps, environments, ...]."""
    wide = {**STACKED, "next_observations": STACKED["observations"][1:], "timeouts":
            STACKED["dones"], "observations": STACKED["observations"][:-1]}  # fmt: skip
    check(read(tmp_path, wide), [T] * 3)
    square = {k: v.swapaxes(0, 1) for k, v in wide.items()}
    check(read(tmp_path, square), [T] * 3)
    bare = {k: v for k, v in wide.items() if k in ("observations", "actions", "rewards")}
    with pytest.raises(DatasetError, match="offline_axes=episodes_first or =steps_first"):
        read(tmp_path, bare, "taken_at")
    check(read(tmp_path, bare, "taken_at", "auto", None, "auto", "steps_first"), [T - 1] * 3)


@pytest.mark.parametrize("name", ["my_reward", "next_thing", "done_flag", "row_index", "rew_to_go"])
def test_what_only_looks_like_a_part_is_not_observed(tmp_path: Path, name: str) -> None:
    arrays = {**TIANSHOU, name: F["r"]}
    dataset = read(tmp_path, arrays)
    check(dataset, [T] * 3, ends=3)
    assert any(f"not used: {name} (" in line for line in dataset.findings)


def test_a_part_with_a_name_of_its_own_is_asked_for(tmp_path: Path) -> None:
    arrays = {**TIANSHOU, "my_reward": F["r"]}
    del arrays["rew"]
    with pytest.raises(DatasetError, match="'my_reward' looks like a reward"):
        read(tmp_path, arrays)
    named = {"reward": "my_reward"}
    check(read(tmp_path, arrays, *["auto"] * 2, None, *["auto"] * 2, named), [T] * 3, ends=3)
    none = read(tmp_path, arrays, *["auto"] * 2, None, *["auto"] * 2, {"reward": None})
    assert any("no reward was found" in line and "rews" in line for line in none.findings)
    with pytest.raises(DatasetError, match=r"offline_names names 'my_rewrd'.*Did you mean"):
        read(tmp_path, arrays, *["auto"] * 2, None, *["auto"] * 2, {"reward": "my_rewrd"})
    with pytest.raises(DatasetError, match=r"offline_names maps 'rewrd'.*Did you mean 'reward'"):
        read(tmp_path, arrays, *["auto"] * 2, None, *["auto"] * 2, {"rewrd": "my_reward"})


def test_is_first_does_not_tell_the_alignment(tmp_path: Path) -> None:
    first = np.tile(np.arange(T) == 0, 3)
    open_ = {"observation": F["x"], "action": F["a"], "reward": F["r"], "is_first": first}
    with pytest.raises(DatasetError, match="offline_alignment=taken_at or =led_to"):
        read(tmp_path, open_)
    check(read(tmp_path, open_, "taken_at"), [T - 1] * 3)
    led = together([{"observation": w["x"], "action": np.concatenate([[[0]], w["a"]]),
                     "reward": np.concatenate([[0], w["r"]]),
                     "is_first": np.arange(T + 1) == 0} for w in walks()])  # fmt: skip
    check(read(tmp_path, led), [T] * 3)
    both = {
        **RLDS,
        "steps/action": RLDS["steps/action"].copy(),
        "steps/reward": 0 * RLDS["steps/reward"],
    }
    both["steps/action"][:: T + 1] = 0  # fillers at both ends: nobody knows
    with pytest.raises(DatasetError, match="offline_alignment"):
        read(tmp_path, both)


def test_what_does_not_fit_is_left_out_and_said(tmp_path: Path) -> None:
    walk = walks(1)[0]
    arrays = {
        "obs": walk["x"], "actions": walk["a"], "rewards": walk["r"], "timeouts": walk["end"],
        "state": walk["a"], "words": np.array(["a"] * (T + 1)), "gain": np.array(3.0),
    }  # fmt: skip
    dataset = read(tmp_path, arrays)
    check(dataset, [T], "obs")
    said = "\n".join(dataset.findings)
    for words in ("state (not among", "words (no numbers)", "gain (one value for all)"):
        assert f"not used: {words}" in said
    short = {"a": walk["x"], "b": walk["a"], "actions": walk["a"], "rewards": walk["r"]}
    dataset = read(tmp_path, short)
    check(dataset, [T], "a")
    assert any("not used: b (5 rows" in line for line in dataset.findings)


def test_keys_choose_what_is_observed(tmp_path: Path) -> None:
    dataset = read(tmp_path, TORCHRL, config=EnvConfig("none", keys=["state", "step_count"]))
    assert list(dataset.spec.obs) == ["state", "step_count"]
    with pytest.raises(DatasetError, match=r"env.keys names 'stat'.*Did you mean 'state'"):
        read(tmp_path, TORCHRL, config=EnvConfig("none", keys=["stat"]))


def test_an_episode_stays_one_however_its_flags_repeat(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    held = np.arange(T) >= T - 3
    with h5py.File(tmp_path / "demos.hdf5", "w") as file:
        for number, walk in enumerate(walks()):
            group = file.create_group(f"data/demo_{number}")
            group["obs/x"], group["next_obs/x"] = walk["x"][:-1], walk["x"][1:]
            group["actions"], group["rewards"], group["dones"] = walk["a"], walk["r"], held * 1
            group["states"] = np.zeros((T, 9))
    dataset = Dataset(str(tmp_path / "demos.hdf5"))
    check(dataset, [T] * 3, "x", ends=3)
    assert any("not used: states" in line for line in dataset.findings)
    one = {k: v[:T] for k, v in TIANSHOU.items()} | {"terminated": held, "done": held}
    check(read(tmp_path, one), [T], ends=1)
    del one["obs_next"]
    check(read(tmp_path, one, "taken_at"), [T - 1])


def test_numbers_of_episodes_that_come_back(tmp_path: Path) -> None:
    """Rows of two environments in turn are sorted where their counter says so, else refused."""
    order = np.arange(2 * T).reshape(2, T).T.ravel()
    arrays = {k: LEROBOT[k][order] for k in LEROBOT}
    check(read(tmp_path, arrays), [T - 1] * 2)
    del arrays["frame_index"]
    with pytest.raises(DatasetError, match="goes on at row 2, after rows of another one"):
        read(tmp_path, arrays)


def test_one_hot_actions_are_recognised_or_asked_about(tmp_path: Path) -> None:
    arrays = {**TIANSHOU, "act": np.eye(3, dtype=np.float32)[np.arange(3 * T) % 3]}
    assert read(tmp_path, arrays).spec.action.sizes == (3,)
    arrays["act"] = (np.arange(3 * T) % 2).astype(np.float32)
    with pytest.raises(DatasetError, match="offline_actions=discrete, one_hot or continuous"):
        read(tmp_path, arrays)
    kinds = [read(tmp_path, arrays, "auto", "auto", None, kind).spec.action.kind
             for kind in ("discrete", "continuous")]  # fmt: skip
    assert kinds == ["discrete", "continuous"]


def test_classes_that_do_not_count_from_zero(tmp_path: Path) -> None:
    """A Discrete observation and action with a start, as an environment declares them."""
    arrays = {"obs": np.arange(5, 6 + T), "action": 3 + np.arange(T) % 2, "reward": np.ones(T)}
    spec = EnvSpec({"state": ObsSpec("discrete", (9,), (9,))}, ActionSpec("discrete", (2,)))
    two, nine = spaces.Discrete(2, start=3), spaces.Discrete(9, start=5)
    dataset = read(tmp_path, arrays, spec=spec, action_space=two, observation_space=nine)
    replay = Replay(dataset.spec, ReplayConfig(capacity=200), 1)
    dataset.fill(replay)
    rows = replay.rows(0, 0, T + 1)
    assert rows["state"].argmax(1).tolist() == list(range(T + 1))
    assert rows["action"].argmax(1)[1:].tolist() == [0, 1, 0, 1, 0]
    six = spaces.Discrete(9, start=6)
    with pytest.raises(DatasetError, match=r"has \[9\] classes from \[6\] on"):
        read(tmp_path, arrays, spec=spec, action_space=two, observation_space=six)


def test_real_pictures_have_one_scale(tmp_path: Path) -> None:
    """A dim episode is dim: it is not stretched by itself."""
    bright = np.full((T + 1, 32, 32, 3), 200.0, np.float32)
    for number, level in enumerate((200.0, 1.0, 150.0)):
        walk = walks(1)[0]
        np.savez(tmp_path / f"{number}.npz", image=bright * level / 200, actions=walk["a"],
                 rewards=walk["r"])  # fmt: skip
    dataset = Dataset(str(tmp_path))
    replay = Replay(dataset.spec, ReplayConfig(capacity=200), 1)
    dataset.fill(replay)
    assert [int(replay.rows(*e)["image"].max()) for e in replay.episodes()] == [200, 1, 150]
    depth = np.zeros((T + 1, 32, 32), np.uint16)
    walk = walks(1)[0]
    arrays = {"depth": depth, "actions": walk["a"], "rewards": walk["r"]}
    with pytest.raises(DatasetError, match=r"env.ranges="):
        read(tmp_path, arrays)
    dataset = read(tmp_path, arrays, config=EnvConfig("none", ranges={"depth": [0, 9000]}))
    assert dataset.spec.obs["depth"].shape == (32, 32, 1)
    assert any("0 is black and 9000 white" in line for line in dataset.findings)
    faint = {**arrays, "depth": depth + np.arange(32, dtype=np.uint16)}
    space = spaces.Dict(depth=spaces.Box(0, 65535, (32, 32), np.uint16))
    with pytest.raises(DatasetError, match=r"they look faint.*env.ranges="):
        read(tmp_path, faint, observation_space=space)
