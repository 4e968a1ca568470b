"""Tables and plots of `what=ood`: ROC, scores over time with the alarm, and where it is strange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from worldmodel import plots
from worldmodel.ood.heat import draw_heat_maps
from worldmodel.plots import Curve

if TYPE_CHECKING:
    from scripts.studies.bench_ood import Study

RATES = np.linspace(0, 1, 201)
SHOWN = ("combined", "reconstruction")
LEVEL = "middle"
HEAT = ("object", "patch", "background", "camera", "simpler")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """All rows as CSV."""
    names = list(rows[0])
    return plots.write_table(path, names, [[row[name] for name in names] for row in rows])


def draw_all(study: Study, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Every picture of the study; returns the files."""
    level = LEVEL if LEVEL in study.settings.levels else study.settings.levels[0]
    files = [draw_roc(study, rows, level), draw_time(study, rows, level)]
    if study.detector.scorer.looker.vae is not None:
        files.append(draw_places(study, level))
    return files


def draw_roc(study: Study, rows: Sequence[Mapping[str, Any]], level: str) -> Path:
    """The share of shifted episodes found against that of ordinary ones, mean over the shifts of
    each kind."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    made, axes = plots.figure(len(kinds), width=4.2)
    onset, panels = study.settings.onset, {}
    for axis, kind in zip(axes[0], kinds, strict=True):
        names = dict.fromkeys(row["shift"] for row in rows if row["kind"] == kind)
        curves = []
        for column in SHOWN:
            index = study.columns.index(column)
            usual = _worst(study.ordinary, onset, index)
            shifted = (_worst(study.found[name, level], onset, index) for name in names)
            found = [roc(usual, worst) for worst in shifted if len(worst)]
            mean = np.mean(found, 0) if found else np.full(len(RATES), np.nan)
            curves.append(Curve(column, RATES, mean))
        panels[kind] = curves
        title = f"{kind}: {len(names)} shifts, {level}"
        plots.draw(axis, curves, title, "ordinary episodes alarmed", "shifted episodes found")
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.04))
    plots.write_curves(study.folder / "roc.csv", panels)
    return plots.save(made, study.folder / "roc.png")


def _worst(scores: Sequence[np.ndarray], onset: int, index: int) -> np.ndarray:
    """The largest score of a column from the onset on, of each episode that lasts so long."""
    return np.array([one[onset:, index].max() for one in scores if len(one) > onset])


def roc(negative: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """The share of positives above the quantiles of the negatives that leave RATES above."""
    limits = np.quantile(negative, 1 - RATES, method="higher")
    return np.array([(positive > limit).mean() for limit in limits])


def draw_time(study: Study, rows: Sequence[Mapping[str, Any]], level: str) -> Path:
    """One shifted episode of each kind: the score, its threshold, the onset and the alarm."""
    kinds = dict.fromkeys(row["kind"] for row in rows)
    made, axes = plots.figure(len(kinds), width=4.2)
    for axis, kind in zip(axes[0], kinds, strict=True):
        name = next(row["shift"] for row in rows if row["kind"] == kind)
        curves = []
        for label, scores in (("ordinary", study.ordinary), (name, study.found[name, level])):
            value = scores[0][:, 0]
            curves.append(Curve(label, np.arange(len(value)), value))
        plots.draw(axis, curves, f"{name}, {level}", "tick", "score, in thresholds")
        axis.axhline(1.0, color="#000000", linewidth=1, linestyle="--")
        axis.axvline(study.settings.onset, color="#777777", linewidth=1, linestyle=":")
        above = np.flatnonzero(study.found[name, level][0][study.settings.onset :, 0] > 1)
        if len(above):
            tick = study.settings.onset + int(above[0])
            axis.plot([tick], [curves[1].y[tick]], "v", color="#000000", markersize=7)
        axis.set_yscale("symlog", linthresh=1.0)  # linear up to the threshold
    plots.caption(made, "dashed: threshold; dotted: onset of the shift; triangle: the alarm")
    return plots.save(made, study.folder / "time.png")


def draw_places(study: Study, level: str) -> Path:
    """Where the autoencoder finds ordinary and shifted pictures strange."""
    at = study.settings.onset + 5
    frames = [("ordinary", _row(study.normal()[0].obs, at))]
    for name in HEAT:
        if name in study.shifts:
            frames.append((name, _row(study.shifted(name, level)[0].obs, at)))
    return draw_heat_maps(study.folder / "heat.png", study.detector, frames)


def _row(obs: Mapping[str, np.ndarray], at: int) -> dict[str, np.ndarray]:
    return {key: value[min(at, len(value) - 1)] for key, value in obs.items()}
