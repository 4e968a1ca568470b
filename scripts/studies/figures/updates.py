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
from scripts.studies.figures.job import COLOUR, Job, chunks, evenly
from worldmodel import plots
from worldmodel.envs.grid import GRIDS, GridWorld, refine
from worldmodel.envs.table import WorldTable

RUNS, STEPS, LIMIT, GAMMA, CALLS, SIZE = 30, 40_000, 2000, 0.97, 30, 2
XLABEL = "model outcomes looked up, millions"
BASE = DynaQConfig(n=CALLS, max_calls=CALLS, gamma=GAMMA, table="counts", epsilon=0.2, direct=False)
AGENTS = {
    "uniform, sample": (BASE, "Dyna-Q with counts", "-"),
    "uniform, expected": (replace(BASE, backup="expected", alpha=1.0), "Dyna-Q with counts", "--"),
    "trajectory, sample": (replace(BASE, select="trajectory"), "trajectory sampling", "-"),
    "trajectory, expected": (
        replace(BASE, select="trajectory", backup="expected", alpha=1.0),
        "trajectory sampling",
        "--",
    ),
}


def world_of() -> WorldTable:
    """The slippery grid, each cell divided into 2 x 2."""
    grid = GRIDS["slippery_grid"]
    return GridWorld(replace(grid, layouts=(refine(grid.layouts[0], SIZE),))).table()


def measure(world: WorldTable, agent: str, seeds: range, x: np.ndarray) -> np.ndarray:
    """After each of x [N] real steps, [R, N, 3]: what the greedy policy is worth from the start,
    how many outcomes were looked up so far, how many updates were planned."""
    start = int(world.start[0].argmax())
    found = np.zeros((len(seeds), len(x), 3))
    for row, seed in zip(found, seeds, strict=True):
        run = Experiment(world, AGENTS[agent][0], seed, LIMIT)
        for out, more in zip(row, chunks(x), strict=True):
            run.advance(more)
            out[0] = policy_values(world, greedy_policy(run.q), GAMMA)[start]
            out[1:] = run.calls, run.updates
    return found


def make(job: Job) -> None:
    """Run, draw."""
    seeds, world = job.seeds(RUNS), world_of()
    x = evenly(2000, 6) if job.quick else evenly(STEPS, 24)
    optimum = float(optimal_values(world, GAMMA).max(-1) @ world.start[0])
    title, curves = "worth of the greedy policy", []
    for name, (_, agent, style) in AGENTS.items():
        runs = measure(world, name, seeds, x)
        calls = runs[..., 1].mean(0)
        curve = plots.mean_curve(name, calls / 1e6, runs[..., 0], colour=COLOUR[agent], style=style)
        curves.append(curve)
        for point in (len(x) // 4, len(x) - 1):
            mean, error = runs[:, point, 0].mean(), plots.standard_error(runs[:, point, 0])
            job.say(
                f"  {name}, {calls[point]:,.0f} outcomes, {runs[:, point, 2].mean():,.0f} updates: "
                f"worth {mean:.3f} ({float(error):.3f}) of {optimum:.3f}"
            )
    made, axes = plots.figure(width=6.4, height=4.2)
    panel = axes[0][0]
    plots.draw(panel, curves, title, XLABEL, "discounted return from the start")
    panel.axhline(optimum, color="#888888", linewidth=0.9, linestyle=":")
    note = f"Slippery grid x2; {CALLS} outcomes after each real step, no direct learning;\n"
    note += "alpha .1 for samples, 1 for expected updates; gamma .97, epsilon .2;\n"
    note += f"dotted: the optimum, {optimum:.3f}."
    job.save(made, {title: curves}, f"{note} Mean and 95% band,")
