"""What every figure shares: its settings, seeds and files, runs and panels, and the comparison with
anchors."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.dyna import DynaConfig
from agents.dyna.experiment import Experiment
from worldmodel import plots, progress
from worldmodel.config import check_ranges
from worldmodel.envs.grid import GRIDS, GridWorld, refine
from worldmodel.envs.table import WorldTable
from worldmodel.plots import COLOURS, Curve

# One agent, one colour, in every figure.
COLOUR = {
    "Q-learning": COLOURS[6],
    "Dyna-Q": COLOURS[0],
    "Dyna-Q+": COLOURS[1],
    "prioritized sweeping": COLOURS[2],
    "Dyna-2": COLOURS[3],
    "Dyna-Q with counts": COLOURS[4],
    "trajectory sampling": COLOURS[5],
}
DOTTED = {"color": "#888888", "linewidth": 0.9, "linestyle": ":"}
Panels = Mapping[str, Sequence[Curve]]


@dataclass
class Settings:
    """Which runs, and where their figures go."""

    runs: int = 0  # independent runs of each curve; 0: as many as the figure is meant to have
    seed: int = 0  # the first run's; the others count on from it
    out: str = "figures"  # a folder
    quick: bool = False  # few runs and short ones: to see whether it works, not what comes out

    def __post_init__(self) -> None:
        check_ranges(self, {"runs": (0, 100_000), "seed": (0, 2**31)})


@dataclass(frozen=True)
class Check:
    """A number beside its anchor, which others found with the same settings.

    error: standard error of `value`. anchor_error: standard error of `anchor`, 0 where it is exact.
    assumed: what was assumed for that, where the anchor came without a spread.
    """

    what: str
    value: float
    error: float
    anchor: float
    anchor_error: float
    assumed: str = ""

    @property
    def distance(self) -> float:
        """Value minus anchor, in standard errors of both together; infinite where neither has
        any and they differ."""
        both, difference = float(np.hypot(self.error, self.anchor_error)), self.value - self.anchor
        if both == 0:
            return float(np.copysign(np.inf, difference)) if difference else 0.0
        return difference / both

    def line(self) -> str:
        """One line for people."""
        value, error, anchor, anchor_error = (
            f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"
            for x in (self.value, self.error, self.anchor, self.anchor_error)
        )
        assumed = f", assumed: {self.assumed}" if self.assumed else ""
        return (
            f"  {self.what}: {value} (standard error {error}), anchor {anchor} "
            f"({anchor_error}{assumed}): {self.distance:+.1f} standard errors apart"
        )


@dataclass
class Job:
    """One figure to be made. files: what was made so far."""

    name: str
    settings: Settings
    say: Callable[[str], None]
    files: list[Path] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    _seeds: range = range(0)

    @property
    def quick(self) -> bool:
        """Whether short runs are enough."""
        return self.settings.quick

    def seeds(self, runs: int, most: int = 100_000) -> range:
        """The seeds of this figure's runs, which are `runs` unless the settings say otherwise, and
        never more than `most`."""
        count = min(most, self.settings.runs or (3 if self.quick else runs))
        self._seeds = range(self.settings.seed, self.settings.seed + count)
        return self._seeds

    @property
    def seeds_text(self) -> str:
        """`seeds 0 to 29`"""
        assert self._seeds, "seeds are drawn before the figure"
        first, last = self._seeds[0], self._seeds[-1]
        return f"seed {first}" if first == last else f"seeds {first} to {last}"

    def path(self, suffix: str, part: str = "") -> Path:
        """A file of this figure."""
        return Path(self.settings.out) / f"{self.name}{'_' if part else ''}{part}.{suffix}"

    def save(self, made: Any, panels: Panels, note: str) -> None:
        """The figure as PNG, with `note` and the seeds below it, and its curves as CSV."""
        plots.caption(made, f"{note} {self.seeds_text}.")
        self.files.append(plots.save(made, self.path("png")))
        also = {"seeds": self.seeds_text}
        self.files.append(plots.write_curves(self.path("csv"), panels, also))

    def check(self, *checks: Check) -> None:
        """Say how numbers lie to their anchors, and note it in NAME_checks.csv."""
        for one in checks:
            self.say(one.line())
        self.checks += checks
        names = ("what", "ours", "error", "anchor", "anchor_error", "assumed", "apart")
        rows = [
            (c.what, c.value, c.error, c.anchor, c.anchor_error, c.assumed, c.distance)
            for c in self.checks
        ]
        path = plots.write_table(self.path("csv", "checks"), names, rows)
        self.files = [*(file for file in self.files if file != path), path]


def mean_check(
    what: str, runs: Any, anchor: float, anchor_runs: int, anchor_sd: float | None = None
) -> Check:
    """The mean over runs [R] beside an anchor that is a mean over `anchor_runs`.

    Where the anchor's standard deviation is not known ours is assumed for it.
    """
    values = np.asarray(runs, np.float64)
    sd = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    error, assumed = sd / len(values) ** 0.5, ""
    if anchor_sd is None:
        anchor_sd, assumed = sd, f"our deviation, {anchor_runs} runs"
    return Check(what, float(values.mean()), error, anchor, anchor_sd / anchor_runs**0.5, assumed)


def drawn_check(
    what: str, runs: Any, number: Callable[[np.ndarray], float], anchor: float, anchor_runs: int
) -> Check:
    """Any number of runs [R, ...] beside an anchor, its standard error from 500 redrawings of the
    runs; the anchor's likewise, as if it came from `anchor_runs` runs like ours."""
    values = np.asarray(runs)
    rng = np.random.default_rng(zlib.crc32(what.encode()))

    def error(count: int) -> float:
        picks = rng.integers(len(values), size=(500, count))
        return float(np.std([number(values[pick]) for pick in picks], ddof=1))

    assumed = f"our deviation, {anchor_runs} runs"
    value, ours = float(number(values)), error(len(values))
    return Check(what, value, ours, anchor, error(anchor_runs), assumed)


