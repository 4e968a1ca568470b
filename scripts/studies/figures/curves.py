"""Learning curves of training runs, beside published ones where there are any.

Runs of one task share a panel: a thin line for each seed (returns of training episodes, actions
sampled), dots for evaluations (the policy's mode), a thick line for the mean over seeds of each
seed's mean return: beside published curves in the last 20,000 frames, or the last fifth of a
shorter run, which is how those are meant; else in each twentieth of the run.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from worldmodel import config, plots
from worldmodel.log import METRICS

PUBLISHED = Path(__file__).resolve().parents[3] / "docs" / "data" / "published_curves.csv"
Published = dict[str, list[tuple[float, float, float]]]
NAMES = {
    "dreamerv3": ("DreamerV3, published", "#555555"),
    "drqv2": ("DrQ-v2, published", "#aaaaaa"),
    "tdmpc2": ("TD-MPC2, published (evaluations)", "black"),
}
POINTS = 20  # of the mean over seeds
WINDOW = 20_000  # frames
SHOWN = 100_000  # frames of published curves, where ours are shorter


@dataclass
class Settings:
    """folders: of training runs, all tasks together. out: a folder for the PNG and the CSV.
    published: whether published curves of the same tasks are drawn too."""

    folders: list[str] = field(default_factory=list)
    out: str = "figures"
    published: bool = True

    def __post_init__(self) -> None:
        if not self.folders:
            raise config.ConfigError("Give the folders of runs: 'folders=[runs/a,runs/b]'.")


class Point(NamedTuple):
    """A line of metrics: frames, seconds of training, and the returns that it holds (or NaN)."""

    frames: int
    steps: int
    seconds: float
    training: float
    evaluation: float


class Run(NamedTuple):
    """A run's task, as published curves name it, its seed, and its points."""

    task: str
    suite: str  # of the published curves: dmc_vision, dmc_proprio, or another, which has none
    seed: int
    points: list[Point]


def make(settings: Settings) -> list[Path]:
    """Draw the runs that the settings name; the files."""
    folders = [Path(folder) for folder in settings.folders]
    return draw(folders, Path(settings.out) / "curves", published=settings.published)


def draw(folders: Sequence[Path], out: Path, title: str = "", published: bool = True) -> list[Path]:
    """The curves of runs as OUT.png and OUT.csv."""
    tasks: dict[str, list[Run]] = {}
    for folder in folders:
        run = read(folder)
        tasks.setdefault(run.task, []).append(run)
    columns = min(3, len(tasks))
    made, axes = plots.figure(columns, -(-len(tasks) // columns))
    for panel, (task, runs) in zip(axes.flat, tasks.items(), strict=False):
        _draw_task(panel, runs, _published(runs[0].suite, task) if published else {})
    for panel in list(axes.flat)[len(tasks) :]:
        panel.set_axis_off()
    seeds = ", ".join(str(seed) for seed in sorted({r.seed for t in tasks.values() for r in t}))
    note = f"Training episodes (actions sampled); dots: evaluations by the mode. Seeds {seeds}."
    plots.caption(made, f"{title}\n{note}" if title else note)
    rows = [
        (run.task, run.seed, *point)
        for runs in tasks.values()
        for run in runs
        for point in run.points
    ]
    names = ("task", "seed", *Point._fields)
    table = plots.write_table(out.with_suffix(".csv"), names, rows)
    return [plots.save(made, out.with_suffix(".png")), table]


def read(folder: Path) -> Run:
    """A training run's curve. Raises ConfigError where the folder holds none."""
    saved = config.read(folder / "config.yaml")
    points = []
    if (folder / METRICS).is_file():
        for line in (folder / METRICS).read_text().splitlines():
            one = json.loads(line)
            scores = [_number(one.get(key)) for key in ("episode/return", "eval/return")]
            if not all(map(math.isnan, scores)):
                about = one["env_frames"], one["agent_steps"], one["wall_clock_s"]
                points.append(Point(*about, *scores))
    if not points:
        raise config.ConfigError(f"'{folder}' has no returns yet: let its first episodes end.")
    env, seen = saved.env, "vision" if saved.env.pixels else "proprio"
    return Run(env.id, f"{env.suite}_{seen}", int(saved.seed), points)


def _draw_task(panel: Any, runs: Sequence[Run], published: Published) -> None:
    """One panel: its published curves, each seed's, and their mean."""
    curves, last = [], max(run.points[-1].frames for run in runs)
    for method, points in published.items():
        name, colour = NAMES[method]
        x, y, deviation = np.array([p for p in points if p[0] <= max(last, SHOWN)]).T
        curves.append(plots.Curve(name, x, y, y - deviation, y + deviation, colour, "--"))
    for run in runs:
        frames, _, _, training, evaluation = np.array(run.points).T
        seen, dots = np.isfinite(training), np.isfinite(evaluation)
        panel.plot(frames[seen], training[seen], color=plots.COLOURS[0], alpha=0.35, linewidth=0.8)
        panel.plot(frames[dots], evaluation[dots], "o", color=plots.COLOURS[1], markersize=3)
    x = np.linspace(0, min(run.points[-1].frames for run in runs), POINTS + 1)[1:]
    window = min(WINDOW, last / 5) if published else x[0]
    means = np.array([_recent(run, x, window) for run in runs])
    x = x if published else x - window / 2  # the middles
    known = np.isfinite(means).all(0)
    name = f"ours, {len(runs)} seed{'s' * (len(runs) > 1)}"
    curves.append(plots.Curve(name, x[known], means[:, known].mean(0), colour=plots.COLOURS[0]))
    plots.draw(
        panel, curves, runs[0].task.rpartition(":")[2], "environment frames", "return of an episode"
    )
    panel.legend()


def _recent(run: Run, x: np.ndarray, window: float) -> np.ndarray:
    """The mean of a run's training returns in the last frames before each of x; NaN where none."""
    found = [
        [
            p.training
            for p in run.points
            if at - window < p.frames <= at and math.isfinite(p.training)
        ]
        for at in x
    ]
    return np.array([np.mean(some) if some else math.nan for some in found])


def _published(suite: str, task: str) -> Published:
    """Frames, mean and standard deviation over seeds of each method that is drawn."""
    found: Published = {}
    with PUBLISHED.open(newline="") as text:
        for row in csv.DictReader(text):
            about = row["suite"], row["task"]
            if about == (suite, f"dmc_{task}") and row["method"] in NAMES:
                point = float(row["env_frames"]), float(row["mean"]), float(row["std"])
                found.setdefault(row["method"], []).append(point)
    return found


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
