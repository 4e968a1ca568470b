"""As the maze grows: how many planning updates until the way is short (example 8.4 of the book)."""

from __future__ import annotations

import numpy as np

from agents.dyna import DynaConfig, DynaQConfig, PrioritizedSweepingConfig
from agents.dyna.exact import shortest_path
from agents.dyna.experiment import until_greedy
from scripts.studies.figures.job import COLOUR, Job, draw_panels, maze, mean_check
from worldmodel import plots
from worldmodel.envs.grid import GRIDS
from worldmodel.envs.table import WorldTable

RUNS, SIZES, QUICK_SIZES, NEAR = 30, range(1, 9), range(1, 3), 1.2
AGENTS: dict[str, DynaConfig] = {
    "prioritized sweeping": PrioritizedSweepingConfig(n=5, alpha=0.5, theta=1e-4),
    "Dyna-Q": DynaQConfig(n=5, alpha=0.5),
}
# Planning updates by the maze's size, in the order of AGENTS.
ANCHORS = {
    1: (790, 5620),
    2: (6300, 29_600),
    3: (21_500, 69_800),
    4: (65_900, 119_000),
    5: (96_000, 218_000),
}
ANCHOR_RUNS = 10  # assumed: the anchors do not say
CELLS = sum(cell != "#" for row in GRIDS["dyna_maze"].layouts[0] for cell in row)  # no walls


def measure(world: WorldTable, agent: str, seeds: range) -> np.ndarray:
    """Planning updates and real steps until the greedy way is within 1.2 of the shortest one, [R,
    2]. It is looked at after each episode, before the first one too."""
    limit = int(NEAR * shortest_path(world))
    found = []
    for seed in seeds:
        run, arrived = until_greedy(world, AGENTS[agent], seed, limit)
        if not arrived:
            raise RuntimeError(f"{agent} did not find the way in {run.steps:,} steps, seed {seed}.")
        found.append((run.updates, run.steps))
    return np.array(found, np.float64)


def make(job: Job) -> None:
    """Run, draw, compare."""
    seeds, sizes = job.seeds(RUNS), QUICK_SIZES if job.quick else SIZES
    worlds = [maze("dyna_maze", size) for size in sizes]
    panels: dict[str, list[plots.Curve]] = {"planning updates": [], "real steps": []}
    for place, agent in enumerate(AGENTS):
        runs = np.stack([measure(world, agent, seeds) for world in worlds], 1)  # [R, N, 2]
        for i, curves in enumerate(panels.values()):
            curve = plots.mean_curve(agent, np.array(sizes), runs[..., i], colour=COLOUR[agent])
            curves.append(curve)
        for column, size in enumerate(sizes):
            if size in ANCHORS:
                what = f"planning updates, maze x{size}, {agent}"
                anchor = ANCHORS[size][place]
                job.check(mean_check(what, runs[:, column, 0], anchor, ANCHOR_RUNS))
    label = "refinement of the maze, and its cells"
    made, axes = draw_panels(panels, [(label, title) for title in panels])
    for panel, (title, curves) in zip(axes, panels.items(), strict=True):
        panel.set_title(f"{title} until the way is short")
        panel.set_yscale("log")
        panel.set_xticks(list(sizes), [f"x{size}\n{CELLS * size**2}" for size in sizes])
        for curve in curves:
            panel.plot(curve.x, curve.y, "o", color=curve.colour, markersize=4)
    note = "Dyna maze; greedy way within 1.2 of the shortest; n=5, alpha .5, theta 1e-4, "
    job.save(made, panels, f"{note}epsilon .1. Mean and 95% band,")
