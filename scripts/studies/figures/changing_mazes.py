"""The world changes: Dyna-Q trusts its old model, Dyna-Q+ looks again (figures 8.4 and 8.5)."""

from __future__ import annotations

import numpy as np

from agents.dyna import DynaConfig, DynaQConfig, DynaQPlusConfig
from agents.dyna.experiment import cumulative_rewards
from scripts.studies.figures.job import COLOUR, Job, mean_check
from worldmodel import plots
from worldmodel.envs.grid import GRIDS, GridWorld

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


def measure(maze: str, agent: str, seeds: range) -> tuple[np.ndarray, np.ndarray]:
    """Real steps [N], and the cumulative reward up to each of them [R, N]."""
    n, kappa, steps, _ = MAZES[maze]
    x = np.arange(0, steps + 1, steps // 150)
    world = GridWorld(GRIDS[maze]).table()
    sums = cumulative_rewards(world, agents(n, kappa)[agent], seeds, steps)
    return x, np.concatenate([np.zeros((len(seeds), 1)), sums], 1)[:, x]


def make(job: Job) -> None:
    """Run, draw, compare."""
    seeds = job.seeds(RUNS)
    panels: dict[str, list[plots.Curve]] = {}
    made, axes = plots.figure(columns=2)
    for panel, (maze, (n, kappa, _, anchors)) in zip(axes[0], MAZES.items(), strict=True):
        curves = []
        for agent, (anchor, deviation) in zip(agents(n, kappa), anchors, strict=True):
            x, sums = measure(maze, agent, seeds)
            curves.append(plots.mean_curve(agent, x, sums, colour=COLOUR[agent]))
            what = f"cumulative reward, {maze.replace('_', ' ')}, {agent}"
            job.check(mean_check(what, sums[:, -1], anchor, 20, deviation))
        title = f"{maze.replace('_', ' ')} (n={n}, kappa={kappa:g})"
        panels[title] = curves
        plots.draw(panel, curves, title, "real steps", "cumulative reward")
        change = GRIDS[maze].change[1]
        panel.axvline(change, color="#888888", linewidth=0.9, linestyle=":")
        top = panel.get_ylim()[1]
        panel.text(change, 0.62 * top, " the maze\n changes", fontsize=9, color="#555555")
    job.save(made, panels, "alpha 1, gamma .95, epsilon .1. Mean and 95% band,")