def mean_text(runs: np.ndarray, digits: int = 3) -> str:
    """Mean over runs [R] and its standard error, as `0.512 (0.004)`."""
    return f"{runs.mean():.{digits}f} ({float(plots.standard_error(runs)):.{digits}f})"


def maze(name: str, size: int = 1) -> WorldTable:
    """A grid of worldmodel.envs.grid as a table, each cell divided into size x size."""
    grid = GRIDS[name]
    layouts = tuple(refine(layout, size) for layout in grid.layouts)
    return GridWorld(replace(grid, layouts=layouts)).table()


def evenly(end: int, points: int) -> np.ndarray:
    """About so many whole numbers from 1 to `end`, both among them."""
    return np.unique(np.linspace(1, end, points).round().astype(np.int64))


def looks(
    world: WorldTable,
    config: DynaConfig,
    seeds: range,
    x: np.ndarray,
    look: Callable[[Experiment], Sequence[float]],
    time_limit: int = 0,
) -> np.ndarray:
    """What `look` says of each run after each of x [N] real steps: float64 [R, N, K]."""
    found = []
    for seed in progress.each(seeds, "runs"):
        run = Experiment(world, config, seed, time_limit)
        found.append([look(run.advance(int(more))) for more in np.diff(x, prepend=0)])
    return np.array(found, np.float64)


def draw_panels(
    panels: Panels, labels: Sequence[tuple[str, str]], width: float = 5.2, height: float = 3.6
) -> tuple[Any, Any]:
    """A figure with a panel for each title, and its panels; labels: of x and y, for each."""
    made, axes = plots.figure(len(panels), width=width, height=height)
    for panel, (title, curves), (x, y) in zip(axes[0], panels.items(), labels, strict=True):
        plots.draw(panel, curves, title, x, y)
    return made, axes[0]


def mark_change(panel: Any, step: int, height: float, text: str) -> None:
    """A dotted line where the world changes, and what happens."""
    panel.axvline(step, **DOTTED)
    panel.text(step, height, text, fontsize=9, color="#555555")
