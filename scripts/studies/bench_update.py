"""`what=update`: how long one update takes, of which phases, and how near that is to the machine.

The agent's own `update` runs, with a clock on the methods that it calls. FLOPs are those of matrix
products and convolutions, as torch counts them; the peak is that of a large matrix product on the
same device with the same threads, measured in the same run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from agents.base import parameters_count
from scripts.studies import bench_subject
from scripts.studies.bench_timing import (
    REST,
    Clock,
    PeakMemory,
    Phases,
    Spent,
    Window,
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


@dataclass
class Measured:
    """Of one subject: windows of plain updates, what each phase took of an update with clocks
    (medians over the windows), FLOPs of one update, peak operations per second, bytes, and the
    seconds of the beginning."""

    windows: list[Window]
    phases: dict[str, Spent]
    flop: float
    peak: float
    memory: int
    memory_before: int
    build_s: float
    first_s: float
    made: bench_subject.Made


def measure(settings: Settings) -> Iterator[Mapping[str, Any]]:
    """One figure for the update, then one for each phase."""
    found = run(settings)
    agent, whole = found.made.agent, summary(found.windows)
    phased = sum(spent.wall for spent in found.phases.values())
    yield {
        "figure": "update",
        **whole,
        "updates_per_s": rounded(1 / whole["seconds"]),
        "steps_per_s": rounded(agent.batch_size * agent.batch_length / whole["seconds"]),
        "gflop": rounded(found.flop / 1e9),
        "gflop_per_s": rounded(found.flop / whole["seconds"] / 1e9),
        "peak_gflop_per_s": rounded(found.peak / 1e9),
        "of_peak": rounded(found.flop / whole["seconds"] / found.peak),
        "peak_memory_mb": rounded(found.memory / 1e6),
        "memory_before_mb": rounded(found.memory_before / 1e6),
        "first_update_s": rounded(found.build_s + found.first_s),
        "build_s": rounded(found.build_s),
        "seconds_with_clocks": rounded(phased),
        "phases_ms": {k: rounded(1e3 * v.wall) for k, v in found.phases.items()},
        **about(found.made),
    }
    for name, spent in found.phases.items():
        yield {
            "figure": "phase",
            "phase": name,
            "ms": rounded(1e3 * spent.wall),
            "cpu_ms": rounded(1e3 * spent.cpu),
            "share": rounded(spent.wall / phased),
            "calls": spent.calls,
            "gflop": rounded(spent.flop / 1e9),
            "of_peak": rounded(spent.flop / spent.wall / found.peak) if spent.wall else 0.0,
        }


def run(settings: Settings) -> Measured:
    """Build the subject, warm it up, and time it."""
    device = torch.device("cpu")
    built: list[bench_subject.Made] = []
    build_s = timed(Clock(device), lambda: built.append(bench_subject.make(settings))).wall
    made = built[0]
    if not hasattr(made.agent, "train_on"):
        raise ConfigError(f"The agent of experiment={settings.experiment} has no model to update.")
    clock, replay = Clock(made.device), bench_subject.filled_replay(made)
    memory = PeakMemory(made.device)

    gpu = made.device.type == "cuda"
    count = settings.updates or (20 if gpu else 1)

    def updates(count: int) -> None:
        for _ in range(count):
            made.agent.update(replay)

    first_s = timed(clock, partial(updates, 1)).wall
    updates((settings.warmup or (6 if gpu else 2)) - 1)
    flops = _flops(made, replay)
    windows, phased = [], []
    for _ in range(settings.windows):
        if gpu:
            updates(1)  # whose window begins with one under way
        window = timed(clock, partial(updates, count))
        windows.append(Window(window.wall / count, window.cpu / count))
        phased.append(_phases(Phases(clock), made, replay))
    peak_memory = memory.peak()
    phases = {
        name: Spent(
            statistics.median(phases[name].wall for phases in phased),
            statistics.median(phases[name].cpu for phases in phased),
            flops[name].flop,
            flops[name].calls,
        )
        for name in PHASES
        if name in flops
    }
    return Measured(
        windows, phases, sum(spent.flop for spent in phases.values()),
        matmul_peak(made.device, made.settings.agent.precision), peak_memory, memory.before,
        build_s, first_s, made,
    )  # fmt: skip


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
    kept = agent.config, agent._pipeline
    agent.config, agent._pipeline = dataclasses.replace(agent.config, cuda_graph=False), None
    try:
        yield
    finally:
        agent.config, agent._pipeline = kept
