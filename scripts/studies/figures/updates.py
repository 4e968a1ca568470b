"""Where to plan and how: pairs drawn uniformly or along trajectories, one outcome or all of them.

All look up the same number of model outcomes after each real step, so that an expected update over
three outcomes counts three times (sections 8.5 and 8.6 of the book). Values change by planning
alone: real steps teach the model, which an expected update trusts wholly (alpha 1).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from agents.dyna import DynaQConfig
from agents.dyna.exact import greedy_policy, optimal_values, policy_values
from agents.dyna.experiment import Experiment
from scripts.studies.figures.job import (
    COLOUR,
    DOTTED,
    Job,
    draw_panels,
    evenly,
    looks,
    maze,
    mean_text,
)
from worldmodel import plots

RUNS, STEPS, LIMIT, GAMMA, CALLS, SIZE = 30, 40_000, 2000, 0.97, 30, 2
BASE = DynaQConfig(n=CALLS, max_calls=CALLS, gamma=GAMMA, table="counts", epsilon=0.2, direct=False)
TITLE, LABELS = (
    "worth of the greedy policy",
    (("model outcomes looked up, millions", "discounted return from the start"),),
)


def make(job: Job) -> None:
    """Run, draw."""
    seeds, world = job.seeds(RUNS), maze("slippery_grid", SIZE)
    x = evenly(2000, 6) if job.quick else evenly(STEPS, 24)
    start = int(world.start[0].argmax())
    optimum = float(optimal_values(world, GAMMA).max(-1) @ world.start[0])

    def look(run: Experiment) -> tuple[float, ...]:
        worth = policy_values(world, greedy_policy(run.q), GAMMA)[start]
        return worth, run.calls, run.updates

    curves = []
    for select, agent in (("uniform", "Dyna-Q with counts"), ("trajectory", "trajectory sampling")):
        for backup, alpha, style in (("sample", BASE.alpha, "-"), ("expected", 1.0, "--")):
            config = replace(BASE, select=select, backup=backup, alpha=alpha)
            runs = looks(world, config, seeds, x, look, LIMIT)
            name, (worth, calls, updates) = f"{select}, {backup}", np.moveaxis(runs, -1, 0)
            at, colour = calls.mean(0) / 1e6, COLOUR[agent]
            curves.append(plots.mean_curve(name, at, worth, colour=colour, style=style))
            for point in (len(x) // 4, len(x) - 1):
                job.say(
                    f"  {name}, {1e6 * at[point]:,.0f} outcomes, {updates[:, point].mean():,.0f} "
                    f"updates: worth {mean_text(worth[:, point])} of {optimum:.3f}"
                )
    made, axes = draw_panels({TITLE: curves}, LABELS, width=6.4, height=4.2)
    axes[0].axhline(optimum, **DOTTED)
    note = f"Slippery grid x2; {CALLS} outcomes after each real step, no direct learning;\n"
    note += "alpha .1 for samples, 1 for expected updates; gamma .97, epsilon .2;\n"
    note += f"dotted: the optimum, {optimum:.3f}."
    job.save(made, {TITLE: curves}, f"{note} Mean and 95% band,")
