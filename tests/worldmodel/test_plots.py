"""Figures: what is drawn is what was given, and the numbers are written beside it."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldmodel import plots


def test_mean_and_band_by_hand() -> None:
    runs = [[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]]
    curve = plots.mean_curve("a", [0, 1], runs, colour=plots.COLOURS[2], style="--")
    assert curve.y.tolist() == [3.0, 2.0]
    assert curve.high is not None
    assert curve.high - curve.y == pytest.approx([1.96 * 2 / 3**0.5, 0.0])
    assert (curve.colour, curve.style) == (plots.COLOURS[2], "--")
    assert plots.standard_error([[4.0, 5.0]]).tolist() == [0.0, 0.0]  # one run has no spread


def test_lines_have_the_colours_they_were_given(tmp_path: Path) -> None:
    made, axes = plots.figure()
    curves = [
        plots.mean_curve("free", [0, 1], [[1, 2]]),
        plots.mean_curve("given", [0, 1], [[1, 3]], colour=plots.COLOURS[5], style=":"),
    ]
    plots.draw(axes[0][0], curves, "title", "x", "y")
    lines = axes[0][0].lines
    assert [line.get_color() for line in lines] == [plots.COLOURS[0], plots.COLOURS[5]]
    assert lines[1].get_linestyle() == ":"
    assert [t.get_text() for t in axes[0][0].get_legend().get_texts()] == ["free", "given"]
    plots.caption(made, "seeds 0 to 3")
    path = plots.save(made, tmp_path / "deep" / "a.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_curves_as_csv_with_what_holds_for_all(tmp_path: Path) -> None:
    bare = plots.Curve("bare", np.array([1, 2]), np.array([0.5, 0.25]))
    panels = {"one": [bare], "two": [plots.mean_curve("band", [3], [[1.0], [2.0]])]}
    path = plots.write_curves(tmp_path / "a.csv", panels, {"seeds": "0 to 1"})
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["curve"] for row in rows] == ["bare", "bare", "band"]
    assert [float(row["y"]) for row in rows] == [0.5, 0.25, 1.5]
    assert (rows[0]["low"], rows[0]["seeds"]) == ("", "0 to 1")
    assert float(rows[2]["low"]) == pytest.approx(1.5 - 1.96 * 0.5)


def draw_one(panel: Any) -> Any:
    values = np.array([[0.0, np.nan, 1.0], [0.5, 0.6, 0.9]])
    moves = np.zeros((2, 3, 4), bool)
    moves[0, 0, 2] = moves[1, 0, 1] = moves[1, 1, 1] = moves[1, 2, 0] = True
    return plots.draw_grid(panel, values, moves, {(0, 0): "S", (0, 2): "G"}, "t", (0.0, 2.0))


def test_a_grid_shows_values_walls_and_moves() -> None:
    from matplotlib.quiver import Quiver

    made, axes = plots.figure()
    image = draw_one(axes[0][0])
    assert image.get_clim() == (0.0, 2.0)
    assert image.get_array().mask.tolist() == [[False, True, False], [False] * 3]
    (arrows,) = [child for child in axes[0][0].get_children() if isinstance(child, Quiver)]
    assert arrows.U.tolist() == [0, 1, 1, 0]  # across: down, right, right, up
    assert arrows.V.tolist() == [1, 0, 0, -1]  # rows count downwards
    assert {text.get_text() for text in axes[0][0].texts} == {"S", "G"}
    low, high = axes[0][0].get_ylim()
    assert low > high  # the first row on top
    plots.close(made)


def test_a_film_has_its_frames(tmp_path: Path) -> None:
    from PIL import Image

    made, axes = plots.figure(width=2, height=2)

    def frame(height: int) -> Callable[[], object]:
        return lambda: (axes[0][0].clear(), axes[0][0].plot([0, height]))

    frames = [frame(height) for height in (1, 5, 9)]
    path = plots.animate(made, tmp_path / "a.gif", frames, rate=5, dpi=40)
    plots.close(made)
    with Image.open(path) as film:
        assert film.is_animated
        assert film.size == (80, 80)
        times = []
        for i in range(film.n_frames):
            film.seek(i)
            times.append(film.info["duration"])
    assert len(times) >= 3
    assert sum(times) == 200 * (3 + 5)  # milliseconds: three frames, and a second
