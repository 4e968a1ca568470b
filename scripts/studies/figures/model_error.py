"""A model that is wrong: on slippery ground, a table of newest outcomes against one of counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from agents.dyna import DynaQConfig
from agents.dyna.exact import greedy_policy, model_error, optimal_values, policy_values
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

RUNS, STEPS, LIMIT, GAMMA, PLANNING = 40, 12_000, 1000, 0.95, 20
TABLES = {
    "newest outcome": ("deterministic", COLOUR["Dyna-Q"]),
    "counts": ("counts", COLOUR["Dyna-Q with counts"]),
}
YLABELS = ("total variation from the truth", "mean absolute error", "discounted return")


def measure(table: str, seeds: range, x: np.ndarray) -> np.ndarray:
    """After each of x [N] real steps, [R, N, 4]: the model's error, the error of the best values of
    visited states, what the start is believed to be worth, what the greedy policy is worth there.
    """
    world = maze("slippery_grid")
    best, start = optimal_values(world, GAMMA).max(-1), int(world.start[0].argmax())

    def look(run: Experiment) -> tuple[float, ...]:
        q, known = run.q, run.model.tables.num_tried > 0
        return (
            model_error(run.model, world),
            np.abs(q.max(-1) - best)[known].mean(),
            q[start].max(),
            policy_values(world, greedy_policy(q), GAMMA)[start],
        )

    config = DynaQConfig(n=PLANNING, gamma=GAMMA, table=table)
    return looks(world, config, seeds, x, look, LIMIT)


def make(job: Job) -> None:
    """Run, draw, compare."""
    seeds = job.seeds(RUNS)
    x = evenly(1500, 8) if job.quick else evenly(STEPS, 40)
    world = maze("slippery_grid")
    optimum = float(optimal_values(world, GAMMA).max(-1) @ world.start[0])
    titles = ("error of the model", "error of the values", "worth of the start")
    panels: dict[str, list[plots.Curve]] = {title: [] for title in titles}
    for name, (table, colour) in TABLES.items():
        runs = measure(table, seeds, x)
        error, values, believed, true = (
            plots.mean_curve(name, x, runs[..., i], colour=colour) for i in range(4)
        )
        panels[titles[0]].append(error)
        panels[titles[1]].append(values)
        panels[titles[2]] += [
            replace(true, name=f"{name}, true"),
            replace(believed, name=f"{name}, believed", style="--"),
        ]
        ends = [mean_text(runs[:, -1, i]) for i in range(4)]
        job.say(
            f"  {name}: model error {ends[0]}, error of values {ends[1]}, start believed "
            f"{ends[2]}, worth {ends[3]} of {optimum:.3f}"
        )
    made, axes = draw_panels(panels, [("real steps", y) for y in YLABELS], width=4.3)
    axes[2].axhline(optimum, **DOTTED)
    note = f"Slippery grid; Dyna-Q, n={PLANNING}, alpha .1, gamma .95, epsilon .1; dotted: the "
    job.save(made, panels, f"{note}optimum, {optimum:.3f}. Mean and 95% band,")
