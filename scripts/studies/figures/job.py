"""What every figure shares: its settings, its seeds and files, and the comparison with anchors."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel import plots
from worldmodel.config import check_ranges
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
        both = float(np.hypot(self.error, self.anchor_error))
        apart = self.value - self.anchor
        if both == 0:
            return float(np.copysign(np.inf, apart)) if apart else 0.0
        return apart / both

    def line(self) -> str:
        """One line for people."""
        told = f"  {self.what}: {_short(self.value)} (standard error {_short(self.error)}), anchor "
        told += f"{_short(self.anchor)} ({_short(self.anchor_error)}"
        told += f", assumed: {self.assumed})" if self.assumed else ")"
        return told + f": {self.distance:+.1f} standard errors apart"


@dataclass
class Job:
    """One figure to be made. files, checks: what was made and compared so far."""

    name: str
    settings: Settings
    say: Callable[[str], None]
    files: list[Path] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    _seeds: range | None = None

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

    def seeds_told(self) -> str:
        """`seeds 0 to 29`"""
        assert self._seeds is not None, "seeds are drawn before the figure"
        first, last = self._seeds[0], self._seeds[-1]
        return f"seed {first}" if first == last else f"seeds {first} to {last}"

    def path(self, suffix: str, part: str = "") -> Path:
        """A file of this figure."""
        return Path(self.settings.out) / f"{self.name}{'_' if part else ''}{part}.{suffix}"

    def save(
        self, made: Any, panels: Mapping[str, Sequence[Curve]], note: str, part: str = ""
    ) -> None:
        """The figure as PNG, with `note` and the seeds below it, and its curves as CSV."""
        plots.caption(made, f"{note} {self.seeds_told()}.")
        self.files.append(plots.save(made, self.path("png", part)))
        also = {"seeds": self.seeds_told()}
        self.files.append(plots.write_curves(self.path("csv", part), panels, also))

    def check(self, *checks: Check) -> None:
        """Compare with anchors, and say so."""
        for one in checks:
            self.checks.append(one)
            self.say(one.line())


def mean_check(
    what: str,
    runs: Any,
    anchor: float,
    anchor_runs: int,
    anchor_sd: float | None = None,
    assumed_runs: bool = False,
) -> Check:
    """The mean over runs [R] beside an anchor that is a mean over `anchor_runs`.

    Where the anchor's standard deviation is not known ours is assumed for it.
    """
    values = np.asarray(runs, np.float64)
    sd = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    assumed = [] if anchor_sd is not None else ["our deviation"]
    assumed += [f"{anchor_runs} runs"] if assumed_runs or anchor_sd is None else []
    return Check(
        what,
        float(values.mean()),
        sd / len(values) ** 0.5,
        anchor,
        (sd if anchor_sd is None else anchor_sd) / anchor_runs**0.5,
        ", ".join(assumed),
    )


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

    found = float(number(values))
    told = f"our deviation, {anchor_runs} runs"
    return Check(what, found, error(len(values)), anchor, error(anchor_runs), told)


def evenly(end: int, points: int) -> np.ndarray:
    """About so many whole numbers from 1 to `end`, both among them."""
    return np.unique(np.linspace(1, end, points).round().astype(np.int64))


def chunks(x: np.ndarray) -> Iterator[int]:
    """How far to go on from each of x [N] to the next, beginning at 0."""
    yield from (int(step) for step in np.diff(x, prepend=0))


def _short(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
