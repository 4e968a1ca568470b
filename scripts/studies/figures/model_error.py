"""A model that is wrong: on slippery ground, a table of newest outcomes against one of counts."""

from __future__ import annotations

import numpy as np

from agents.dyna import DynaQConfig
from agents.dyna.exact import greedy_policy, model_error, optimal_values, policy_values
from agents.dyna.experiment import Experiment
from scripts.studies.figures.job import COLOUR, Job, chunks, evenly
from worldmodel import plots
from worldmodel.envs.grid import GRIDS, GridWorld

RUNS, STEPS, LIMIT, GAMMA, PLANNING = 40, 12_000, 1000, 0.95, 20
TABLES = {
    "newest outcome": ("deterministic", COLOUR["Dyna-Q"]),
    "counts": ("counts", COLOUR["Dyna-Q with counts"]),
}
ERROR, VALUES, BELIEF, TRUTH = range(4)


def measure(table: str, seeds: range, x: np.ndarray) -> np.ndarray:
    """After each of x [N] real steps, [R, N, 4]: the model's error, the error of the best values of
    visited states, what the start is believed to be worth, what the greedy policy is worth there.
    """
    world = GridWorld(GRIDS["slippery_grid"]).table()
    best, start = optimal_values(world, GAMMA).max(-1), int(world.start[0].argmax())
    found = np.zeros((len(seeds), len(x), 4))
    for row, seed in zip(found, seeds, strict=True):
        run = Experiment(world, DynaQConfig(n=PLANNING, gamma=GAMMA, table=table), seed, LIMIT)
        for out, more in zip(row, chunks(x), strict=True):
            run.advance(more)
            q = run.q
            known = run.model.tables.num_tried > 0
            out[ERROR] = model_error(run.model, world)
            out[VALUES] = np.abs(q.max(-1) - best)[known].mean()
            out[BELIEF] = q[start].max()
            out[TRUTH] = policy_values(world, greedy_policy(q), GAMMA)[start]
    return found


def make(job: Job) -> None:
    """Run, draw, compare."""
    seeds = job.seeds(RUNS)
    x = evenly(1500, 8) if job.quick else evenly(STEPS, 40)
    world = GridWorld(GRIDS["slippery_grid"]).table()
    optimum = float(optimal_values(world, GAMMA).max(-1) @ world.start[0])
    titles = ("error of the model", "error of the values", "worth of the start")
    panels: dict[str, list[plots.Curve]] = {title: [] for title in titles}
    for name, (table, colour) in TABLES.items():
        runs = measure(table, seeds, x)
        for title, i in zip(titles, (ERROR, VALUES, TRUTH), strict=True):
            told = f"{name}, true" if i == TRUTH else name
            panels[title].append(plots.mean_curve(told, x, runs[..., i], colour=colour))
        believed = plots.mean_curve(f"{name}, believed", x, runs[..., BELIEF], colour=colour)
        panels[titles[2]].append(plots.Curve(**{**vars(believed), "style": "--"}))
        told_last(job, name, runs[:, -1], optimum)
    made, axes = plots.figure(columns=3, width=4.3)
    ylabels = ("total variation from the truth", "mean absolute error", "discounted return")
    for panel, (title, curves), ylabel in zip(axes[0], panels.items(), ylabels, strict=True):
        plots.draw(panel, curves, title, "real steps", ylabel)
    axes[0][2].axhline(optimum, color="#888888", linewidth=0.9, linestyle=":")
    note = f"Slippery grid; Dyna-Q, n={PLANNING}, alpha .1, gamma .95, epsilon .1; dotted: the "
    job.save(made, panels, f"{note}optimum, {optimum:.3f}. Mean and 95% band,")


def told_last(job: Job, name: str, last: np.ndarray, optimum: float) -> None:
    """What came out at the end, [R, 4]; there is no anchor for it."""
    mean, error = last.mean(0), plots.standard_error(last)
    job.say(
        f"  {name}: model error {mean[ERROR]:.3f} ({error[ERROR]:.3f}), error of values "
        f"{mean[VALUES]:.3f} ({error[VALUES]:.3f}), start believed {mean[BELIEF]:.3f} "
        f"({error[BELIEF]:.3f}), worth {mean[TRUTH]:.3f} ({error[TRUTH]:.3f}) of {optimum:.3f}"
    )
