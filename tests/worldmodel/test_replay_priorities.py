"""Draws that follow priorities: how often, with what weights, and how they are resumed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.replay_cycles import contents
from tests.replay_rows import COLUMNS, SPEC, add, check, make
from worldmodel.replay import Replay, ReplayConfig, ReplayDamaged, RowIndex


def at(stream: Any, start: Any, length: int = 1) -> RowIndex:
    return RowIndex(np.asarray(stream), np.asarray(start), length)


def tree(replay: Replay) -> np.ndarray:
    assert replay._draws.priorities is not None
    return replay._draws.priorities._tree


def test_masses_by_hand() -> None:
    replay = make(capacity=10, num_envs=2, exponent=0.5)  # 5 rows of each stream
    add(replay, 4, episode=3)  # rows 2 of both end an episode
    assert tree(replay)[0, 16:].tolist() == [1, 1, 0, 1, 0, 1, 1, 0, 1, 0, *[0] * 6]
    replay.reweigh(at([0, 1, 1], [1, 0, 2]), [4.0, 9.0, 16.0])  # row 2 of stream 1 has none
    assert tree(replay)[0, 16:].tolist() == [1, 2, 0, 1, 0, 3, 1, 0, 1, 0, *[0] * 6]
    assert tree(replay)[:, 1].tolist() == [9.0, 3.0]
    add(replay, 2, ids=[0], episode=1000)  # the first takes the last slot, the second that of row 0
    assert tree(replay)[0, 16:].tolist() == [3, 2, 0, 1, 3, 3, 1, 0, 1, 0, *[0] * 6]
    replay.reweigh(at([0, 0], [0, 5]), torch.tensor([100.0, 1.0]))  # row 0 is gone
    assert tree(replay)[0, 16:26].tolist() == [1, 2, 0, 1, 3, 3, 1, 0, 1, 0]
    row = {k: v[:1] for k, v in replay.rows(0, 1, 2).items()} | {"is_first": np.array([True])}
    replay.add(row, [0])  # cuts the episode of row 5 off
    assert tree(replay)[0, 16:26].tolist() == [0, 3, 0, 1, 3, 3, 1, 0, 1, 0]


def test_draws_follow_the_priorities() -> None:
    replay = make(capacity=200, num_envs=2, exponent=0.7, online=False)
    add(replay, 90)
    rng = np.random.default_rng(1)
    stream, row = np.divmod(np.arange(180), 90)
    priorities = rng.uniform(0.1, 5, 180)
    replay.reweigh(at(stream, row), priorities)
    masses = np.float32(priorities**0.7) * (row % 7 < 6)
    for last, draw in ((89, replay.transitions), (86, lambda n: replay.sample(n, 5))):
        expected = masses * (row < last)
        expected = expected / expected.sum()
        found = np.zeros(180)
        for _ in range(300):
            index = draw(100).index
            np.add.at(found, index.stream * 90 + index.start, 1)
        assert not found[expected == 0].any()
        # One of each hundredth of all mass: closer to what is expected than chance would be.
        assert np.abs(found - 30_000 * expected).max() < 5 * np.sqrt(30_000 * expected.max())
        chi = (
            (found - 30_000 * expected)[expected > 0] ** 2 / (30_000 * expected)[expected > 0]
        ).sum()
        assert chi < (expected > 0).sum() + 5 * np.sqrt(2 * (expected > 0).sum())
    assert np.array_equal(tree(replay)[0, 256 : 256 + 90], masses[:90])  # what was hidden is back


def test_every_part_of_the_mass_is_drawn_from_once() -> None:
    replay = make(capacity=66, num_envs=1, exponent=1.0)
    add(replay, 65, episode=1000)
    for _ in range(20):
        assert sorted(replay.transitions(64).index.start.tolist()) == list(range(64))


def test_weights_are_those_of_the_paper() -> None:
    replay = make(capacity=200, num_envs=1, exponent=1.0, online=False)
    add(replay, 100)
    replay.reweigh(at(np.zeros(100, int), np.arange(100)), 1.0 + np.arange(100))
    for beta in (0.0, 0.4, 1.0):
        for drawn in (replay.transitions(32, beta=beta), replay.sample(32, 3, beta=beta)):
            mass = 1.0 + drawn.index.start
            probability = mass / mass.sum()  # but for a factor that the greatest takes away
            weight = (len(replay) * probability) ** -beta
            assert drawn.weight is not None
            assert torch.allclose(drawn.weight.double(), torch.from_numpy(weight / weight.max()))


def test_the_online_queue_comes_first() -> None:
    replay = make(capacity=400, exponent=1.0)
    add(replay, 17)
    replay.reweigh(at([0], [3]), [1e6])
    batch = replay.sample(6, 8)
    check(batch)
    assert sorted(batch.index.start[:4].tolist()) == [0, 0, 8, 8]
    assert batch.index.start[4:].tolist() == [3, 3]
    assert batch.tensors()["weight"] is batch.weight


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="draws uniformly"):
        make().reweigh(at([0], [0]), [1.0])
    for exponent in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="must be 0 or more"):
            make(exponent=exponent)
    replay = make(exponent=0.5)
    add(replay, 9)
    before = tree(replay).copy()
    for bad in (0.0, -1.0, np.nan, np.inf, 1e300):
        with pytest.raises(ValueError, match="positive and finite"):
            replay.reweigh(at([0, 1], [1, 1]), [1.0, bad])
    with pytest.raises(ValueError, match=r"\[3\] priorities of 2 rows"):
        replay.reweigh(at([0, 1], [1, 1]), [1.0, 1.0, 1.0])
    assert np.array_equal(tree(replay), before)
    replay = make(exponent=0.5)
    add(replay, 5, episode=1)  # nothing but endings
    with pytest.raises(ValueError, match="No row with a priority"):
        replay.transitions(1)
    assert not replay._draws.priorities._tree.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_a_resumed_run_draws_as_if_it_had_gone_on(storage: str, tmp_path: Path) -> None:
    def fresh() -> Replay:
        config = ReplayConfig(capacity=60, storage=storage)
        return Replay(SPEC, config, 2, COLUMNS, 3, tmp_path, 0.6)

    def work(replay: Replay) -> None:
        add(replay, 7, ids=[1], episode=5)
        for _ in range(5):
            drawn = replay.transitions(8, 3)
            replay.reweigh(drawn.index, 0.1 + drawn.reward.abs())
        replay.sample(3, 4)

    replay = fresh()
    add(replay, 44)
    for _ in range(3):
        work(replay)
        state = replay.save(tmp_path)
        replay.commit()
    again = fresh()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.load(tmp_path, state)
    assert np.array_equal(tree(again), tree(replay))
    for _ in range(3):
        work(again)
        work(replay)
    assert contents(again) == contents(replay)
    assert np.array_equal(tree(again), tree(replay))
    opened = Replay.open(tmp_path)  # draws uniformly
    assert torch.equal(opened.transitions(9).weight, torch.ones(9))
    uniform = Replay(SPEC, ReplayConfig(capacity=60), 2, COLUMNS)
    with pytest.raises(ValueError, match="fields: saved"):
        uniform.load(tmp_path)


@pytest.mark.parametrize("how", ["damaged", "made up"])
def test_bad_priorities_cost_nothing_else(how: str, tmp_path: Path) -> None:
    replay = make(exponent=0.6)
    add(replay, 20)
    replay.reweigh(at([0] * 20, np.arange(20)), np.full(20, 32.0))
    if how == "made up":
        replay._ring.arrays["priority"][0][[4, 5, 7]] = np.nan, 0.0, -1.0
    replay.save(tmp_path)
    replay.commit()
    path = tmp_path / "priority.0000.bin"
    if how == "damaged":
        path.write_bytes(b"?" + path.read_bytes()[1:])
    again = make(exponent=0.6)
    lost = "20" if how == "damaged" else "3"
    with pytest.warns(UserWarning, match=f"stream 0: {lost} rows lost their priorities"):
        again.load(tmp_path)
    assert len(again) == 40
    masses = tree(again)[0, 64 : 64 + 20]
    expected = np.where(np.arange(20) % 7 < 6, np.float32(32**0.6), 0)
    known = ~np.isin(np.arange(20), [4, 5, 7]) if how == "made up" else np.zeros(20, bool)
    assert np.array_equal(masses, np.where(known | (expected == 0), expected, 1))
    again.save(tmp_path)
    again.commit()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(exponent=0.6).load(tmp_path)
    path.unlink()
    with pytest.raises(ReplayDamaged, match=r"priority\.0000\.bin is missing"):
        make(exponent=0.6).load(tmp_path)
