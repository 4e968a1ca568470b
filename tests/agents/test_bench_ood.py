"""The study's figures by hand, and a whole study of a tiny run."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scripts.studies import bench_ood
from scripts.studies.bench_ood import Settings, alarm, auroc, judge, measure, summaries
from scripts.studies.bench_ood_plots import roc
from scripts.studies.tracks import cached, read, write
from tests.agents.rewards_run import make_run
from tests.worldmodel.ood_tracks import tiny_config, tiny_model, tracks
from worldmodel.config import ConfigError


def test_auroc_by_hand() -> None:
    one, two = np.array([0.0, 1.0]), np.array([0.5, 2.0])
    assert auroc(one, two) == pytest.approx(0.75)
    assert auroc(two, one) == pytest.approx(0.25)
    assert auroc(one, one) == pytest.approx(0.5)
    assert auroc(np.zeros(3), np.ones(2)) == 1.0


def test_alarms_count_from_the_onset() -> None:
    assert alarm(np.array([0.5, 1.0, 1.1])) == 2
    assert alarm(np.array([0.5])) == np.inf
    ordinary = [np.array([9.0, 0.1, 0.2, 0.3]), np.array([9.0, 0.1, 0.1, 0.1])]
    shifted = [np.array([9.0, 0.5, 2.0, 0.0]), np.array([9.0, 0.5, 0.5, 3.0]), np.full(4, 0.05)]
    figures = judge(ordinary, shifted, onset=1, within=2)
    assert figures == {
        "auroc_episode": pytest.approx(2 / 3, abs=1e-4),
        "auroc_tick": pytest.approx(auroc(np.array([0.1, 0.2, 0.3, 0.1, 0.1, 0.1]),
                                          np.array([0.5, 2, 0, 0.5, 0.5, 3, 0.05, 0.05, 0.05])),
                                    abs=1e-4),
        "caught": pytest.approx(1 / 3, abs=1e-4),
        "detected": pytest.approx(2 / 3, abs=1e-4),
        "delay": 1.5,
    }  # fmt: skip


def test_episodes_that_end_before_the_onset_tell_nothing() -> None:
    short, long = np.full(2, 9.0), np.full(4, 0.5)
    assert judge([short, long], [short], 3, 2).keys() == judge([long], [long], 3, 2).keys()
    assert np.isnan(list(judge([long], [short], 3, 2).values())).all()
    assert judge([short, long], [short, 4 * long], 3, 2)["auroc_episode"] == 1.0


def test_a_roc_of_perfect_scores_is_one() -> None:
    curve = roc(np.arange(10.0), np.array([20.0, 30.0]))
    assert (curve == 1).all()
    assert roc(np.arange(10.0), np.array([-1.0]))[0] == 0


def test_means_are_over_the_shifts_of_a_kind() -> None:
    rows = [
        {"kind": "visible", "level": "mild", "column": "combined", "auroc_episode": a,
         "auroc_tick": a, "caught": a, "detected": a, "delay": float("nan")}
        for a in (0.5, 1.0)
    ]  # fmt: skip
    found = next(iter(summaries(rows)))
    assert found["auroc_episode"] == 0.75
    assert "delay" not in found


def test_episodes_come_back_from_disk(tmp_path: Path) -> None:
    model = tiny_model()
    like = model.initial(1)
    played = tracks(3, 0, model)
    path = tmp_path / "some.npz"
    write(path, played)
    for one, two in zip(played, read(path, like), strict=True):
        np.testing.assert_array_equal(one.obs["image"], two.obs["image"])
        assert one.state is not None
        assert two.state is not None
        np.testing.assert_array_equal(one.state.stoch, two.state.stoch)

    def never() -> list[object]:
        raise AssertionError("played again")

    assert len(cached(path, never, like)) == 3  # type: ignore[arg-type]


def test_unknown_names_are_errors() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'blur'"):
        Settings("x", shifts=["blurr"])
    with pytest.raises(ConfigError, match="level"):
        Settings("x", levels=["huge"])


@pytest.mark.slow
def test_a_study_of_a_tiny_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    asked = Settings(
        str(run), shifts=["darkness", "delay", "gravity"], levels=["middle", "strong"],
        episodes=3, normal=4, unusual=2, onset=2, within=3, jolts=2, false_alarm_rate=0.25,
        detector=tiny_config(updates=20),
    )  # fmt: skip
    figures = list(measure(asked))
    folder = run / "ood"
    for name in ("ood.csv", "roc.png", "roc.csv", "time.png", "heat.png"):
        assert (folder / name).stat().st_size > 500
    rows = list(csv.DictReader((folder / "ood.csv").open()))
    columns = {row["column"] for row in rows}
    assert {"combined", "reconstruction", "flow", "density", "neighbours", "drift"} <= columns
    assert len(rows) == 2 * 2 * len(columns)
    left = [figure for figure in figures if "left_out" in figure]
    assert [one["shift"] for one in left] == ["gravity"]
    assert "Nobody knows where the gravity" in str(left[0]["left_out"])
    counted = {(f["false_alarms"], f["column"]) for f in figures if "false_alarms" in f}
    assert ("ordinary", "combined") in counted
    assert ("jolted", "combined") in counted
    assert any(f.get("mean_over") == "visible" and f["level"] == "all" for f in figures)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")}
    late = bench_ood.Study(replace(asked, onset=50))
    with pytest.raises(ConfigError, match="onset is 50, but the longest of 4 ordinary episodes"):
        late.check_onset()
    again = bench_ood.Study(asked)
    assert len(again.shifted("delay", "strong")) == 3
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")}
