"""Arrays without a known name: what they hold says what they are, or the run asks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.worldmodel.test_dataset_names import Arrays, F, N, T, check, read, walks
from worldmodel.replay.datasets import DatasetError

X, X2, A, R, END = F["x"], F["x2"], F["a"], F["r"], F["end"]
PLAIN = {"actions": A, "rewards": R}
RLLIB = {
    "obs": X, "new_obs": X2, **PLAIN, "terminateds": END, "truncateds": END & False,
    "eps_id": N["id"] + 7, "t": np.tile(np.arange(T), 3), "unroll_id": N["id"], "vf_preds": R,
    "action_logp": R, "agent_index": 0 * N["id"],
}  # fmt: skip
TD3 = {"state": X, "next_state": X2, "action": A, "reward": R[:, None], "not_done": 1.0 - END}
MUSHROOM = {"state": X, "next_state": X2, "action": A, "reward": R, "absorbing": END, "last": END}
IQL = {"observations": X, "next_observations": X2, **PLAIN, "masks": 1.0 - END,
       "dones_float": END * 1.0}  # fmt: skip
BASELINES = {"obs_t": X, "obs_tp1": X2, "action": A, "reward": R, "terminated": END}


def names(**given: object) -> list[object]:
    """The arguments of Convention, from the alignment on."""
    return ["auto", "auto", None, "auto", "auto", given]


@pytest.mark.parametrize(
    ("arrays", "key"),
    [
        (RLLIB, "state"), (TD3, "state"), (MUSHROOM, "state"), (IQL, "state"),
        (BASELINES, "obs_t"), ({"obs": X, "obs2": X2, **PLAIN, "terminated": END}, "state"),
        ({"state": X, "state_prime": X2, **PLAIN, "terminated": END}, "state"),
    ],
    ids=["rllib", "td3", "mushroom", "iql", "baselines", "spinningup", "prime"],
)  # fmt: skip
def test_next_observations_and_ends_of_more_tools(tmp_path: Path, arrays: Arrays, key: str) -> None:
    check(read(tmp_path, arrays), [T] * 3, key, ends=3)


def test_next_pictures_are_not_observed(tmp_path: Path) -> None:
    film = np.repeat(np.arange(3 * T + 1, dtype=np.uint8) * 9, 64 * 64).reshape(-1, 64, 64, 1)
    arrays = {"obs": film[:-1], "obs2": film[1:], **PLAIN, "terminated": END}
    assert set(read(tmp_path, arrays).spec.obs) == {"image"}


def test_following_rows_under_another_name_are_asked_about(tmp_path: Path) -> None:
    arrays = {"now": X, "then": X2, **PLAIN, "terminated": END}
    with pytest.raises(DatasetError, match="'then' holds the following rows of 'now'"):
        read(tmp_path, arrays)
    check(read(tmp_path, arrays, *names(next_observation="then")), [T] * 3, "now", ends=3)
    both = names(observation=["now", "then"])
    assert set(read(tmp_path, arrays, "taken_at", *both[1:]).spec.obs) == {"now", "then"}
    past = {"state": X2, "prev_state": X, **PLAIN, "terminated": END}
    assert len(read(tmp_path, past, "led_to").spec.obs) == 2  # what was before is no future


def test_a_mapped_next_observation_must_follow_one(tmp_path: Path) -> None:
    arrays = {"a": X, "b": np.tile(X, 2), "other": np.zeros((3 * T, 5)), **PLAIN}
    with pytest.raises(DatasetError, match=r"'other' \[15, 5\] is a next observation, but it cont"):
        read(tmp_path, arrays, *names(next_observation="other"))


def test_ends_that_nothing_else_marks_are_asked_about(tmp_path: Path) -> None:
    """An end beside others: Dopamine's `terminal` does not say where an episode was cut off."""
    cut = {"observation": X, "action": A, "reward": R, "terminal": END & False}
    check(read(tmp_path, {**cut, "episode_end": END}, "taken_at"), [T - 1] * 3)
    with pytest.raises(DatasetError, match="'done_when_late' looks like an end, and marks rows"):
        read(tmp_path, {**cut, "done_when_late": END}, "taken_at")
    lone = {"state": X, **PLAIN}
    with pytest.raises(DatasetError, match=r"'is_over' looks like an end.*done: is_over"):
        read(tmp_path, {**lone, "is_over": END}, "taken_at")
    with pytest.raises(DatasetError, match="'fin' holds zeros, and ones where episodes may end"):
        read(tmp_path, {**lone, "fin": END * 1.0}, "taken_at")
    seen = read(tmp_path, {**lone, "fin": END * 1.0}, "taken_at", *names(done=None)[1:])
    assert set(seen.spec.obs) == {"state", "fin"}
    touch = read(tmp_path, {**lone, "terminated": END, "touch": np.arange(15) % 3 == 0}, "taken_at")
    assert any("touch (one True or False a row" in line for line in touch.findings)


def test_ends_in_the_first_rows_are_warned_about(tmp_path: Path) -> None:
    """CleanRL's `dones` stand beside the first observation of the next episode."""
    far = np.concatenate([w["x"][:-1] + 100 * i for i, w in enumerate(walks())])
    late = np.append(False, END[:-1])
    arrays = {"obs": far, **PLAIN, "dones": late}
    dataset = read(tmp_path, arrays, "taken_at", "truncated")
    assert any("as CleanRL marks them" in line for line in dataset.findings)
    mended = read(tmp_path, arrays, "taken_at", *names(is_first="dones")[1:])
    assert mended.summary.lengths == [T - 1] * 3
    right = read(tmp_path, {**arrays, "dones": END}, "taken_at", "truncated")
    assert not any("CleanRL" in line for line in right.findings)


def test_several_rewards_are_one_sentence(tmp_path: Path) -> None:
    arrays = {"obs": X, "actions": A, "rewards": np.stack([R, R], 1), "terminated": END}
    with pytest.raises(DatasetError, match=r"rewards are \[15, 2\], but 'terminated' is \[15\]"):
        read(tmp_path, arrays, "taken_at")
