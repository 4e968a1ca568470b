"""`what=train`: how fast the whole training loop runs, and where its time goes.

A run of an experiment is made as `scripts/train.py` makes it, in a folder for the time of the
measurement, with a clock on the methods that the loop calls. In turn with it the same agent learns
from the same replay with nothing round it: the rate that the loop had if all else were free.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from agents.run import report
from agents.run.config import TrainConfig
from agents.run.progress import Progress, Stopper
from agents.run.train import build
from agents.run.trainer import Trainer
from scripts.studies import bench_subject
from scripts.studies.bench_timing import Clock, Phases, Window, rounded, timed, told
from worldmodel.config import ConfigError, RunError, check_ranges

LOOP = "loop"  # what is left of the loop itself
WARM = 6  # updates


@dataclass
class Settings(bench_subject.Subject):
    """windows: whose medians are told, each of so many seconds of the loop, once it learns, and
    then as many updates alone as the loop did. prefill: agent steps before learning; null: as
    many as the first batch needs."""

    experiment: str = "pendulum"
    windows: int = 5
    seconds: float = 6.0
    prefill: int | None = None

    def __post_init__(self) -> None:
        check_ranges(self, {"windows": (1, 1e6), "seconds": (1e-3, 1e6), "prefill": (0, 1e9)})


def measure(settings: Settings) -> Iterator[Mapping[str, Any]]:
    """One figure for the loop, and one for each part of it."""
    with tempfile.TemporaryDirectory() as folder:
        config = replace(
            bench_subject.compose(settings), run=folder, steps=1 << 40, max_minutes=None,
            eval_every=0, video_every=0,
        )  # fmt: skip
        if not hasattr(config.agent, "batch_size"):
            raise ConfigError(f"The agent '{config.agent.name}' learns nothing from a replay.")
        rows = config.agent.batch_size * config.agent.batch_length
        prefill = rows if settings.prefill is None else settings.prefill
        trainer = build(replace(config, prefill=prefill), lambda text: None)
        try:
            yield from _measured(settings, trainer)
        finally:
            trainer.close()


def _measured(settings: Settings, trainer: Trainer) -> Iterator[Mapping[str, Any]]:
    loop, alone = [], []  # seconds of one update, with all that belongs to it and without
    clock, counters = Clock(trainer.device), trainer.counters
    phases = Phases(time.perf_counter)  # which waits for no GPU: that would end all overlap
    bar = Progress(trainer.config.steps, (0, 0), None, lambda text: None)
    with Stopper() as stop:
        while counters.updates < WARM:  # until it learns, and a GPU replays what it recorded
            _step(trainer, bar, stop)
        start, updates = counters.agent_steps, 0
        for _ in range(settings.windows):
            done, window = _loop(
                settings, trainer, clock, phases, lambda: _step(trainer, bar, stop)
            )
            loop.append(_each(window, done))
            alone.append(_each(timed(clock, partial(_updates, trainer, done)), done))
            updates += done
    phases.check_entered()
    steps, all_in = counters.agent_steps - start, sum(s.wall for s in phases.spent.values())
    save = timed(clock, trainer.save).wall
    whole, only = told(loop), told(alone)
    yield {
        "figure": "train",
        "agent_steps_per_s": rounded(steps / updates / whole["seconds"]),
        "frames_per_s": rounded(
            steps * trainer.config.env.action_repeat / updates / whole["seconds"]
        ),
        "updates_per_s": rounded(1 / whole["seconds"]),
        "updates_alone_per_s": rounded(1 / only["seconds"]),
        "of_updates_alone": rounded(only["seconds"] / whole["seconds"]),
        "of_updates_alone_cpu": rounded(only["cpu_s"] / whole["cpu_s"]),
        "checkpoint_s": rounded(save),
        # One in so many minutes; none falls into the windows.
        "checkpoint_share": rounded(save / (60 * trainer.config.checkpoint_minutes)),
        "measured_s": rounded(all_in),
        "steps": steps,
        "updates": updates,
        **_about(trainer.config),
    }
    for name, spent in phases.spent.items():
        yield {
            "figure": "part",
            "part": name,
            "share": rounded(spent.wall / all_in),
            "ms_per_agent_step": rounded(1e3 * spent.wall / steps),
            "cpu_ms_per_agent_step": rounded(1e3 * spent.cpu / steps),
            "calls": spent.calls,
        }


def _step(trainer: Trainer, bar: Progress, stop: Stopper) -> None:
    trainer.one_step(bar, stop)
    if stop.asked:
        raise RunError("Stopped before the measurement was done.")


def _loop(
    settings: Settings,
    trainer: Trainer,
    clock: Clock,
    phases: Phases,
    step: Callable[[], None],
) -> tuple[int, Window]:
    """The loop for a while, until it has done an update: how many, and what they took."""
    before, began = trainer.counters.updates, time.perf_counter()

    def work() -> None:
        with phases:
            _wrap(phases, trainer)
            while (
                time.perf_counter() - began < settings.seconds or trainer.counters.updates == before
            ):
                with phases.inside(LOOP):
                    step()

    window = timed(clock, work)
    return trainer.counters.updates - before, window


def _updates(trainer: Trainer, count: int) -> None:
    for _ in range(count):
        trainer.agent.update(trainer.replay)


def _each(window: Window, count: int) -> Window:
    return Window(window.wall / count, window.cpu / count)


def _wrap(phases: Phases, trainer: Trainer) -> None:
    """Put a clock on what the loop calls; the replay is also called by updates."""
    for name in ("step", "step_async", "step_wait"):
        if hasattr(trainer.envs, name):
            phases.wrap(trainer.envs, name, "environment")
    phases.wrap(trainer.agent, "act", "acting")
    phases.wrap(trainer.agent, "update", "update")
    for name in ("add", "sample", "write_latents"):
        phases.wrap(trainer.replay, name, "replay")
    phases.wrap(trainer.means, "add", "logging")
    phases.wrap(report, "metrics", "logging")
    phases.wrap(trainer.log, "scalars", "logging")


def _about(config: TrainConfig) -> dict[str, Any]:
    agent = config.agent
    return {
        "env": config.env.id,
        "num_envs": config.env.num_envs,
        "vector": config.env.vector,
        "batch": [agent.batch_size, agent.batch_length],
        "train_ratio": config.train_ratio,
    }
