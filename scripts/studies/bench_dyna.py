"""`what=dyna`: planning updates per second, compiled and as tutorials print it, in one run.

Both plan Dyna-Q in the same explored Dyna maze. The plain loop is measured twice: as it is usually
printed, with a list of the model's keys made for every draw, and with that list made once. Windows
of all contestants take turns, so that what else the machine does falls on each alike.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.dyna import (
    Dyna2Config,
    DynaConfig,
    DynaQConfig,
    DynaQPlusConfig,
    PrioritizedSweepingConfig,
)
from worldmodel.config import ConfigError
from worldmodel.envs import EnvConfig

Contestant = Callable[[], int]  # plans for a while; how many updates it did


@dataclass
class Settings:
    """How long to look."""

    windows: int = 15  # of each contestant; the median counts
    updates: int = 1_000_000  # of a compiled contestant in one window
    plain_updates: int = 20_000  # of a plain one in one window
    steps: int = 5000  # random real steps before the planning
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("windows", "updates", "plain_updates", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")


def measure(settings: Settings) -> Iterator[Mapping[str, Any]]:
    """Updates per second of every contestant, and how many times faster the compiled Dyna-Q is
    than each plain loop; seconds are those of this process's processor time."""
    contestants = {**_compiled(settings), **_plain(settings)}
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    walls: dict[str, list[float]] = {name: [] for name in contestants}
    for window in range(-1, settings.windows):  # the first one warms up
        for name, contestant in contestants.items():
            began, clock = time.process_time(), time.perf_counter()
            done = contestant()
            spent, waited = time.process_time() - began, time.perf_counter() - clock
            if window >= 0:
                rates[name].append(done / spent)
                walls[name].append(done / waited)
    medians = {name: float(np.median(found)) for name, found in rates.items()}
    for name, found in rates.items():
        low, high = np.quantile(found, [0.25, 0.75])
        yield {
            "name": f"planning updates per second, {name}",
            "value": medians[name],
            "quartiles": [float(low), float(high)],
            "by_the_wall_clock": float(np.median(walls[name])),
        }
    for name in _plain(settings):
        value = medians["dyna_q"] / medians[name]
        yield {"name": f"dyna_q, compiled, against {name}", "value": value, "unit": "times"}


def _compiled(settings: Settings) -> dict[str, Contestant]:
    """The family's members, each with its model and values after the real steps."""
    from agents.dyna.experiment import Experiment
    from worldmodel.envs.table import world_table

    def contestant(config: DynaConfig, env: str, updates: int) -> Contestant:
        world = world_table(EnvConfig(env, suite="grid", pixels=False))
        run = Experiment(world, config, settings.seed).advance(settings.steps)
        root = int(run.model.tables.states[0])

        def go() -> int:
            before = run.updates
            if config.select == "prioritized":  # only real steps fill its queue
                run.advance(max(1, updates // 20))
            else:
                run.learner.plan(updates, root)
            return run.updates - before

        return go

    n = settings.updates
    counts = DynaQConfig(epsilon=1.0, table="counts")
    expected = DynaQConfig(epsilon=1.0, table="counts", backup="expected")
    return {
        "dyna_q": contestant(DynaQConfig(epsilon=1.0), "dyna_maze", n),
        "dyna_q with counts, slippery": contestant(counts, "slippery_grid", n),
        "dyna_q with expected updates, slippery": contestant(expected, "slippery_grid", n),
        "dyna_q_plus": contestant(DynaQPlusConfig(epsilon=1.0), "dyna_maze", n),
        "dyna_2": contestant(Dyna2Config(), "dyna_maze", n),
        "prioritized_sweeping, real steps included": contestant(
            PrioritizedSweepingConfig(theta=0.0), "dyna_maze", n // 10
        ),
    }


def _plain(settings: Settings) -> dict[str, Contestant]:
    """Dyna-Q's planning loop with dictionaries, in plain Python."""
    from worldmodel.envs.table import world_table

    world = world_table(EnvConfig("dyna_maze", suite="grid", pixels=False))
    rng = random.Random(settings.seed)
    actions = range(world.actions)
    q = {(s, a): 0.0 for s in range(world.states) for a in actions}
    model: dict[tuple[int, int], tuple[float, int]] = {}
    state = start = int(world.start[0].argmax())
    for _ in range(settings.steps):
        action = rng.choice(actions)
        place = (0, state, action, 0)
        model[state, action] = (float(world.reward[place]), int(world.next[place]))
        state = start if world.terminal[place] else int(world.next[place])
    alpha, gamma, count = 0.1, 0.95, settings.plain_updates

    def printed() -> int:
        for _ in range(count):
            state, action = rng.choice(list(model.keys()))
            reward, after = model[state, action]
            best = max([q[after, b] for b in actions])
            q[state, action] += alpha * (reward + gamma * best - q[state, action])
        return count

    keys = list(model)

    def lean() -> int:
        for _ in range(count):
            state, action = rng.choice(keys)
            reward, after = model[state, action]
            best = max([q[after, b] for b in actions])
            q[state, action] += alpha * (reward + gamma * best - q[state, action])
        return count

    return {"plain Python, keys listed anew": printed, "plain Python, keys listed once": lean}
