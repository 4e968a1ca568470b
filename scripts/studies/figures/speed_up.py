"""What planning saves: real steps on deterministic FrozenLake 8x8 until the greedy way arrives.

With optimistic first values every step teaches something, and planning spreads it. With values of
zero nothing is learned before the goal was reached by chance, whatever is planned.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from agents.dyna import DynaQConfig
from agents.dyna.exact import best_return, shortest_path
from agents.dyna.experiment import Experiment, greedy_steps
from scripts.studies.figures.job import COLOUR, Check, Job, drawn_check
from worldmodel import plots
from worldmodel.envs import EnvConfig
from worldmodel.envs.table import WorldTable, world_table

RUNS, PLANNING, QUICK_PLANNING = 50, (0, 1, 5, 10, 20, 50), (0, 10)
LIMIT = 200  # steps after which gymnasium cuts an episode off
MAX_STEPS = 300_000
STARTS = {"optimistic values (1)": 1.0, "values of zero": 0.0}
ANCHORS = {0: 2116, 10: 883, 50: 700}  # medians, optimistic
ANCHOR_RUNS = 10  # assumed: the anchors do not say


def lake(slippery: bool) -> WorldTable:
    """FrozenLake 8x8."""
    kwargs = {"map_name": "8x8", "is_slippery": slippery}
    return world_table(EnvConfig("FrozenLake-v1", pixels=False, kwargs=kwargs))


def measure(world: WorldTable, n: int, initial: float, seeds: range) -> np.ndarray:
    """Real steps until the greedy way arrives, and until the goal was reached first, [R, 2]; the
    greedy way is looked at after each episode. A run that never gets there counts as MAX_STEPS.
    """
    found = []
    for seed in seeds:
        config = DynaQConfig(n=n, alpha=1.0, initial=initial)
        run, first, arrived = Experiment(world, config, seed, LIMIT), 0, False
        while run.steps < MAX_STEPS and not arrived:
            run.advance(MAX_STEPS - run.steps, 1)
            if not first and run.rewards[-1] > 0:
                first = run.steps
            arrived = greedy_steps(world, run.q, LIMIT) > 0
        found.append((run.steps, first or run.steps))
    return np.array(found)


def make(job: Job) -> None:
    """Run, draw, compare."""
    seeds = job.seeds(RUNS)
    planning = QUICK_PLANNING if job.quick else PLANNING
    world = lake(slippery=False)
    panels = {
        title: draw_measured(job, world, planning, initial, seeds)
        for title, initial in STARTS.items()
    }
    made, axes = plots.figure(columns=2)
    for panel, (title, curves) in zip(axes[0], panels.items(), strict=True):
        places = np.arange(len(planning))  # 0 has no place on a logarithmic axis
        placed = [replace(curve, x=places) for curve in curves]
        plots.draw(panel, placed, title, "planning steps n", "real steps (median)")
        panel.set_xticks(places, [str(n) for n in planning])
        panel.set_yscale("log")
        panel.minorticks_off()
        ticks = [mantissa * 10**power for power in (2, 3, 4) for mantissa in (1, 2, 5)]
        panel.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
        panel.set_ylim(150, 60_000)
    best, truth = shortest_path(world), best_return(lake(slippery=True), LIMIT)
    job.say(f"  shortest way: {best} steps")
    what = "slippery: the best chance of arriving within 200 steps"
    job.check(Check(what, truth, 0.0, 0.913, 0.0005, "rounded"))
    note = "FrozenLake 8x8, not slippery; alpha 1, gamma .95, epsilon .1. Median and quartiles,"
    job.save(made, panels, note)


def draw_measured(
    job: Job, world: WorldTable, planning: tuple[int, ...], initial: float, seeds: range
) -> list[plots.Curve]:
    """Medians and quartiles over runs by n; the optimistic ones beside their anchors."""
    runs = np.stack([measure(world, n, initial, seeds) for n in planning], 1)  # [R, N, 2]
    for column, n in enumerate(planning):
        steps = runs[:, column, 0]
        if initial > 0 and n in ANCHORS:
            what = f"median steps to greedy success, n={n}"
            job.check(drawn_check(what, steps, _median, ANCHORS[n], ANCHOR_RUNS))
    names = ("until the greedy way arrives", "until the goal is reached first")
    looks = ((COLOUR["Dyna-Q"], "-"), ("#777777", "--"))
    curves = []
    for i, (name, (colour, style)) in enumerate(zip(names, looks, strict=True)):
        low, middle, high = np.quantile(runs[..., i], (0.25, 0.5, 0.75), axis=0)
        curves.append(plots.Curve(name, np.array(planning), middle, low, high, colour, style))
    return curves


def _median(values: np.ndarray) -> float:
    return float(np.median(values))
