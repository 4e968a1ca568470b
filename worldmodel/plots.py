"""Figures in one style, each with the numbers behind it as CSV. No display is needed."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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
    """One line of a figure: x [N], y [N], and where given the band around it, low and high [N]."""

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def mean_curve(name: str, x: Any, runs: Any, z: float = 1.96) -> Curve:
    """Mean over runs [R, N] with its confidence band: z standard errors (1.96: 95%)."""
    values = np.asarray(runs, np.float64)
    mean = values.mean(0)
    error = z * standard_error(values)
    return Curve(name, np.asarray(x), mean, mean - error, mean + error)


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
    for curve, colour in zip(curves, _cycle(len(curves)), strict=True):
        axes.plot(curve.x, curve.y, color=colour, label=curve.name, linewidth=1.6)
        if curve.low is not None and curve.high is not None:
            axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)
    axes.set_title(title)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if len(curves) > 1:
        axes.legend()


def save(made: Any, path: Path) -> Path:
    """Write a figure as PNG (or what the suffix says) and let go of it."""
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path)
    pyplot.close(made)
    return path


def write_curves(path: Path, panels: Mapping[str, Sequence[Curve]]) -> Path:
    """The numbers of a figure: one row per panel, curve and x."""
    rows = [
        (
            panel,
            curve.name,
            curve.x[i],
            curve.y[i],
            "" if curve.low is None else curve.low[i],
            "" if curve.high is None else curve.high[i],
        )
        for panel, curves in panels.items()
        for curve in curves
        for i in range(len(curve.x))
    ]
    return write_table(path, ("panel", "curve", "x", "y", "low", "high"), rows)


def write_table(path: Path, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    """A CSV file with a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    return path


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
