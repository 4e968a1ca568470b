"""Figures: every one end to end, its numbers in the CSV, and beside what others found."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from agents.dyna.exact import shortest_path
from scripts.studies.figures import changing_mazes, dyna_maze, speed_up, sweeping, values
from scripts.studies.figures.job import Check, Job, Settings, drawn_check, maze, mean_check
from scripts.studies.plot import FIGURES, make_figure, plot_command
from worldmodel.config import ConfigError


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def run_figure(name: str, folder: Path, seeds: str) -> None:
    said: list[str] = []
    words = [f"figure={name}", "quick=true", "runs=2", "seed=7", f"out={folder}"]
    assert plot_command(said.append, words) == 0, said
    assert any(seeds in line for line in said)
    pictures, tables = list(folder.glob("*.png")), list(folder.glob("*.csv"))
    tables = [path for path in tables if not path.stem.endswith("_checks")]
    assert len(pictures) == len(tables) > 0
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    for path in tables:
        assert {row["seeds"] for row in rows_of(path)} == {seeds}
    assert {str(path) for path in folder.iterdir()} <= {line.strip() for line in said}


TRAINED = {"doubt", "few_simulations", "model_bias"}  # they train worlds first


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in TRAINED else name
        for name in sorted(set(FIGURES) - {"values"})
    ],
)
def test_every_figure_from_the_command_line(name: str, tmp_path: Path) -> None:
    run_figure(name, tmp_path, "seeds 7 to 8")


def test_the_csv_holds_what_was_computed(tmp_path: Path) -> None:
    settings = Settings(runs=3, seed=4, out=str(tmp_path), quick=True)
    make_figure("dyna_maze", settings, lambda _: None)
    lengths, goals, each = dyna_maze.measure(5, range(4, 7), 15, 2000)
    assert each == 6  # five planned changes and the real one
    rows = [row for row in rows_of(tmp_path / "dyna_maze.csv") if row["curve"] == "n=5"]
    for panel, x, runs in (
        ("by episodes", np.arange(1, 16), lengths),
        ("by real steps", dyna_maze.moments(2000), goals),
        ("by changes of values", dyna_maze.moments(2000) * 6, goals),
    ):
        found = [row for row in rows if row["panel"] == panel]
        assert [float(row["x"]) for row in found] == x.tolist()
        mean, error = runs.mean(0), runs.std(0, ddof=1) / 3**0.5
        for name, expected in (("y", mean), ("low", mean - 1.96 * error)):
            assert np.allclose([float(row[name]) for row in found], expected, atol=1e-12)
    assert len(set(lengths.sum(1).tolist())) == 3  # runs differ


def test_the_film_shows_the_values(tmp_path: Path) -> None:
    run_figure("values", tmp_path, "seed 7")  # one run, whatever was asked for
    films = list(tmp_path.glob("*.gif"))
    assert len(films) == 2
    assert all(path.read_bytes().startswith(b"GIF8") for path in films)
    rows = rows_of(tmp_path / "values_dyna_maze.csv")
    _, shots = values.measure(values.FILMS[0], 7, quick=True)
    assert len(rows) == len(shots) * 47  # cells that are no walls
    assert np.nanmax(shots[0].values) == 0
    assert not shots[0].moves.any()
    for shot in shots:
        mine = [row for row in rows if int(row["steps"]) == shot.steps]
        cells = shot.values[~np.isnan(shot.values)]
        assert np.allclose([float(row["value"]) for row in mine], cells, atol=0)
    last = shots[-1]
    # Only the step from below the goal is paid, so nothing is worth more.
    assert np.unravel_index(np.nanargmax(last.values), last.values.shape) == (1, 8)
    assert np.nanmax(last.values) > 0.5
    assert not last.moves[0, 8].any()  # nobody acts in the goal
    assert last.moves[1, 8].tolist() == [True, False, False, False]  # below it: up


def test_the_dyna_maze_agrees_with_its_anchors() -> None:
    """Steps over 50 episodes, of an independent re-run: 4707, 1831 and 1646 for n = 0, 5, 50."""
    for n, (_, anchor) in dyna_maze.ANCHORS.items():
        lengths, _, _ = dyna_maze.measure(n, range(100, 140), 50, 0)
        check = mean_check("steps", lengths.sum(1), anchor, 30)
        assert abs(check.distance) < 3, check.line()
        # Most of the spread is the first episode, a random walk of 868.7 steps: without it the same
        # comparison is many times sharper. The anchor's own first episodes are not known.
        later = lengths[:, 1:].sum(1).mean()
        assert later == pytest.approx(anchor - 868.7, rel=0.2)


@pytest.mark.parametrize("maze", changing_mazes.MAZES)
def test_changing_mazes_agree_with_their_anchors(maze: str) -> None:
    for agent, anchor in zip(("Dyna-Q", "Dyna-Q+"), changing_mazes.MAZES[maze][3], strict=True):
        _, sums = changing_mazes.measure(maze, agent, range(200, 240))
        check = mean_check(agent, sums[:, -1], anchor[0], 20, anchor[1])
        assert abs(check.distance) < 3, check.line()


def test_sweeping_and_the_lake_agree_with_their_anchors() -> None:
    world = maze("dyna_maze", 1)
    for agent, anchor in zip(sweeping.AGENTS, sweeping.ANCHORS[1], strict=True):
        updates = sweeping.measure(world, agent, range(50, 80))[:, 0]
        check = mean_check(agent, updates, anchor, sweeping.ANCHOR_RUNS)
        assert abs(check.distance) < 3, check.line()
    lake = speed_up.lake(slippery=False)
    for n, anchor in speed_up.ANCHORS.items():
        steps = speed_up.measure(lake, n, 1.0, range(50, 80))[:, 0]
        median = drawn_check("median", steps, speed_up.median, anchor, 10)
        assert abs(median.distance) < 3, median.line()


def test_distances_by_hand() -> None:
    check = mean_check("x", [1.0, 3.0, 5.0, 7.0], 10.0, 9, 3.0)
    error = np.std([1, 3, 5, 7], ddof=1) / 2
    assert (check.value, check.anchor_error, check.assumed) == (4.0, 1.0, "")
    assert check.distance == pytest.approx(-6 / np.hypot(error, 1.0))
    assert mean_check("x", [1.0, 3.0], 2.0, 8).anchor_error == pytest.approx(0.5)
    assert "our deviation, 8 runs" in mean_check("x", [1.0, 3.0], 2.0, 8).line()
    assert Check("exact", 3.0, 0.0, 3.0, 0.0).distance == 0
    assert Check("exact", 3.0, 0.0, 4.0, 0.0).distance == -np.inf
    draws = np.random.default_rng(0).normal(5.0, 2.0, 400)
    drawn = drawn_check("mean", draws, lambda x: float(x.mean()), 5.0, 100)
    assert drawn.error == pytest.approx(0.1, rel=0.15)
    assert drawn.anchor_error == pytest.approx(0.2, rel=0.15)


def test_seeds_follow_the_settings() -> None:
    job = Job("x", Settings(runs=4, seed=10), lambda _: None)
    assert job.seeds(30) == range(10, 14)
    assert job.seeds_text == "seeds 10 to 13"
    assert Job("x", Settings(), lambda _: None).seeds(30) == range(30)
    with pytest.raises(ConfigError, match="runs is -1; allowed: 0 to"):
        Settings(runs=-1)


@pytest.mark.parametrize(("words", "message"), [
    (["figure=dyna_mze"], "Unknown figure 'dyna_mze'.*Did you mean 'dyna_maze'"),
    ([], "Give figure=NAME, once"),
    (["figure=values", "figure=updates"], "once"),
    (["figure=values", "sed=3"], "Did you mean 'seed'"),
    (["figure=values", "runs=-2"], "runs is -2"),
    (["figure=values", "seed=x"], "seed"),
])  # fmt: skip
def test_wrong_words_are_answered(words: list[str], message: str) -> None:
    said: list[str] = []
    assert plot_command(said.append, words) == 2
    assert len(said) == 1
    assert re.search(message, said[0]), said


def test_refined_mazes_grow() -> None:
    assert maze("dyna_maze", 2).states == 4 * maze("dyna_maze", 1).states
    assert [shortest_path(maze("dyna_maze", size)) for size in (1, 2, 3)] == [14, 27, 40]
