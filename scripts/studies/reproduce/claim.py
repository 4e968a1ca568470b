"""What a claim is, and how its numbers are read from the files that its commands leave.

The commands of one seed run in this order, in the folder of the seed; what each prints is kept:

    OUT/NAME/seed-0/  0.out, 1.out ...   what command 0, 1 ... printed
                      run/               the run folder, {run} in a command
                      result.json        the figures, once all commands are done
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from worldmodel.log import METRICS

RUN = "run"  # the run folder within that of a seed
Read = Callable[[Path], float]
Pick = Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class Measure:
    """One number of a claim, and the bounds that it must keep. Without bounds it is only shown.

    read: takes the folder of a seed (see `summary`, `returns`, `printed`, `table`, `stored`).
    over: whether the bounds hold for each seed, or for the mean over all seeds.
    """

    name: str
    read: Read
    at_least: float = -math.inf
    at_most: float = math.inf
    over: Literal["each", "mean"] = "each"

    @property
    def bounded(self) -> bool:
        """Whether there is anything to be reached."""
        return self.at_least > -math.inf or self.at_most < math.inf

    @property
    def target(self) -> str:
        """`return at least -250, each seed`"""
        bounds = []
        if self.at_least > -math.inf:
            bounds.append(f"at least {number(self.at_least)}")
        if self.at_most < math.inf:
            bounds.append(f"at most {number(self.at_most)}")
        return f"{self.name} {' and '.join(bounds)}" + (", mean" if self.over == "mean" else "")

    def holds(self, values: Sequence[float]) -> bool:
        """Whether the values of all seeds keep the bounds; a NaN never does."""
        judged = [sum(values) / len(values)] if self.over == "mean" and values else values
        return bool(judged) and all(self.at_least <= value <= self.at_most for value in judged)


@dataclass(frozen=True)
class Claim:
    """A sentence, and what shows whether it is true.

    name: of the word after `reproduce.py`. group: the heading of the page of results. commands:
    scripts with their words; {run} is the run folder, {out} the folder of the seed, {seed} the
    seed, {needs} the run folder of the claim `needs` with the same seed. minutes: of one seed, on
    one of two idle cores, or on both where it runs `alone`, because it measures time or takes both.
    needs_gpu: whether it is left out where there is no GPU. about: the page with the story.
    """

    name: str
    group: str
    sentence: str
    commands: tuple[str, ...]
    measures: tuple[Measure, ...]
    minutes: float
    seeds: tuple[int, ...] = (0,)
    needs: str = ""
    alone: bool = False
    needs_gpu: bool = False
    about: str = ""

    @property
    def targets(self) -> list[str]:
        """What must be reached, in words."""
        return [measure.target for measure in self.measures if measure.bounded]

    def verdict(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """`pass`, `FAIL`, or `shown` where no measure has bounds, of the rows of some seeds."""
        if any("error" in row for row in rows) or not rows:
            return "FAIL"
        bounded = [measure for measure in self.measures if measure.bounded]
        values = [[row["figures"].get(one.name, math.nan) for row in rows] for one in bounded]
        if not bounded:
            return "shown"
        kept = all(one.holds(found) for one, found in zip(bounded, values, strict=True))
        return "pass" if kept else "FAIL"


def number(value: float) -> str:
    """A figure for people: `-166.1`, `8,000`, `0.713`."""
    if math.isnan(value) or math.isinf(value):
        return str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}".removesuffix(".0") if abs(value) >= 100 else f"{value:.3g}"


def stored(path: str, key: str) -> Read:
    """A number of a JSON file in the folder of a seed; "update.ms" is inside of "update"."""
    return lambda folder: _value(json.loads((folder / path).read_text()), key)


def summary(key: str) -> Read:
    """A number of summary.json, which ends a training run: "eval_return_mean", "wall_clock_s"."""
    return stored(f"{RUN}/summary.json", key)


def evaluated(first: int, pick: Pick) -> Read:
    """What `pick` makes (min: the worst) of the mean returns of the evaluations of a training run
    from step `first` on, the last one too."""

    def read(folder: Path) -> float:
        lines = (folder / RUN / METRICS).read_text().splitlines()
        found = [line for line in map(json.loads, lines) if "eval/return" in line]
        return only([_value(one, "eval/return") for one in found if one["step"] >= first], pick)

    return read


def returns() -> Read:
    """The mean return of the episodes that scripts/evaluate.py played."""
    return table(f"{RUN}/evaluation/returns.csv", "return", mean)


def printed(key: str, command: int = 0, pick: Pick | None = None, **match: Any) -> Read:
    """A number of the JSON lines that a command printed, as scripts/bench.py does. match: which
    lines, figure="update" or task=("hang", "spin"); pick: makes one number of those of several
    lines (min, max, mean). Of a list, its length. Words of Python end in _: from_="explore"."""

    def read(folder: Path) -> float:
        text = (folder / f"{command}.out").read_text()
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        wanted = {k.rstrip("_"): v if isinstance(v, tuple) else (v,) for k, v in match.items()}
        found = [line for line in lines if all(_at(line, k) in v for k, v in wanted.items())]
        return only([_value(line, key) for line in found], pick)

    return read


def table(path: str, column: str, pick: Pick | None = None, **match: str) -> Read:
    """A number of a CSV file (or of all files of a pattern) in the folder of a seed."""

    def read(folder: Path) -> float:
        files = sorted(folder.glob(path))
        if not files:
            raise FileNotFoundError(f"there is no {path} in {folder}")
        rows: list[dict[str, str]] = []
        for file in files:
            with file.open(newline="") as text:
                rows += csv.DictReader(text)
        found = [row for row in rows if all(row.get(k) == v for k, v in match.items())]
        return only([float(row[column]) for row in found], pick)

    return read


def only(values: Sequence[float], pick: Pick | None) -> float:
    """The only value, or what `pick` makes of them. Raises ValueError where there are others."""
    if not values or (pick is None and len(values) > 1):
        raise ValueError(f"{len(values)} values were found, where one is meant")
    return float(values[0] if pick is None else pick(values))


def mean(values: Iterable[float]) -> float:
    """Their mean."""
    found = list(values)
    return sum(found) / len(found)


def farthest(values: Iterable[float]) -> float:
    """The largest absolute value."""
    return max(map(abs, values))


def difference(one: Read, other: Read) -> Read:
    """One number less another, of the same commands."""
    return lambda folder: one(folder) - other(folder)


def _at(line: Mapping[str, Any], key: str) -> Any:
    found: Any = line
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _value(line: Mapping[str, Any], key: str) -> float:
    found = _at(line, key)
    if isinstance(found, list):
        return float(len(found))
    if not isinstance(found, int | float):
        raise ValueError(f"'{key}' is {found!r}, no number")
    return float(found)
