"""The pool of imagined transitions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from worldmodel.replay import Pool
from worldmodel.types import Transitions


def numbered(first: int, count: int) -> Transitions:
    number = torch.arange(first, first + count).float()
    obs = {"v": number[:, None].repeat(1, 2), "image": (number % 251).byte()[:, None]}
    after = {key: value + 1 for key, value in obs.items()}
    return Transitions(obs, -number[:, None], number, number / 1000, after, torch.ones(count))


def held(pool: Pool) -> set[int]:
    drawn = pool.sample(2000)
    assert torch.equal(drawn.obs["v"][:, 1], drawn.reward)
    assert torch.equal(drawn.obs["image"][:, 0], (drawn.reward % 251).byte())
    assert torch.equal(drawn.next_obs["v"][:, 0], drawn.reward + 1)
    assert torch.equal(drawn.action[:, 0], -drawn.reward)
    assert torch.equal(drawn.discount, drawn.reward / 1000)
    assert torch.equal(drawn.weight, torch.ones(2000))
    return {int(n) for n in drawn.reward}


def test_the_newest_are_held_and_drawn() -> None:
    pool = Pool(10)
    with pytest.raises(ValueError, match="empty"):
        pool.sample(1)
    for first, count, expected in ((0, 4, 4), (4, 3, 7), (7, 8, 10), (15, 23, 10), (38, 10, 10)):
        pool.add(numbered(first, count))
        assert len(pool) == expected
        assert held(pool) == set(range(first + count - expected, first + count))
    with pytest.raises(ValueError, match="holds nothing"):
        Pool(0)


@pytest.mark.parametrize("capacity", [3, 7, 10, 25])
def test_resizing_keeps_the_newest(capacity: int) -> None:
    pool = Pool(10)
    pool.resize(9)
    pool.resize(10)
    pool.add(numbered(0, 17))
    pool.resize(capacity)
    count = min(capacity, 10)
    assert held(pool) == set(range(17 - count, 17))
    pool.add(numbered(17, 2))
    assert held(pool) == set(range(19 - min(capacity, count + 2), 19))


@pytest.mark.parametrize("rows", [0, 4, 13])
def test_a_resumed_pool_goes_on(rows: int, tmp_path: Path) -> None:
    pool, other = Pool(10, seed=3), Pool(4, seed=8)
    if rows:
        pool.add(numbered(0, rows))
        pool.sample(5)
    torch.save(pool.state_dict(), tmp_path / "pool.pt")
    other.load_state_dict(torch.load(tmp_path / "pool.pt", weights_only=True))
    for one in (pool, other):
        one.add(numbered(50, 3))
    for _ in range(3):
        assert torch.equal(pool.sample(20).reward, other.sample(20).reward)
    assert held(pool) == held(other)
