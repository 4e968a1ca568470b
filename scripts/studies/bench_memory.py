"""`what=memory`: whether a long run's memory stays flat.

A small Dreamer is trained in a process of its own with all that a long run does: acting, updates,
a replay that wraps around, logs, evaluations, films and checkpoints.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scripts.studies import bench_faults
from scripts.studies.bench_subject import trainings
from scripts.studies.bench_timing import in_own_process, resident


@dataclass
class Settings:
    """How long, and how often to look."""

    steps: int = 100_000  # agent steps
    every: int = 2000  # agent steps between two looks
    storage: str = "memory"  # of the replay: memory | disk


def measure(settings: Settings) -> Iterator[Mapping[str, Any]]:
    """One figure: resident memory over the run, and its growth per step in the second half."""
    marks = np.array(in_own_process(_marks, settings), np.float64)
    steps, megabytes = marks[:, 0], marks[:, 1] / 1e6
    half = len(marks) // 2
    yield {
        "steps": int(steps[-1]),
        "start_mb": round(megabytes[0], 1),
        "half_mb": round(megabytes[half], 1),
        "end_mb": round(megabytes[-1], 1),
        "largest_mb": round(megabytes.max(), 1),
        "growth_bytes_per_step": round(np.polyfit(steps[half:], marks[half:, 1], 1)[0], 2),
    }


def _marks(settings: Settings) -> list[tuple[int, int]]:
    """[(steps, bytes), ...] of a run."""
    with tempfile.TemporaryDirectory() as folder:
        small = bench_faults.Settings(steps=settings.steps, storage=settings.storage)
        config = replace(
            bench_faults.small_run(Path(folder), small), train_ratio=0.5, log_every=500,
            eval_every=10_000, video_every=20_000, checkpoint_minutes=0.25,
        )  # fmt: skip
        marks = []
        with trainings(config) as [(trainer, step)]:
            while not trainer.finished:
                step()
                if trainer.state.counters.agent_steps % settings.every == 0:
                    marks.append((trainer.state.counters.agent_steps, resident()))
        return marks
