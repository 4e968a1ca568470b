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

import agents
from agents.run import report
from agents.run.trainer import Trainer
from scripts.studies import bench_subject
from scripts.studies.bench_timing import Clock, Phases, Window, rounded, summary, timed
from worldmodel.config import ConfigError, check_ranges

LOOP = "loop"  # what is left of the loop itself
WARM = 6  # updates, until a GPU replays what it recorded


@dataclass
class Settings(bench_subject.Subject):
    """windows: whose medians count, each of so many seconds of the loop, once it learns, and
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
        config = bench_subject.endless(bench_subject.compose(settings), folder)
        if not agents.agent_class(config.agent.name).learns:
            raise ConfigError(f"The agent '{config.agent.name}' learns nothing from a replay.")
        rows = config.agent.batch_size * config.agent.batch_length
        prefill = rows if settings.prefill is None else settings.prefill
        with bench_subject.trainings(replace(config, prefill=prefill)) as [(trainer, step)]:
            yield from _measured(settings, trainer, step)


def _measured(
    settings: Settings, trainer: Trainer, step: Callable[[], None]
) -> Iterator[Mapping[str, Any]]:
    loop: list[Window] = []  # of one update with all that belongs to it
    alone: list[Window] = []  # of one without
    clock, counters, config = Clock(trainer.device), trainer.state.counters, trainer.config
    phases = Phases(time.perf_counter)  # which waits for no GPU: that would end all overlap
    while counters.updates < WARM:
        step()
    steps, updates = counters.agent_steps, counters.updates
    learn = partial(trainer.state.agent.update, trainer.state.replay)
    for _ in range(settings.windows):
        done, window = _loop(settings.seconds, trainer, clock, phases, step)
        loop.append(Window(window.wall / done, window.cpu / done))
        alone.append(timed(clock, learn, done))
    phases.check_entered()
    all_in = sum(spent.wall for spent in phases.spent.values())
    steps, updates = counters.agent_steps - steps, counters.updates - updates
    save = timed(clock, trainer.save).wall
    whole, only = summary(loop), summary(alone)
    per_second = steps / updates / whole["seconds"]
    yield {
        "figure": "train",
        "agent_steps_per_s": rounded(per_second),
        "frames_per_s": rounded(per_second * config.env.action_repeat),
        "updates_per_s": rounded(1 / whole["seconds"]),
        "updates_alone_per_s": rounded(1 / only["seconds"]),
        "of_updates_alone": rounded(only["seconds"] / whole["seconds"]),
        "of_updates_alone_cpu": rounded(only["cpu_s"] / whole["cpu_s"]),
        "checkpoint_s": rounded(save),
        # One in so many minutes; none falls into the windows.
        "checkpoint_share": rounded(save / (60 * config.checkpoint_minutes)),
        "measured_s": rounded(all_in),
        "steps": steps,
        "updates": updates,
        "env": config.env.id,
        "num_envs": config.env.num_envs,
        "vector": config.env.vector,
        "batch": [config.agent.batch_size, config.agent.batch_length],
        "train_ratio": config.train_ratio,
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


def _loop(
    seconds: float,
    trainer: Trainer,
    clock: Callable[[], float],
    phases: Phases,
    step: Callable[[], None],
) -> tuple[int, Window]:
    """The loop for a while, until it has done an update: how many, and what they took."""
    before, began = trainer.state.counters.updates, time.perf_counter()

    def work() -> None:
        with phases:
            _wrap(phases, trainer)
            while time.perf_counter() - began < seconds or trainer.state.counters.updates == before:
                with phases.inside(LOOP):
                    step()

    window = timed(clock, work)
    return trainer.state.counters.updates - before, window


def _wrap(phases: Phases, trainer: Trainer) -> None:
    """Put a clock on what the loop calls; the replay is also called by updates."""
    for name in ("step", "step_async", "step_wait"):
        if hasattr(trainer.envs, name):
            phases.wrap(trainer.envs, name, "environment")
    phases.wrap(trainer.state.agent, "act", "acting")
    phases.wrap(trainer.state.agent, "update", "update")
    for name in ("add", "sample", "rewrite"):
        phases.wrap(trainer.state.replay, name, "replay")
    phases.wrap(trainer.state.means, "add", "logging")
    phases.wrap(report, "metrics", "logging")
    phases.wrap(trainer.log, "scalars", "logging")
