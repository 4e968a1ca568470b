"""`what=precision`: the losses of mixed precision beside those of float32.

Two agents with the same weights learn from the same batches with the same draws; on a CPU both
compute in float32, and the losses are equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agents.dreamer import Dreamer
from scripts.studies import bench_subject
from scripts.studies.bench_timing import rounded
from worldmodel import seeding
from worldmodel.accel.devices import PRECISIONS
from worldmodel.config import ConfigError, check_ranges
from worldmodel.types import Batch

LAST = 5  # updates, of which the means are compared


@dataclass
class Settings(bench_subject.Subject):
    """updates: that each makes."""

    updates: int = 20

    def __post_init__(self) -> None:
        check_ranges(self, {"updates": (1, 1e6)})


def measure(settings: Settings) -> Iterator[Mapping[str, Any]]:
    """One figure: the total loss of each update, and how far the last ones lie apart."""
    curves: dict[str, list[dict[str, float]]] = {}
    batches: list[Batch] = []
    for precision in PRECISIONS:
        made = bench_subject.make(replace(settings, precision=precision))
        if not isinstance(made.agent, Dreamer):
            raise ConfigError(f"experiment={settings.experiment}: only Dreamer has a precision.")
        if not batches:
            batches = _batches(made, settings.updates)
        seeding.seed_everything(1)
        curves[precision] = [_losses(made, batch) for batch in batches]
    totals = {name: [one["loss/total"] for one in curve] for name, curve in curves.items()}
    ends = {name: _mean(values[-LAST:]) for name, values in totals.items()}
    yield {
        "figure": "precision",
        "updates": settings.updates,
        "on": str(made.device),
        **{name: [rounded(value, 6) for value in values] for name, values in totals.items()},
        "ratio": rounded(ends["bfloat16"] / ends["float32"]),
        "first_apart": {
            name: rounded(abs(low / full - 1) if full else abs(low - full))
            for (name, low), full in zip(
                curves["bfloat16"][0].items(), curves["float32"][0].values(), strict=True
            )
        },
    }


def _batches(made: bench_subject.Made, count: int) -> list[Batch]:
    """The batches that both learn from."""
    agent, replay = made.agent, bench_subject.filled_replay(made)
    stored = tuple(agent.columns)
    drawn = [
        replay.sample(agent.batch_size, agent.batch_length, columns=(), context=stored)
        for _ in range(count)
    ]
    return [batch.to(made.device) for batch in drawn]


def _losses(made: bench_subject.Made, batch: Batch) -> dict[str, float]:
    """The losses of one update."""
    metrics, _ = made.agent.train_on(batch)
    return {name: float(value) for name, value in metrics.items() if name.startswith("loss/")}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
