"""`what=act`: how often an agent can be asked for actions, for one environment or many at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agents.base import parameters_count
from scripts.studies import bench_subject
from scripts.studies.bench_timing import Clock, rounded
from worldmodel.config import ConfigError, check_ranges

SCENES = 16  # different observations, at random


@dataclass
class Settings(bench_subject.Subject):
    """envs: numbers of environments that one call acts in. calls: of one window. windows: whose
    medians count. mode: sample, as while training, or mode."""

    envs: list[int] = field(default_factory=lambda: [1, 16, 256])
    calls: int = 50
    windows: int = 5
    mode: str = "sample"

    def __post_init__(self) -> None:
        check_ranges(self, {"envs": (1, 65536), "calls": (1, 1e9), "windows": (1, 1e6)})
        if not self.envs:
            raise ConfigError("envs is empty; give numbers of environments, as envs=[1,16].")


def measure(settings: Settings) -> Iterator[Mapping[str, Any]]:
    """One figure for each number of environments: calls and agent steps per second, and the
    latency of a call in milliseconds, observations taken in and actions handed out."""
    made = bench_subject.make(settings)
    for envs in settings.envs:
        latencies = _latencies(settings, made, envs)  # [windows, calls], seconds
        calls = float(np.median(settings.calls / latencies.sum(1)))
        p50, p99 = np.quantile(latencies, [0.5, 0.99])
        yield {
            "figure": "act",
            "envs": envs,
            "calls_per_s": rounded(calls),
            "steps_per_s": rounded(calls * envs),
            "p50_ms": rounded(1e3 * p50),
            "p99_ms": rounded(1e3 * p99),
            "quickest_ms": rounded(1e3 * latencies.min()),
            "on": str(made.device),
            "parameters": parameters_count(made.agent),
            "observations": {key: list(obs.shape) for key, obs in made.spec.seen.items()},
        }


def _latencies(settings: Settings, made: bench_subject.Made, envs: int) -> np.ndarray:
    """Seconds of every call, [windows, calls], after a window that warms up."""
    rng = np.random.default_rng(0)
    scenes = [
        {**bench_subject.observations(made.spec, envs, rng), "is_first": np.zeros(envs, bool)}
        for _ in range(SCENES)
    ]
    clock, state = Clock(made.device), None
    taken = np.empty((settings.windows + 1, settings.calls))
    for window in taken:
        for call in range(settings.calls):
            began = clock()
            _, state, _ = made.agent.act(scenes[call % SCENES], state, settings.mode)
            window[call] = clock() - began
    return taken[1:]
