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
from functools import partial
from typing import Any

import numpy as np

from agents import dyna
from worldmodel.config import check_ranges
from worldmodel.envs import EnvConfig

Contestant = Callable[[], int]  # plans for a while; how many updates it did
# Dyna-Q in plain Python, by how it lists the keys of its model.
PLAIN = {"plain Python, keys listed anew": True, "plain Python, keys listed once": False}


@dataclass
class Settings:
    """How long to look."""

    windows: int = 15  # of each contestant; the median counts
    updates: int = 1_000_000  # of a compiled contestant in one window
    plain_updates: int = 20_000  # of a plain one in one window
    steps: int = 5000  # random real steps before the planning
    seed: int = 0

    def __post_init__(self) -> None:
        names = ("windows", "updates", "plain_updates", "steps")
        check_ranges(self, dict.fromkeys(names, (1, 1e9)))


def measure(settings: Settings) -> Iterator[Mapping[str, Any]]:
    """Updates per second of every contestant, and how many times faster the compiled Dyna-Q is
    than each plain loop; seconds are those of this process's processor time."""
    contestants = {**compiled(settings), **plain(settings)}
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for _ in range(settings.windows + 1):  # the first one warms up
        for name, contestant in contestants.items():
            began, clock = time.process_time(), time.perf_counter()
            done = contestant()
            spent, waited = time.process_time() - began, time.perf_counter() - clock
            rates[name].append((done / spent, done / waited))
    medians = {}
    for name, found in rates.items():
        by_cpu, by_wall = np.array(found[1:]).T
        medians[name] = float(np.median(by_cpu))
        yield {
            "name": f"planning updates per second, {name}",
            "value": medians[name],
            "quartiles": np.quantile(by_cpu, [0.25, 0.75]).tolist(),
            "by_the_wall_clock": float(np.median(by_wall)),
        }
    for name in PLAIN:
        value = medians["dyna_q"] / medians[name]
        yield {"name": f"dyna_q, compiled, against {name}", "value": value, "unit": "times"}


def compiled(settings: Settings) -> dict[str, Contestant]:
    """The family's members, each with its model and values after the real steps."""
    from agents.dyna.experiment import Experiment
    from worldmodel.envs.table import world_table

    def contestant(config: dyna.DynaConfig, env: str = "dyna_maze", share: int = 1) -> Contestant:
        world = world_table(EnvConfig(env, suite="grid", pixels=False))
        run = Experiment(world, config, settings.seed).advance(settings.steps)
        root, updates = int(run.model.tables.states[0]), settings.updates // share

        def plan() -> int:
            before = run.updates
            if config.select == "prioritized":  # only real steps fill its queue
                run.advance(max(1, updates // 20))
            else:
                run.learner.plan(updates, root)
            return run.updates - before

        return plan

    explores = partial(dyna.DynaQConfig, epsilon=1.0)
    expected = explores(table="counts", backup="expected")
    sweeping = dyna.PrioritizedSweepingConfig(theta=0.0)
    return {
        "dyna_q": contestant(explores()),
        "dyna_q with counts, slippery": contestant(explores(table="counts"), "slippery_grid"),
        "dyna_q with expected updates, slippery": contestant(expected, "slippery_grid"),
        "dyna_q_plus": contestant(dyna.DynaQPlusConfig(epsilon=1.0)),
        "dyna_2": contestant(dyna.Dyna2Config()),
        "prioritized_sweeping, real steps included": contestant(sweeping, share=10),
    }


def plain(settings: Settings) -> dict[str, Contestant]:
    """Dyna-Q's planning loop with dictionaries, in plain Python."""
    from worldmodel.envs.table import world_table

    world = world_table(EnvConfig("dyna_maze", suite="grid", pixels=False))
    rng, actions = random.Random(settings.seed), range(world.actions)
    q = {(s, a): 0.0 for s in range(world.states) for a in actions}
    model: dict[tuple[int, int], tuple[float, int]] = {}
    state = start = int(world.start[0].argmax())
    for _ in range(settings.steps):
        action = rng.choice(actions)
        place = (0, state, action, 0)
        model[state, action] = (float(world.reward[place]), int(world.next[place]))
        state = start if world.terminal[place] else int(world.next[place])
    alpha, gamma, keys = 0.1, 0.95, list(model)

    def plan(anew: bool) -> int:
        for _ in range(settings.plain_updates):
            state, action = rng.choice(list(model.keys()) if anew else keys)
            reward, after = model[state, action]
            best = max([q[after, b] for b in actions])
            q[state, action] += alpha * (reward + gamma * best - q[state, action])
        return settings.plain_updates

    return {name: partial(plan, anew) for name, anew in PLAIN.items()}
