"""Thresholds keep their promise: by hand, and on average over many made-up calibrations."""

from __future__ import annotations

import numpy as np
import pytest

from worldmodel.config import ConfigError
from worldmodel.ood.conformal import episodes_needed, rank, threshold


def test_ranks_by_hand() -> None:
    # n = 99 and one in a hundred: a new maximum is the largest of 100 with chance 1/100.
    assert episodes_needed(0.01) == 99
    assert rank(99, 0.01) == 99
    assert rank(199, 0.01) == 198
    assert episodes_needed(0.5) == 1
    assert episodes_needed(1 / 3) == 2
    assert threshold(np.arange(1.0, 10.0), 0.1) == 9.0
    assert threshold(np.arange(1.0, 10.0), 0.5) == 5.0


def test_confidence_needs_more_episodes_by_hand() -> None:
    # All n below the 99th percentile would be unlucky: 0.99 ** n <= 0.1 first at n = 230.
    assert episodes_needed(0.01, 0.9) == 230
    assert rank(230, 0.01, 0.9) == 230
    # P(at most 1 of 400 above its 99th percentile) = .99^400 + 400 * .01 * .99^399 = 0.0905.
    assert rank(400, 0.01, 0.9) == 399
    assert rank(400, 0.01, 0.95) == 400


def test_new_episodes_exceed_it_as_seldom_as_promised() -> None:
    rng = np.random.default_rng(0)
    draws = rng.lognormal(size=(4000, 40))
    limits = [threshold(row[:-1], 0.1) for row in draws]
    alarms = np.mean(draws[:, -1] > np.array(limits))
    assert 0.08 < alarms < 0.12


def test_confidence_holds_for_single_calibrations() -> None:
    rng = np.random.default_rng(1)
    rates = []
    for _ in range(400):
        limit = threshold(rng.random(60), 0.1, 0.9)
        rates.append(1 - limit)  # of uniform scores, the share above a threshold
    assert np.mean(np.array(rates) <= 0.1) > 0.86


@pytest.mark.parametrize(("rate", "confidence"), [(0.0, 0.0), (1.0, 0.0), (0.1, 1.0), (-1, 0)])
def test_impossible_rates_are_refused(rate: float, confidence: float) -> None:
    with pytest.raises(ConfigError, match="allowed"):
        episodes_needed(rate, confidence)


def test_too_few_episodes_say_how_many_are_needed() -> None:
    with pytest.raises(ConfigError, match="at least 99 are needed"):
        threshold(np.zeros(98), 0.01)
    with pytest.raises(ConfigError, match="at least 230 are needed"):
        threshold(np.zeros(229), 0.01, 0.9)


def test_a_score_that_is_not_finite_is_no_calibration() -> None:
    with pytest.raises(ValueError, match="not finite"):
        threshold(np.array([1.0, np.nan, 2.0]), 0.5)
