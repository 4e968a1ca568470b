"""The guard's study: its figures by hand, and a whole one of a tiny run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scripts.studies.bench_guard import Settings, Study, measure
from scripts.studies.guard_verdict import noticed, over_levels
from tests.agents.rewards_run import LENGTH, make_run
from worldmodel.config import ConfigError


def test_a_shortfall_is_against_the_better_mean_as_a_share_of_the_span() -> None:
    rows: list[dict[str, Any]] = [
        {"guarded": [10.0, 20.0], "policy": [20.0, 20.0], "fallback": [0.0, 0.0]},
        {"guarded": [10.0, 20.0], "policy": [10.0, 10.0], "fallback": [30.0, 30.0]},
    ]
    found = over_levels(rows, low=-10.0, span=50.0)
    # Means over levels: 15, 15 and 15 of a span of 50 that begins at -10.
    assert found["guarded"] == found["policy"] == found["fallback"] == 0.5
    assert found["short"] == 0
    assert found["interval"] == [-0.1, 0.1]  # both of one episode: 20 or 10 against 15


def test_catches_are_counted_from_the_first_alarm() -> None:
    found = noticed([{"delays": [[3, 40], [10], []]}, {"delays": [[9]]}], within=10)
    assert found == {"caught": 0.5, "noticed": 0.75}


@pytest.mark.slow
def test_a_study_of_a_tiny_run_is_played_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")  # whose rewards do not depend on what anybody does
    own = "scripts.studies.unseen:Lag"
    asked = Settings(str(run), shifts=["blur", own], levels=["middle"], episodes=2, ordinary=2,
                     onset=3, stalls=[2], covered=[2], stall_at=3)  # fmt: skip
    found = list(measure(asked))
    rows = [row for row in found if "level" in row and "shift" in row]
    assert [row["shift"] for row in rows] == ["blur", own]
    for row in rows:
        assert row["guarded"] == row["policy"] == row["fallback"] == LENGTH * (LENGTH + 1) / 2
        assert row["noticed"] == 0  # without a detector nothing is ever unknown
    (stall,) = [row for row in found if "stall" in row]
    assert stall["lost_most"] == 1  # recover_ticks is 2, and the second is the policy's
    (covered,) = [row for row in found if "covered" in row]
    assert covered["lost_most"] == 0  # nobody notices
    assert found[-1]["short_worst"] == 0
    files = {path: path.stat().st_mtime_ns for path in Study(asked).folder.iterdir()}
    assert list(measure(asked)) == found
    assert {path: path.stat().st_mtime_ns for path in Study(asked).folder.iterdir()} == files


def test_unknown_shifts_are_told() -> None:
    with pytest.raises(ConfigError, match="blur"):
        Settings("run", shifts=["blurr"])
