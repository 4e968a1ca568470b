"""The range of returns, followed by hand."""

from __future__ import annotations

import pytest
import torch

from agents.normalize import ReturnScale


def test_three_updates_by_hand() -> None:
    scale = ReturnScale(rate=0.1)
    assert scale.scale.item() == 1.0
    # The 5th and 95th percentiles of 0..100 are 5 and 95; both ends start at 0, not debiased.
    low = high = 0.0
    for factor in (1.0, 2.0, -1.0):
        found = scale.update(torch.arange(101.0) * factor)
        ends = sorted((5 * factor, 95 * factor))
        low, high = 0.9 * low + 0.1 * ends[0], 0.9 * high + 0.1 * ends[1]
        assert scale.low.item() == pytest.approx(low, rel=1e-5)
        assert scale.high.item() == pytest.approx(high, rel=1e-5)
        assert found.item() == pytest.approx(high - low, rel=1e-5)
    assert low == pytest.approx(0.81 * 0.5 + 0.9 * 1.0 - 9.5)


def test_percentiles_fall_between_returns_and_over_the_whole_batch() -> None:
    scale = ReturnScale(rate=1.0)
    scale.update(torch.tensor([[0.0, 10.0], [20.0, 30.0]]))
    # 0.05 * 3 = 0.15 steps of 10 from the lowest, and as many from the highest.
    assert scale.low.item() == pytest.approx(1.5)
    assert scale.high.item() == pytest.approx(28.5)


def test_small_returns_are_never_blown_up() -> None:
    scale = ReturnScale(rate=1.0)
    assert scale.update(torch.linspace(-0.4, 0.4, 50)).item() == 1.0
    assert scale.update(torch.full((50,), 1e6)).item() == 1.0  # no spread
    assert scale.update(torch.linspace(0, 2, 101)).item() == pytest.approx(1.8)
    assert ReturnScale(rate=1.0, limit=0.1).update(torch.zeros(3)).item() == pytest.approx(0.1)


def test_the_range_is_kept_with_the_weights_and_has_no_gradient() -> None:
    scale = ReturnScale(rate=0.5)
    returns = torch.linspace(0, 100, 11).requires_grad_()
    assert not scale.update(returns).requires_grad
    other = ReturnScale(rate=0.5)
    other.load_state_dict(scale.state_dict())
    assert other.scale.item() == scale.scale.item() == pytest.approx(45.0)
