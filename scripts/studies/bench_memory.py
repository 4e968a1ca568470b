"""`what=memory`: whether a long run's memory stays flat.

A small Dreamer is trained in a process of its own with all that a long run does: acting, updates,
a replay that wraps around, logs, evaluations, films and checkpoints.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.run.progress import Progress, Stopper
from agents.run.trainer import Trainer
from scripts.studies import bench_faults


@dataclass
class Settings:
    """How long, and how often to look."""

    steps: int = 100_000  # agent steps
    every: int = 2000  # agent steps between two looks
    storage: str = "memory"  # of the replay: memory | disk


def measure(settings: Settings) -> Iterator[Mapping[str, Any]]:
    """One figure: resident memory over the run, and its growth per step in the second half."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_life, args=(settings, theirs))
    process.start()
    theirs.close()
    marks = np.asarray(ours.recv(), np.float64)  # [N, 2] steps and bytes
    process.join()
    half = marks[len(marks) // 2 :]
    slope = np.polyfit(half[:, 0], half[:, 1], 1)[0]
    yield {
        "steps": int(marks[-1, 0]),
        "start_mb": round(float(marks[0, 1]) / 1e6, 1),
        "half_mb": round(float(half[0, 1]) / 1e6, 1),
        "end_mb": round(float(marks[-1, 1]) / 1e6, 1),
        "largest_mb": round(float(marks[:, 1].max()) / 1e6, 1),
        "growth_bytes_per_step": round(float(slope), 2),
    }


def _life(settings: Settings, pipe: Any) -> None:
    """Train, and send [(steps, bytes), ...] when done."""
    with tempfile.TemporaryDirectory() as folder:
        small = bench_faults.Settings(steps=settings.steps, storage=settings.storage)
        config = replace(
            bench_faults.small_run(Path(folder), small),
            train_ratio=0.5,
            log_every=500,
            eval_every=10_000,
            video_every=20_000,
            checkpoint_minutes=0.25,
        )
        trainer = Trainer(config, lambda text: None)
        bar = Progress(config.steps, (0, 0), None, lambda text: None)
        marks = []
        with Stopper() as stop:
            while not trainer.finished and not stop.asked:
                trainer.one_step(bar, stop)
                if trainer.counters.agent_steps % settings.every == 0:
                    marks.append((trainer.counters.agent_steps, resident()))
        trainer.close()
    pipe.send(marks)


def resident() -> int:
    """Bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
