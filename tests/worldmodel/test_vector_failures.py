"""Environments that crash, hang and return garbage."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldmodel.envs import EnvConfig, EnvError, EnvFailed, Vector, make_vector
from worldmodel.envs import failures as counting
from worldmodel.envs.journal import env_seeds, episode_seed

FAILING = "tests.envs_for_tests:FailingEnv"
GARBAGE = ("shape", "dtype", "nan", "keys", "reward", "infinite", "flag", "tuple")


def failing(folder: Path | None, vector: str = "sync", **kwargs: Any) -> EnvConfig:
    names = {"timeout", "start_timeout", "max_failures"}
    limits = {name: kwargs.pop(name) for name in names & kwargs.keys()}
    kwargs |= {"folder": str(folder or "")}
    return EnvConfig(FAILING, pixels=False, vector=vector, kwargs=kwargs, **limits)


def play(envs: Vector, steps: int) -> list[Any]:
    """(seed and step of each environment, reward, ends, restarted, failures) for each row."""
    rows = []
    for _ in range(steps):
        obs, reward, terminated, _, infos = envs.step(np.zeros(envs.num_envs, int))
        rows.append(
            (obs["count"].astype(int), reward, terminated, infos["restarted"], infos["failures"])
        )
    return rows


def seeds_of(episode: int, count: int = 2) -> list[int]:
    """What the environments of a vector with seed 0 are reset with; as float32 shows it."""
    return [int(np.float32(episode_seed(s, episode))) for s in env_seeds(0, count)]


@pytest.mark.parametrize(
    ("vector", "how", "reason"),
    [
        *(("sync", how, "") for how in GARBAGE),
        ("sync", "raise", r"RuntimeError: the gears jam(.|\n)*envs_for_tests.py(.|\n)*in _fail"),
        ("sync", "quit", "SystemExit: enough"),
        ("async", "nan", r"nan at index \[1\]"),
        ("async", "raise", r"RuntimeError: the gears jam(.|\n)*envs_for_tests.py(.|\n)*in _fail"),
        ("async", "quit", "SystemExit: enough"),
        ("async", "exit", r"ended without an answer \(exit code 7\)"),
        ("async", "hang", r"no answer within 2 s(.|\n)*envs_for_tests.py(.|\n)*in _fail"),
    ],
)
def test_an_environment_that_fails_at_a_step_begins_a_new_episode(
    vector: str, how: str, reason: str, tmp_path: Path
) -> None:
    """Rows of two environments, one of which fails once at its third step; episodes of 5."""
    config = failing(tmp_path, vector, how=how, timeout=2.0)
    envs = make_vector(config, 2, seed=0)
    try:
        assert not envs.reset()[1]["restarted"].any()
        rows = play(envs, 8)
    finally:
        envs.close()
    failed = next(i for i in range(2) if rows[2][3][i])
    other = 1 - failed
    counts = np.array([row[0][:, 1] for row in rows])
    assert counts[:, failed].tolist() == [1, 2, 0, 1, 2, 3, 4, 5]
    assert counts[:, other].tolist() == [1, 2, 3, 4, 5, 0, 1, 2]  # as if nothing had happened
    seeds = np.array([row[0][:, 0] for row in rows])
    assert seeds[:, failed].tolist() == [seeds_of(0)[failed]] * 2 + [seeds_of(1)[failed]] * 6
    assert seeds[:, other].tolist() == [seeds_of(0)[other]] * 5 + [seeds_of(1)[other]] * 3
    assert rows[2][1].tolist() == [float(i == other) for i in range(2)]  # the reward is 0
    assert not rows[2][2].any()
    assert [row[3].tolist() for row in rows if row[3].any()] == [[i == failed for i in range(2)]]
    ((index, words),) = [entry for row in rows for entry in row[4]]
    assert index == failed
    assert re.search(reason, words), words
    assert envs.failures == 1


@pytest.mark.parametrize(
    ("vector", "how"), [("sync", "raise"), ("sync", "nan"), ("async", "exit"), ("async", "keys")]
)
def test_an_environment_that_fails_at_a_reset_tries_the_next_episode(
    vector: str, how: str, tmp_path: Path
) -> None:
    envs = make_vector(failing(tmp_path, vector, at="reset", how=how), 1, seed=0)
    try:
        obs, infos = envs.reset()
        assert obs["count"][0].tolist() == [seeds_of(1)[0], 0]  # not the seed that failed
        assert infos["restarted"].tolist() == [True]
        assert len(infos["failures"]) == 1
        rows = play(envs, 5)
        assert rows[-1][2].all()
        (tmp_path / "0").unlink()  # it fails once more, now at the reset after an end
        ((row, reward, terminated, restarted, _),) = play(envs, 1)
    finally:
        envs.close()
    assert (row[0].tolist(), reward[0], terminated[0]) == ([seeds_of(3)[0], 0], 0, False)
    assert restarted.tolist() == [True]
    assert envs.failures == 2


def test_a_hanging_reset_is_given_its_own_time(tmp_path: Path) -> None:
    config = failing(tmp_path, "async", at="reset", how="busy", start_timeout=3.0)
    envs = make_vector(config, 1, seed=0)
    try:
        _, infos = envs.reset()
    finally:
        envs.close()
    assert "no answer within 3 s" in infos["failures"][0][1]


@pytest.mark.parametrize("vector", ["sync", "async"])
def test_sync_and_async_fail_alike(vector: str, tmp_path: Path) -> None:
    envs = make_vector(failing(tmp_path, vector, how="raise", times=2), 2, seed=0)
    try:
        envs.reset()
        rows = play(envs, 9)
    finally:
        envs.close()
    # Both fail at their third step, once each.
    assert [row[3].tolist() for row in rows] == [[i == 2] * 2 for i in range(9)]
    assert [row[0][0, 1] for row in rows] == [1, 2, 0, 1, 2, 3, 4, 5, 0]
    assert [row[0][1, 0] for row in rows] == [seeds_of(0)[1]] * 2 + [seeds_of(1)[1]] * 6 + [
        seeds_of(2)[1]
    ]


# Too often


@pytest.mark.parametrize(("vector", "how"), [("sync", "nan"), ("async", "exit")])
def test_three_failures_without_a_good_step_end_the_run(vector: str, how: str) -> None:
    envs = make_vector(failing(None, vector, how=how, step=1, times=None), 2, seed=0)
    try:
        envs.reset()
        for _ in range(2):
            assert play(envs, 1)[0][3].all()
        before = envs.snapshot()
        with pytest.raises(EnvFailed, match=r"3 times in a row(.|\n)*environment 0: (.|\n)*Mend"):
            play(envs, 1)
        with pytest.raises(EnvFailed):
            play(envs, 1)
        after = envs.snapshot()
        assert [s["episode"] for s in after] == [s["episode"] for s in before] == [2, 2]
        assert all(len(s["actions"]) == 0 for s in after)
    finally:
        envs.close()


def test_a_reset_is_no_good_step() -> None:
    envs = make_vector(failing(None, at="reset", times=None), 1, seed=0)
    with pytest.raises(EnvFailed, match="3 times in a row"):
        envs.reset()


def test_failures_that_are_too_many_end_the_run() -> None:
    envs = make_vector(failing(None, step=2, times=None, max_failures=4), 1, seed=0)
    envs.reset()
    rows = play(envs, 7)  # good, restarted, good, restarted, ...
    assert sum(row[3][0] for row in rows) == 3
    with pytest.raises(EnvFailed, match=r"4 times within 10,000 steps, and max_failures is 4"):
        play(envs, 1)
    assert envs.failures == 4


def test_old_failures_are_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "WINDOW", 5)
    envs = make_vector(failing(None, step=2, times=None, max_failures=4), 1, seed=0)
    envs.reset()
    play(envs, 40)  # a failure in every second step: three within 5
    assert envs.failures == 20


# What is made anew must be the same


def test_other_spaces_after_a_restart_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.envs_for_tests import FailingEnv

    envs = make_vector(failing(None, step=1, times=None), 1, seed=0)
    envs.reset()
    monkeypatch.setattr(FailingEnv, "action_space", type(FailingEnv.action_space)(4))
    with pytest.raises(EnvFailed, match="Made anew, it has other spaces"):
        play(envs, 1)


# Making


def test_a_process_that_dies_at_the_start_is_an_error_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(EnvError, match=r"could not be made.*exit code 7(.|\n)*__main__"):
        make_vector(failing(None, "async", at="make", how="exit", times=None), 2)
    assert time.monotonic() - started < 60


def test_an_error_at_the_start_is_told_with_its_line() -> None:
    with pytest.raises(EnvError, match=r"Could not make .*the gears jam \(envs_for_tests.py, "):
        make_vector(failing(None, "async", at="make", times=None), 1)
    with pytest.raises(EnvError, match="the gears jam"):
        make_vector(failing(None, at="make", times=None), 1)


def test_a_restart_that_fails_to_make_is_tried_again(tmp_path: Path) -> None:
    # The third one to be made fails: two for the start, then the one that replaces a dead one.
    envs = make_vector(failing(tmp_path, "async", at="make", how="raise", times=0), 1, seed=0)
    try:
        envs.reset()
        envs._makers[0].config.kwargs["times"] = 1  # type: ignore[attr-defined]
        envs.processes[0].kill()
        ((_, _, _, restarted, reasons),) = play(envs, 1)
    finally:
        envs.close()
    assert restarted.tolist() == [True]
    assert [("exit code -9, SIGKILL" in words, "gears" in words) for _, words in reasons] == [
        (True, False),
        (False, True),
    ]
