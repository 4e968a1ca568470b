"""The guard's study: its figure by hand, and a whole one of a tiny run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.studies.bench_guard import Settings, measure, shortfall
from tests.agents.rewards_run import LENGTH, make_run
from worldmodel.config import ConfigError


def test_a_shortfall_is_a_share_of_the_safe_return() -> None:
    found = shortfall([-110.0, -90.0, 95.0, 110.0], [-100.0, -100.0, 100.0, 100.0])
    np.testing.assert_allclose(found, [0.1, -0.1, 0.05, -0.1])


def test_a_study_of_a_tiny_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")  # whose rewards do not depend on what anybody does
    asked = Settings(str(run), ["blur", "gain"], ["middle"], episodes=2, onset=3)
    *rows, last = measure(asked)
    assert [row["shift"] for row in rows] == ["blur", "gain"]
    for row in rows:
        assert row["guarded"] == row["policy"] == row["fallback"] == LENGTH * (LENGTH + 1) / 2
        assert row["noticed"] == 0  # without a detector nothing is ever unknown
        assert np.isnan(row["delay"])
    assert last == {"episodes": 4, "too_low": 0, "short_worst": 0.0, "fallback": "hold"}


def test_unknown_shifts_are_told() -> None:
    with pytest.raises(ConfigError, match="blur"):
        Settings("run", shifts=["blurr"])
