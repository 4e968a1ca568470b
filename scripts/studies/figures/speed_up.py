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
from scripts.studies.figures.job import COLOUR, Check, Job, draw_panels, drawn_check
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
    seeds, planning = job.seeds(RUNS), QUICK_PLANNING if job.quick else PLANNING
    world = lake(slippery=False)
    panels = {
        title: measured_curves(job, world, planning, initial, seeds)
        for title, initial in STARTS.items()
    }
    places = np.arange(len(planning))  # 0 has no place on a logarithmic axis
    placed = {title: [replace(c, x=places) for c in curves] for title, curves in panels.items()}
    made, axes = draw_panels(placed, [("planning steps n", "real steps (median)")] * len(panels))
    ticks = [mantissa * 10**power for power in (2, 3, 4) for mantissa in (1, 2, 5)]
    for panel in axes:
        panel.set_xticks(places, [str(n) for n in planning])
        panel.set_yscale("log")
        panel.minorticks_off()
        panel.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
        panel.set_ylim(150, 60_000)
    job.say(f"  shortest way: {shortest_path(world)} steps")
    what = "slippery: the best chance of arriving within 200 steps"
    truth = best_return(lake(slippery=True), LIMIT)
    job.check(Check(what, truth, 0.0, 0.913, 0.0005, "rounded"))
    note = "FrozenLake 8x8, not slippery; alpha 1, gamma .95, epsilon .1. Median and quartiles,"
    job.save(made, panels, note)


def measured_curves(
    job: Job, world: WorldTable, planning: tuple[int, ...], initial: float, seeds: range
) -> list[plots.Curve]:
    """Medians and quartiles over runs by n; the optimistic ones beside their anchors."""
    runs = np.stack([measure(world, n, initial, seeds) for n in planning], 1)  # [R, N, 2]
    for column, n in enumerate(planning):
        if initial > 0 and n in ANCHORS:
            what = f"median steps to greedy success, n={n}"
            steps = runs[:, column, 0]
            job.check(drawn_check(what, steps, median, ANCHORS[n], ANCHOR_RUNS))
    low, middle, high = np.quantile(runs, (0.25, 0.5, 0.75), axis=0)  # [N, 2]
    names = ("until the greedy way arrives", "until the goal is reached first")
    looks = ((COLOUR["Dyna-Q"], "-"), ("#777777", "--"))
    return [
        plots.Curve(name, np.array(planning), middle[:, i], low[:, i], high[:, i], *looks[i])
        for i, name in enumerate(names)
    ]


def median(values: np.ndarray) -> float:
    """The median of all values."""
    return float(np.median(values))
