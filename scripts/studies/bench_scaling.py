"""`what=scaling`: time and memory of an update against batch, length, model size and image side.

From one base point each axis is walked alone, every point in a process of its own. Costs that grow
as the arithmetic does are a line of slope 1 over the counted FLOPs; fitted slopes are figures too.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scripts.studies import bench_update
from scripts.studies.bench_timing import in_own_process, rounded
from worldmodel.config import ConfigError, check_ranges, unknown
from worldmodel.plots import Curve, draw, figure, save, write_table

AXES = ("batch", "length", "size", "image")
COLUMNS = (
    "axis", "x", "size", "image", "batch", "length", "parameters", "seconds", "quickest_s", "cpu_s",
    "gflop", "of_peak", "memory_mb",
)  # fmt: skip
CLOCKS = ("seconds", "quickest_s", "cpu_s")


Row = Mapping[str, Any]


@dataclass
class Settings:
    """base: where the axes cross. batches, lengths, sizes, images: the points of each axis; an
    empty list leaves it out. horizon, imagination_starts: as everywhere (0 starts: all). windows:
    of one update each. clock: what counts as time: seconds (the median), quickest_s, or on a busy
    machine, where there is one thread and no GPU, cpu_s. folder: for the table and the plots;
    empty: none."""

    base_batch: int = 4
    base_length: int = 16
    base_size: str = "1m"
    base_image: int = 64
    batches: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16])
    lengths: list[int] = field(default_factory=lambda: [8, 16, 32, 64])
    sizes: list[str] = field(default_factory=lambda: ["1m", "12m", "25m", "50m", "100m", "200m"])
    images: list[int] = field(default_factory=lambda: [32, 64, 96, 128])
    horizon: int = 15
    imagination_starts: int = 0
    precision: str | None = None
    windows: int = 3
    clock: str = "quickest_s"
    device: str = "auto"
    threads: int = 1
    folder: str = ""

    def __post_init__(self) -> None:
        check_ranges(self, {
            "batches": (1, 65536), "lengths": (2, 65536), "images": (32, 1024), "windows": (1, 1e6),
        })  # fmt: skip
        if self.clock not in CLOCKS:
            raise ConfigError(unknown("clock", self.clock, CLOCKS))
        if not (self.batches or self.lengths or self.sizes or self.images):
            raise ConfigError("All axes are empty: give points for one, as batches=[4,8,16].")


def measure(settings: Settings) -> Iterator[Mapping[str, Any]]:
    """One figure for each point, then one for each axis with its fitted exponents."""
    done: dict[tuple[Any, ...], dict[str, Any]] = {}
    rows = []
    for axis, point in _points(settings):
        key = (point.batch, point.length, point.size, point.image)
        if key not in done:
            done[key] = in_own_process(_point, point)
        row = {"axis": axis, "x": getattr(point, axis), **done[key]}
        rows.append(row)
        yield {"figure": "point", **row}
    costs = {settings.clock: "time", "gflop": "arithmetic", "memory_mb": "memory"}
    for axis in AXES:
        line = [row for row in rows if row["axis"] == axis]
        if len(line) > 1:
            yield {"figure": "axis", "axis": axis, **fits(axis, line, costs)}
    if len(done) > 1:
        work, time = ([row[name] for row in done.values()] for name in ("gflop", settings.clock))
        yield {"figure": "all", "time_over_arithmetic": exponent(work, time), "points": len(done)}
    if settings.folder:
        folder = Path(settings.folder)
        write_table(folder / "scaling.csv", COLUMNS, [[row[c] for c in COLUMNS] for row in rows])
        drawn = plot(rows, costs, folder / "scaling.png")
        yield {"figure": "plot", "file": os.fspath(drawn)}


def fits(axis: str, line: Sequence[Row], costs: Mapping[str, str]) -> dict[str, Any]:
    """How each cost grows along an axis: k in cost ~ x^k (for sizes, x is the parameters), over
    the whole axis and over its last step; and the time over the arithmetic, which should be 1.

    costs: what columns are called; the first is the time, the second the arithmetic.
    """
    columns = {name: [row[key] for row in line] for key, name in costs.items()}
    time, work, *_ = columns.values()
    x = [_place(axis, row) for row in line]
    found: dict[str, Any] = {
        f"{name}_exponent": exponent(x, column) for name, column in columns.items()
    }
    found["time_exponent_at_the_end"] = exponent(x[-2:], time[-2:])
    found["time_over_arithmetic"] = exponent(work, time)
    found["time_over_arithmetic_at_the_end"] = exponent(work[-2:], time[-2:])
    return found


def exponent(x: ArrayLike, y: ArrayLike) -> float:
    """k of the least-squares fit of y ~ x^k, both more than 0; NaN where x does not vary."""
    logs = np.log(np.asarray(x, np.float64)), np.log(np.asarray(y, np.float64))
    if np.ptp(logs[0]) == 0:
        return float("nan")
    return rounded(float(np.polyfit(*logs, 1)[0]), 3)


def plot(rows: Sequence[Row], costs: Mapping[str, str], path: Path) -> Path:
    """Costs along each axis, relative to its first point, with the fitted exponents."""
    axes = [axis for axis in AXES if sum(row["axis"] == axis for row in rows) > 1]
    made, panels = figure(columns=max(1, len(axes)), width=3.4, height=3.4)
    for panel, axis in zip(panels[0], axes, strict=False):
        line = [row for row in rows if row["axis"] == axis]
        x, curves, top = np.array([_place(axis, row) for row in line]), [], 1.0
        for (column, name), style in zip(costs.items(), ("o-", "--", "s:"), strict=True):
            y = np.array([row[column] / line[0][column] for row in line])
            curves.append(Curve(f"{name}, exponent {exponent(x, y):.2f}", x, y, style=style))
            top = max(top, float(y.max()))
        label = {"size": "model size", "image": "image side, pixels"}.get(axis, axis)
        draw(panel, curves, "", label, "")
        panel.set_xscale("log")
        panel.set_yscale("log")
        # Sizes do not lie evenly, and the large ones near one another.
        angle = 45 if axis == "size" else 0
        panel.set_xticks(x, [str(row["x"]) for row in line], rotation=angle)
        ticks = [2**n for n in range(1 + math.ceil(math.log2(top)))]
        panel.set_yticks(ticks, [str(tick) for tick in ticks])
        panel.set_ylim(0.9, 5 * top)  # room for the legend
        panel.minorticks_off()
    panels[0][0].set_ylabel("cost of an update, first point: 1")
    return save(made, path)


def _place(axis: str, row: Row) -> float:
    """Where a point lies on its axis."""
    return float(row["parameters"] if axis == "size" else row["x"])


def _points(settings: Settings) -> Iterator[tuple[str, bench_update.Settings]]:
    """The axes' names and points."""
    s = settings
    base = bench_update.Settings(
        size=s.base_size, batch=s.base_batch, length=s.base_length, image=s.base_image,
        horizon=s.horizon, imagination_starts=s.imagination_starts, precision=s.precision,
        device=s.device, threads=s.threads, windows=s.windows,
    )  # fmt: skip
    points: tuple[Sequence[Any], ...] = (s.batches, s.lengths, s.sizes, s.images)
    for axis, values in zip(AXES, points, strict=True):
        for value in values:
            yield axis, replace(base, **{axis: value})


def _point(point: bench_update.Settings) -> dict[str, Any]:
    """One subject, measured."""
    # What the first update of a process loads is no cost of this point.
    tiny = replace(point, batch=1, length=2, image=32, size="1m", windows=1, warmup=1)
    list(bench_update.measure(tiny))
    figure = next(iter(bench_update.measure(point)))
    where = {name: getattr(point, name) for name in ("size", "image", "batch", "length")}
    return where | {name: figure[name] for name in COLUMNS if name in figure.keys() - where.keys()}
