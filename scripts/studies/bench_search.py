"""How many simulations a second a tree search makes in a small learned world, on one core.

A world of vectors with layers of `units`, as agents/muzero has it, untrained: what is measured is
the time. `compiled` is the search as machine code, `torch` the one that works with any world.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from agents.muzero import MuZero, MuZeroConfig
from agents.planning.tree_config import MCTSConfig
from scripts.studies.bench_timing import rounded
from worldmodel.accel.devices import set_threads
from worldmodel.config import check_ranges
from worldmodel.models.muzero import MuZeroModelConfig
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec

RULES = ("puct", "gumbel")


@dataclass
class Settings:
    """batches: roots that are searched together. simulations: of each. latent, units, actions: of
    the world. rounds: timed decisions; the median counts."""

    batches: list[int] = field(default_factory=lambda: [1, 16, 256])
    simulations: int = 50
    latent: int = 64
    units: int = 128
    actions: int = 4
    rounds: int = 20
    threads: int = 1

    def __post_init__(self) -> None:
        some = (1, 1 << 16)
        check_ranges(self, {
            "batches": some, "simulations": some, "latent": some, "units": some, "actions": some,
            "rounds": some, "threads": (0, 1024),
        })  # fmt: skip


def measure(settings: Settings) -> Iterator[Mapping[str, Any]]:
    """Simulations a second of CPU time, and the seconds until the first decision."""
    set_threads(settings.threads)
    spec = EnvSpec({"v": ObsSpec("vector", (8,))}, ActionSpec("discrete", (settings.actions,)))
    model = MuZeroModelConfig(settings.latent, settings.units, support=20, bins=41)
    for rule in RULES:
        search = MCTSConfig(rule=rule, simulations=settings.simulations)
        config = MuZeroConfig(search=search, model=model, units=settings.units)
        torch.manual_seed(0)
        agent = MuZero(spec, config, torch.device("cpu"))
        for name, compiled in (("compiled", agent.compiled), ("torch", None)):
            for batch in settings.batches:
                obs = {"v": torch.randn(batch, 8)}
                with torch.no_grad():
                    root = agent.model.represent(obs["v"])
                first, times = time.perf_counter(), []
                agent.planner.search(agent.model, root, agent.evaluate, compiled=compiled)
                first = time.perf_counter() - first
                for _ in range(settings.rounds):
                    began = time.process_time()
                    agent.planner.search(agent.model, root, agent.evaluate, compiled=compiled)
                    times.append(time.process_time() - began)
                rate = batch * settings.simulations / float(np.median(times))
                yield {
                    "figure": "search", "rule": rule, "how": name, "batch": batch,
                    "simulations_per_s": rounded(rate), "first_s": rounded(first),
                }  # fmt: skip
