"""`what=guard`: is a guarded policy ever worse off than the safe one alone?

Each shift, at each strength, from tick `onset` on; the same episodes three times: with the policy
and its guard, with the policy alone, and with the fallback alone from the first tick on. `short` is
how far an episode of the first kind ends below its twin of the third, as a share of that one's
return; below 0 it ends above.

Nothing here keeps a period: the deadlines are wide, so that only the detector decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
from omegaconf import MISSING

from agents.deploy import sources
from agents.deploy.config import DeployConfig
from agents.deploy.trial import World, alone, fallback_alone, guarded
from scripts.studies.bench import check_known, check_shifts
from worldmodel.accel import devices
from worldmodel.config import check_ranges
from worldmodel.envs.shifts import LEVELS, SHIFTS, shift_named


@dataclass
class Settings:
    """run: a run with a detector, or its export. shifts, levels: of `worldmodel.envs.shifts`.
    episodes: of each. onset: tick at which the shift begins. tolerated: share of the fallback's
    return that an episode may end below it. deploy: of the loop; its times are not looked at."""

    run: str = MISSING
    shifts: list[str] = field(default_factory=lambda: list(SHIFTS))
    levels: list[str] = field(default_factory=lambda: list(LEVELS))
    episodes: int = 10
    onset: int = 20
    tolerated: float = 0.05
    seed: int = 0
    threads: int = 1
    deploy: DeployConfig = field(default_factory=DeployConfig)

    def __post_init__(self) -> None:
        check_shifts(self.shifts)
        check_known("level", self.levels, LEVELS)
        check_ranges(self, {
            "episodes": (1, 1e6), "onset": (0, 1e9), "tolerated": (0, 1), "threads": (0, 1024),
        })  # fmt: skip


def measure(settings: Settings) -> Iterator[Mapping[str, Any]]:
    """One figure for each shift and strength; then how many episodes ended too low."""
    devices.set_threads(settings.threads)
    deploy = replace(
        settings.deploy, period_ms=10_000, soft_ms=8_000, hard_ms=9_000, max_age_ms=None, log=None
    )
    env, count, seed = sources.env_of(settings.run), settings.episodes, settings.seed
    engine, spec = sources.Source(settings.run, guard=False).engine()
    shorts: list[float] = []
    for name, level in product(settings.shifts, settings.levels):
        world = World(env, name, shift_named(name).strength(level), settings.onset)
        with sources.open_runtime(settings.run, deploy) as runtime:
            runtime.start()
            watched = guarded(runtime, world, count, seed, pace=False)
        policy = alone(engine, spec, world, count, seed)
        safe = fallback_alone(deploy.fallback, spec, world, count, seed)
        short = shortfall(watched.returns, safe.returns)
        shorts += short.tolist()
        yield {
            "shift": name,
            "kind": shift_named(name).kind,
            "level": level,
            "guarded": round(watched.mean, 1),
            "policy": round(policy.mean, 1),
            "fallback": round(safe.mean, 1),
            "noticed": round(len(watched.detected) / count, 4),
            "delay": float(np.median(watched.detected)) if watched.detected else float("nan"),
            "short_worst": round(float(short.max()), 4),
        }
    yield {
        "episodes": len(shorts),
        "too_low": int((np.array(shorts) > settings.tolerated).sum()),
        "short_worst": round(max(shorts), 4),
        "fallback": deploy.fallback.name,
    }


def shortfall(returns: list[float], safe: list[float]) -> np.ndarray:
    """[N] How far each return lies below its twin, as a share of the twin's size."""
    ours, theirs = np.asarray(returns), np.asarray(safe)
    return (theirs - ours) / np.maximum(np.abs(theirs), 1e-9)
