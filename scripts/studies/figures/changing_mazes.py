"""The world changes: Dyna-Q trusts its old model, Dyna-Q+ looks again (figures 8.4 and 8.5)."""

from __future__ import annotations

import numpy as np

from agents.dyna import DynaConfig, DynaQConfig, DynaQPlusConfig
from agents.dyna.experiment import cumulative_rewards
from scripts.studies.figures.job import COLOUR, Job, draw_panels, mark_change, maze, mean_check
from worldmodel import plots
from worldmodel.envs.grid import GRIDS

RUNS = 100
# maze: planning steps, kappa, real steps, and the cumulative reward after them: (mean, sd) of 20
# runs of Dyna-Q and of Dyna-Q+.
MAZES = {
    "blocking_maze": (10, 1e-4, 3000, ((78, 43), (133, 15))),
    "shortcut_maze": (50, 1e-3, 6000, ((288, 18), (365, 9))),
}


def agents(n: int, kappa: float) -> dict[str, DynaConfig]:
    """Both agents with the book's settings."""
    return {
        "Dyna-Q": DynaQConfig(n=n, alpha=1.0),
        "Dyna-Q+": DynaQPlusConfig(n=n, alpha=1.0, kappa=kappa),
    }


def measure(name: str, agent: str, seeds: range) -> tuple[np.ndarray, np.ndarray]:
    """Real steps [N], and the cumulative reward up to each of them [R, N]."""
    n, kappa, steps, _ = MAZES[name]
    x = np.arange(0, steps + 1, steps // 150)
    sums = cumulative_rewards(maze(name), agents(n, kappa)[agent], seeds, steps)
    return x, np.concatenate([np.zeros((len(seeds), 1)), sums], 1)[:, x]


def make(job: Job) -> None:
    """Run, draw, compare."""
    seeds = job.seeds(RUNS)
    panels: dict[str, list[plots.Curve]] = {}
    for name, (n, kappa, _, anchors) in MAZES.items():
        words = name.replace("_", " ")
        curves = panels.setdefault(f"{words} (n={n}, kappa={kappa:g})", [])
        for agent, (anchor, deviation) in zip(agents(n, kappa), anchors, strict=True):
            x, sums = measure(name, agent, seeds)
            curves.append(plots.mean_curve(agent, x, sums, colour=COLOUR[agent]))
            what = f"cumulative reward, {words}, {agent}"
            job.check(mean_check(what, sums[:, -1], anchor, 20, deviation))
    made, axes = draw_panels(panels, [("real steps", "cumulative reward")] * len(panels))
    for panel, name in zip(axes, MAZES, strict=True):
        height = 0.62 * panel.get_ylim()[1]
        mark_change(panel, GRIDS[name].change[1], height, " the maze\n changes")
    job.save(made, panels, "alpha 1, gamma .95, epsilon .1. Mean and 95% band,")
