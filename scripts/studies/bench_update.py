"""`what=update`: how long one update takes, of which phases, and how near that is to the machine.

The agent's own `update` runs, with a clock on the methods that it calls. FLOPs are those of matrix
products and convolutions, as torch counts them; the peak is that of a large matrix product on the
same device with the same threads, measured in the same run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from agents.base import parameters_count
from agents.dreamer import Dreamer
from scripts.studies import bench_subject
from scripts.studies.bench_timing import (
    REST,
    Clock,
    PeakMemory,
    Phases,
    Spent,
    matmul_peak,
    rounded,
    summary,
    timed,
)
from worldmodel.config import ConfigError, check_ranges
from worldmodel.types import Batch

PHASES = (
    "replay sample", "to device", "encoder", "observe scan", "decoder and heads", "imagination",
    "actor-critic", "backward", "optimizer", "replay write", REST,
)  # fmt: skip


@dataclass
class Settings(bench_subject.Subject):
    """windows: of so many updates each (null: 1, and 20 on a GPU, where one begins before the last
    is settled), in turn with one update under clocks; warmup: updates before (null: 2, and 6 on a
    GPU, which records one of them)."""

    windows: int = 5
    updates: int | None = None
    warmup: int | None = None

    def __post_init__(self) -> None:
        at_least_one = (1, 1_000_000)
        check_ranges(self, dict.fromkeys(("windows", "updates", "warmup"), at_least_one))


def measure(settings: Settings) -> Iterator[Mapping[str, Any]]:
    """One figure for the update, then one for each phase."""
    began = time.perf_counter()
    made = bench_subject.make(settings)
    build_s = time.perf_counter() - began
    if not isinstance(made.agent, Dreamer):
        raise ConfigError(
            f"This measures Dreamer's update; experiment={settings.experiment} is another agent's."
        )
    clock, replay = Clock(made.device), bench_subject.filled_replay(made)
    memory, gpu = PeakMemory(made.device), made.device.type == "cuda"
    count, update = settings.updates or (20 if gpu else 1), partial(made.agent.update, replay)
    first_s = timed(clock, update).wall
    for _ in range((settings.warmup or (6 if gpu else 2)) - 1):
        update()
    counted = _flops(made, replay)
    windows, phased = [], []
    for _ in range(settings.windows):
        if gpu:
            update()  # whose window begins with one under way
        windows.append(timed(clock, update, count))
        phased.append(_phases(Phases(clock), made, replay))
    used, before = memory.peak(), memory.before
    peak = matmul_peak(made.device, made.settings.agent.precision)
    flop, whole = sum(spent.flop for spent in counted.values()), summary(windows)
    names = [name for name in PHASES if name in counted]
    wall, cpu = (
        {n: statistics.median(getattr(phases[n], what) for phases in phased) for n in names}
        for what in ("wall", "cpu")
    )
    yield {
        "figure": "update",
        **whole,
        "updates_per_s": rounded(1 / whole["seconds"]),
        "steps_per_s": rounded(made.agent.batch_size * made.agent.batch_length / whole["seconds"]),
        "gflop": rounded(flop / 1e9),
        "gflop_per_s": rounded(flop / whole["seconds"] / 1e9),
        "peak_gflop_per_s": rounded(peak / 1e9),
        "of_peak": rounded(flop / whole["seconds"] / peak),
        "peak_memory_mb": rounded(used / 1e6),
        "memory_before_mb": rounded(before / 1e6),
        "memory_mb": rounded((used - before) / 1e6),
        "first_update_s": rounded(build_s + first_s),
        "build_s": rounded(build_s),
        "seconds_with_clocks": rounded(sum(wall.values())),
        "phases_ms": {name: rounded(1e3 * wall[name]) for name in names},
        **about(made),
    }
    for name in names:
        yield {
            "figure": "phase",
            "phase": name,
            "ms": rounded(1e3 * wall[name]),
            "cpu_ms": rounded(1e3 * cpu[name]),
            "share": rounded(wall[name] / sum(wall.values())),
            "calls": counted[name].calls,
            "gflop": rounded(counted[name].flop / 1e9),
            "of_peak": rounded(counted[name].flop / wall[name] / peak) if wall[name] else 0.0,
        }


def wrap(phases: Phases, made: bench_subject.Made, replay: Any) -> None:
    """Put a clock on what `Dreamer.update` calls."""
    agent = made.agent
    phases.wrap(replay, "sample", "replay sample")
    if not agent.config.freeze_model:
        phases.wrap(replay, "rewrite", "replay write")
        phases.wrap(agent.model, "losses", "decoder and heads")  # and the KL, and sums
        phases.wrap(agent.model, "encoder", "encoder")
        phases.wrap(agent.model.core, "observe", "observe scan")
    if made.device.type != "cpu":
        phases.wrap(Batch, "to", "to device")
    phases.wrap(agent, "behaviour_losses", "actor-critic")
    phases.wrap(agent, "imagine", "imagination")
    phases.wrap(agent.optim, "attempt", "optimizer")
    phases.wrap(torch.Tensor, "backward", "backward")
    phases.wrap(agent.slow_critic, "update", "optimizer")


def about(made: bench_subject.Made) -> dict[str, Any]:
    """What was measured: parameters, batch and image, as they came out of all settings."""
    agent, images = made.agent, made.spec.keys("image")
    return {
        "on": str(made.device),
        "parameters": parameters_count(agent),
        "batch": [agent.batch_size, agent.batch_length],
        "images": {key: list(made.spec.obs[key].shape) for key in images},
        "horizon": agent.config.horizon,
        "imagination_starts": agent.config.imagination_starts,
        "precision": agent.config.precision if made.device.type == "cuda" else "float32",
    }


def _flops(made: bench_subject.Made, replay: Any) -> dict[str, Spent]:
    """FLOPs of one update by phase. Counting slows everything down, so that nothing is timed."""
    with FlopCounterMode(display=False) as counter:
        return _phases(Phases(lambda: 0.0, lambda: float(counter.get_total_flops())), made, replay)


def _phases(phases: Phases, made: bench_subject.Made, replay: Any) -> dict[str, Spent]:
    """One update with a clock on its parts, which are launched one after the other."""
    with phases, _in_parts(made.agent, replay):
        wrap(phases, made, replay)
        with phases.inside(REST):
            made.agent.update(replay)
    phases.check_entered()
    return phases.spent


@contextlib.contextmanager
def _in_parts(agent: Any, replay: Any) -> Iterator[None]:
    """Updates as Python runs them: of a recording, nothing inside can be timed."""
    agent.settle(replay)
    before = agent.config, agent._pipeline
    agent.config, agent._pipeline = dataclasses.replace(agent.config, cuda_graph=False), None
    try:
        yield
    finally:
        agent.config, agent._pipeline = before
