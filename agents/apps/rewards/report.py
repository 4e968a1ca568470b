"""How far a fitted head can be believed: words, a picture, and the numbers behind it; and an
episode with its steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.apps.episodes import Episodes
from agents.apps.rewards.comparisons import too_few
from agents.apps.rewards.labels import Examples, Labels
from worldmodel import plots
from worldmodel.config import ConfigError
from worldmodel.dream import films
from worldmodel.log import enlarged, write_picture

BINS = 10  # of equally many predictions each
LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)  # of the way from the least label to the greatest
BARS = 30
# Limits of the held-out R2. Below POOR most of what sets the labels apart is still unexplained;
# every head that served in docs/REWARDS.md, from 60 labels on, has GOOD or more, where the error is
# at most a third of a constant's.
POOR, GOOD = 0.5, 0.9
COLUMNS, SIDE = 16, 72  # frames in a row of a drawn episode; pixels of their shorter side, at least
INK, PAPER = (40, 40, 40), 222


def calibration(predicted: np.ndarray, truth: np.ndarray) -> list[dict[str, float]]:
    """Predictions in bins of (nearly) equal count: bounds, mean prediction, mean truth, rows."""
    order = np.argsort(predicted, kind="stable")
    return [
        {
            "low": float(predicted[part[0]]),
            "high": float(predicted[part[-1]]),
            "predicted": float(predicted[part].mean()),
            "true": float(truth[part].mean()),
            "rows": len(part),
        }
        for part in np.array_split(order, min(BINS, len(order)))
    ]


def occurrence(labels: Labels) -> dict[str, Any]:
    """Where in the experience a reward occurs: its range, the share of rows and of episodes that
    reach some levels between, and the episode with the highest mean label."""
    values, held = labels.all, labels.episodes
    low, high = float(values.min()), float(values.max())
    per = [labels.of(n) for n in held]
    means = np.array([part.mean() for part in per])
    levels = []
    for share in LEVELS:
        level = low + share * (high - low)
        levels.append({
            "level": level,
            "rows": float((values >= level).mean()),
            "episodes": float(np.mean([(part >= level).any() for part in per])),
        })  # fmt: skip
    best = int(means.argmax())
    counts, edges = np.histogram(values, BARS)
    return {
        "labels": len(values),
        "episodes": len(held),
        "min": low,
        "max": high,
        "mean": float(values.mean()),
        "std": float(values.std()),
        "levels": levels,
        "best_episode": held[best],
        "best_mean": float(means[best]),
        "best_sum": float(per[best].sum()),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def write_files(
    folder: Path,
    labels: Labels,
    about: dict[str, Any],
    examples: Examples | None,
    predicted: np.ndarray,
) -> None:
    """report.png and the numbers behind its panels: calibration.csv, histogram.csv,
    episodes.csv."""
    bins = calibration(predicted, examples.value[examples.judging]) if examples else []
    if bins:
        names = ("low", "high", "predicted", "true", "rows")
        plots.write_table(
            folder / "calibration.csv", names, [[one[n] for n in names] for one in bins]
        )
    edges, counts = about["histogram"]["edges"], about["histogram"]["counts"]
    plots.write_table(
        folder / "histogram.csv",
        ("low", "high", "rows"),
        list(zip(edges[:-1], edges[1:], counts, strict=True)),
    )
    per = [(n, labels.of(n)) for n in labels.episodes]
    rows = [(n, len(v), v.min(), v.mean(), v.max(), v.sum()) for n, v in per]
    plots.write_table(
        folder / "episodes.csv", ("episode", "labels", "min", "mean", "max", "sum"), rows
    )
    _draw(folder / "report.png", bins, examples, predicted, np.array(edges), counts, per)


def _draw(
    path: Path,
    bins: list[dict[str, float]],
    examples: Examples | None,
    predicted: np.ndarray,
    edges: np.ndarray,
    counts: list[int],
    per: list[tuple[int, np.ndarray]],
) -> None:
    made, panels = plots.figure(3 if bins else 2, 1, width=4.6, height=3.8)
    panels = panels[0]
    if bins and examples is not None:
        _draw_calibration(panels[0], bins, examples, predicted)
    axes = panels[-2]
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=plots.COLOURS[0])
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.set(title="Where the reward was seen", xlabel="label", ylabel="rows of the replay")
    axes = panels[-1]
    number, mean = [n for n, _ in per], [v.mean() for _, v in per]
    low, high = [v.min() for _, v in per], [v.max() for _, v in per]
    axes.vlines(number, low, high, color=plots.COLOURS[0], alpha=0.3, linewidth=2)
    axes.plot(number, mean, "o", color=plots.COLOURS[0], markersize=3, label="mean")
    best = int(np.argmax(mean))
    axes.plot(number[best], mean[best], "o", color=plots.COLOURS[1], label=f"best: {number[best]}")
    axes.set(title="Range in each episode", xlabel="episode", ylabel="label")
    axes.margins(y=0.16)
    axes.legend(loc="upper right", ncols=2)
    plots.save(made, path)


def _draw_calibration(
    axes: Any, bins: list[dict[str, float]], examples: Examples, predicted: np.ndarray
) -> None:
    truth = examples.value[examples.judging]
    shown = np.random.default_rng(0).permutation(len(truth))[:2000]
    axes.plot(
        predicted[shown], truth[shown], ".", color=plots.COLOURS[0], alpha=0.15, markersize=4,
        rasterized=True,
    )  # fmt: skip
    both = [min(truth.min(), predicted.min()), max(truth.max(), predicted.max())]
    axes.plot(both, both, color="0.5", linewidth=1, linestyle="--", label="right")
    x, y = [one["predicted"] for one in bins], [one["true"] for one in bins]
    axes.plot(x, y, "o-", color=plots.COLOURS[1], markersize=4, linewidth=1.4, label="mean of bin")
    held = "held-out rows" if examples.held_out.any() else "rows that it learned"
    axes.set(title=f"Calibration, {held}", xlabel="predicted", ylabel="label")
    axes.legend(loc="best")


def text(fitted: dict[str, Any]) -> str:
    """What was measured, in a few lines."""
    lines = []
    about = fitted["seen"]
    lines.append(
        f"seen      {about['labels']:,} labels in {about['episodes']} episodes, from "
        f"{about['min']:.4g} to {about['max']:.4g}, mean {about['mean']:.4g}"
    )
    for one in about["levels"]:
        lines.append(
            f"          {one['level']:>10.4g} or more: {_percent(one['rows'])} of the rows, "
            f"{_percent(one['episodes'])} of the episodes"
        )
    lines.append(
        f"          best episode {about['best_episode']}: mean {about['best_mean']:.4g}, "
        f"sum {about['best_sum']:.5g}"
    )
    for name, words in (("held_out", "held out"), ("taught", "learned")):
        if name in fitted:
            lines.append(f"{words:<10}{_errors(fitted[name])}")
    if "calibration" in fitted:
        lines += [f"          {line}" for line in _trust(fitted)]
    elif grade(fitted.get("held_out", {})):
        lines.append(f"          {_advice(fitted)}")
    for ahead, found in fitted.get("ahead", {}).items():
        words = f"dreamt {ahead} step{'s' if ahead != '1' else ''} ahead"
        lines.append(f"          {words}: {_errors(found)}")
    return "\n".join(lines)


def grade(held_out: dict[str, float]) -> str:
    """ "poor" or "fair", by the R2 of held-out rows; "" where it is good, or there is none."""
    r2 = held_out.get("r2", float("nan"))
    return "poor" if r2 < POOR else "fair" if r2 < GOOD else ""


def _advice(fitted: dict[str, Any]) -> str:
    """What a fit that is not good means, and what to do: labels are too few where the rows that the
    head learned have less than half of the error that is left on the others."""
    held, taught = fitted["held_out"]["r2"], fitted["taught"]["r2"]
    words = (
        f"{grade(fitted['held_out']).upper()} FIT: on episodes that it did not learn from, the "
        f"head explains {max(0.0, held):.0%} of what sets the labels apart. "
    )
    if 1 - taught < (1 - held) / 2:
        return words + "It does much better where it learned: label more episodes."
    return words + (
        "It does little better where it learned: the labels may not be visible to the model. "
        "Check them (show=0 draws an episode); if the picture shows them, try finetune=true."
    )


def _trust(fitted: dict[str, Any]) -> list[str]:
    """How a head that pairs taught was calibrated, and whether the pairs were enough."""
    found, held = fitted["calibration"], fitted.get("held_out")
    if not found["pairs"]:
        lines = ["not calibrated: the pairs come from too few episodes to leave some out"]
    else:
        lines = [f"calibrated by {found['pairs']:,} pairs: log odds times {found['scale']:.2g}"]
        if held:
            lines[0] += f" (held-out loss without: {found['before']['held_out']['loss']:.3f})"
    if held is None:
        lines.append("no pair is held out, so nothing says whether there are enough of them")
    elif too_few(held):
        lines.append(
            "TOO FEW PAIRS: the held-out loss is not below that of guessing by more than its "
            "standard error, so this reward may mean nothing. Compare more segments."
        )
    return lines


def _errors(found: dict[str, float]) -> str:
    if "pairs" in found:
        return (
            f"{found['right']:.0%} of {found['pairs']:,} pairs in the right order, loss "
            f"{found['loss']:.3f} +- {found['loss_error']:.3f} nats "
            f"(guessing: {found['constant_loss']:.3f})"
        )
    return (
        f"MAE {found['mae']:.4g}, RMSE {found['rmse']:.4g} (a constant: "
        f"{found['constant_mae']:.4g}, {found['constant_rmse']:.4g}), R2 {found['r2']:.3f}, "
        f"{found['rows']:,} rows"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%" if share == 0 or share >= 0.001 else "under 0.1%"


def write_episode(path: Path, episodes: Episodes, number: int) -> Path:
    """A PNG of every frame of an episode below its step, so that people can label it; ConfigError
    where there is none."""
    episodes.check(number, 0, f"show={number}: ")
    if not episodes.spec.keys("image"):
        raise ConfigError("This run sees no image, so an episode cannot be drawn.")
    rows = {key: torch.from_numpy(value) for key, value in episodes.read(number).items()}
    frames = [enlarged(frame, SIDE) for frame in films.pictures(episodes.spec, rows)]
    cells = [
        np.concatenate([films.lines([str(step)], frame.shape[1], INK, PAPER), frame], 0)
        for step, frame in enumerate(frames)
    ]
    write_picture(path, films.tiled(cells, COLUMNS, 2, PAPER))
    return path
