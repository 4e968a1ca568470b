"""Figures in one style, each with the numbers behind it as CSV. No display is needed."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.atomic import replaced_file

# Told apart with the common colour blindnesses, and in print (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE: Any = {
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.dpi": 130.0,
}


@dataclass(frozen=True)
class Curve:
    """One line of a figure: x [N], y [N], and where given the band around it, low and high [N].

    colour: of COLOURS; without one, the line's place in the legend decides. style: as in
    matplotlib, "-" or "--", say.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    colour: str = ""
    style: str = "-"


def mean_curve(
    name: str, x: Any, runs: Any, z: float = 1.96, colour: str = "", style: str = "-"
) -> Curve:
    """Mean over runs [R, N] with its confidence band: z standard errors (1.96: 95%)."""
    values = np.asarray(runs, np.float64)
    mean = values.mean(0)
    error = z * standard_error(values)
    return Curve(name, np.asarray(x), mean, mean - error, mean + error, colour, style)


def standard_error(runs: Any) -> np.ndarray:
    """Standard error of the mean over runs [R, ...]; zero for a single run."""
    values = np.asarray(runs, np.float64)
    if len(values) < 2:
        return np.zeros(values.shape[1:])
    return values.std(0, ddof=1) / np.sqrt(len(values))


def figure(columns: int = 1, rows: int = 1, width: float = 5.2, height: float = 3.6) -> Any:
    """A matplotlib figure and its axes [rows][columns], `width` x `height` inches each panel."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        made, axes = pyplot.subplots(
            rows,
            columns,
            figsize=(columns * width, rows * height),
            squeeze=False,
            layout="constrained",
        )
    return made, axes


def draw(axes: Any, curves: Sequence[Curve], title: str, xlabel: str, ylabel: str) -> None:
    """Lines and their bands on one panel, with a legend."""
    for curve, usual in zip(curves, _cycle(len(curves)), strict=True):
        colour = curve.colour or usual
        axes.plot(
            curve.x, curve.y, curve.style, color=colour, label=curve.name or None, linewidth=1.6
        )
        if curve.low is not None and curve.high is not None:
            axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)
    axes.set_title(title)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if len(curves) > 1:
        axes.legend()


def caption(made: Any, text: str) -> None:
    """A small line below all panels of a figure."""
    made.supxlabel(text, fontsize=8, color="#555555")


def save(made: Any, path: Path) -> Path:
    """Write a figure as PNG (or what the suffix says) and let go of it."""
    with replaced_file(path) as fresh:
        made.savefig(fresh)
    close(made)
    return path


def close(made: Any) -> None:
    """Let go of a figure; `save` does so by itself."""
    from matplotlib import pyplot

    pyplot.close(made)


def write_curves(
    path: Path, panels: Mapping[str, Sequence[Curve]], also: Mapping[str, Any] | None = None
) -> Path:
    """The numbers of a figure: one row per panel, curve and x.

    also: columns with the same value in every row (the seeds, say).
    """
    more = dict(also or {})
    rows = [
        (
            panel,
            curve.name,
            curve.x[i],
            curve.y[i],
            "" if curve.low is None else curve.low[i],
            "" if curve.high is None else curve.high[i],
            *more.values(),
        )
        for panel, curves in panels.items()
        for curve in curves
        for i in range(len(curve.x))
    ]
    return write_table(path, ("panel", "curve", "x", "y", "low", "high", *more), rows)


def write_table(path: Path, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    """A CSV file with a header."""
    with replaced_file(path) as fresh, fresh.open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    return path


def draw_grid(
    axes: Any,
    values: np.ndarray,
    moves: np.ndarray,
    marks: Mapping[tuple[int, int], str],
    title: str,
    limits: tuple[float, float] = (0.0, 1.0),
) -> Any:
    """Values of cells as a heat map and the best moves as arrows on one panel; the image.

    values: [rows, columns], NaN for walls. moves: bool [rows, columns, 4], the actions of greatest
    value: up, right, down, left; none of them where there is nothing to show. marks: a letter for
    some cells. limits: the values at the ends of the colour scale.
    """
    from matplotlib import colormaps

    colours = colormaps["YlGnBu"].with_extremes(bad="#3e4452")
    shown = np.ma.masked_invalid(values)
    image = axes.imshow(shown, cmap=colours, vmin=limits[0], vmax=limits[1])
    rows, columns = values.shape
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="major", visible=False)
    axes.grid(which="minor", color="#ffffff", linewidth=0.8, alpha=1.0)
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
    row, column, action = np.nonzero(moves)
    across, down = np.array([0, 1, 0, -1])[action], np.array([-1, 0, 1, 0])[action]
    # Light arrows on dark cells: the upper half of the colour scale is dark.
    dark = np.nan_to_num(values)[row, column] > limits[0] + 0.55 * (limits[1] - limits[0])
    axes.quiver(
        column, row, across, down, angles="xy", scale_units="xy", pivot="middle",
        scale=2.2, width=0.005, headwidth=4, headlength=4.5, headaxislength=4,
        color=np.where(dark, "#ffffff", "#222222"),
    )  # fmt: skip
    for (at_row, at_column), letter in marks.items():
        axes.text(
            at_column - 0.32, at_row - 0.3, letter, ha="center", va="center", fontsize=8,
            fontweight="bold", color="#222222",
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "#ffffff", "edgecolor": "none"},
        )  # fmt: skip
    axes.set_title(title)
    return image


def animate(
    made: Any, path: Path, frames: Sequence[Callable[[], object]], rate: int = 4, dpi: int = 80
) -> Path:
    """A GIF of a figure that each of `frames` draws anew, `rate` a second; the last one stays for a
    second more. The figure stays open."""
    from matplotlib.animation import PillowWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    frames[0]()
    made.canvas.draw()
    made.set_layout_engine("none")  # laid out once: the picture must not move, and it is quicker
    writer = PillowWriter(fps=rate)
    with writer.saving(made, str(path), dpi):
        for show in frames:
            show()
            writer.grab_frame()
        for _ in range(rate):
            writer.grab_frame()
    return path


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
