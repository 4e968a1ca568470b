"""Planning pays: episodes of the Dyna maze get short with few real steps (figure 8.2 of the book).

The same runs three times: by episodes, by real steps, and by changes of values, which planning
multiplies.
"""

from __future__ import annotations

import numpy as np

from agents.dyna import DynaQConfig
from agents.dyna.exact import expected_steps
from agents.dyna.experiment import Experiment
from scripts.studies.figures.job import COLOUR, Check, Job, drawn_check, mean_check
from worldmodel import plots
from worldmodel.envs.grid import GRIDS, GridWorld

RUNS, EPISODES, STEPS = 100, 50, 6000
# n: episode whose mean is within 20 steps first; steps over 50 episodes. 30 runs.
ANCHORS = {0: (28, 4707), 5: (6, 1831), 50: (3, 1646)}
LINES = {
    0: ("n=0 (Q-learning)", COLOUR["Q-learning"], "-"),
    5: ("n=5", COLOUR["Dyna-Q"], "--"),
    50: ("n=50", COLOUR["Dyna-Q"], "-"),
}


def measure(n: int, seeds: range, episodes: int, steps: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Steps of each episode [R, episodes]; goals reached by each of the 200 moments of `moments`
    [R, 200]; changes of values for each real step."""
    world = GridWorld(GRIDS["dyna_maze"]).table()
    lengths, goals = [], []
    for seed in seeds:
        run = Experiment(world, DynaQConfig(n=n), seed)
        run.advance(episodes=episodes)
        lengths.append(run.episode_steps)
        run.advance(max(0, steps - run.steps))
        ends = np.cumsum(run.episode_steps)
        goals.append(np.searchsorted(ends, moments(steps), side="right"))
        each = run.value_updates // run.steps
    return np.array(lengths), np.array(goals), each


def moments(steps: int) -> np.ndarray:
    """200 numbers of real steps, from 0 to `steps`."""
    return np.linspace(0, steps, 200).astype(np.int64)


def make(job: Job) -> None:
    """Run, draw, compare."""
    seeds = job.seeds(RUNS)
    episodes, steps = (15, 2000) if job.quick else (EPISODES, STEPS)
    x = moments(steps)
    titles = ("by episodes", "by real steps", "by changes of values")
    panels: dict[str, list[plots.Curve]] = {title: [] for title in titles}
    for n, (name, colour, style) in LINES.items():
        lengths, goals, each = measure(n, seeds, episodes, steps)
        for title, at, runs in (
            (titles[0], np.arange(1, episodes + 1), lengths),
            (titles[1], x, goals),
            (titles[2], x * each, goals),
        ):
            panels[title].append(plots.mean_curve(name, at, runs, colour=colour, style=style))
        compare(job, n, lengths)
    made, axes = plots.figure(columns=3, width=4.3)
    xlabels = ("episode", "real steps", "changes of values, planned and real")
    ylabels = ("steps per episode", "goals reached so far", "goals reached so far")
    for i, (title, curves) in enumerate(panels.items()):
        plots.draw(axes[0][i], curves, title, xlabels[i], ylabels[i])
    axes[0][0].set_yscale("log")
    axes[0][0].axhline(14, color="#888888", linewidth=0.8, linestyle=":")
    axes[0][2].set_xscale("log")
    axes[0][2].set_xlim(left=100)
    note = "Dyna maze; dotted: the shortest way, 14 steps; alpha .1, gamma .95, epsilon .1. "
    job.save(made, panels, note + "Mean and 95% band,")


def compare(job: Job, n: int, lengths: np.ndarray) -> None:
    """The book's curves in numbers: how soon episodes are short, and how long all of them are."""
    first, total = ANCHORS[n]
    if n == 0:
        world = GridWorld(GRIDS["dyna_maze"]).table()
        walk = expected_steps(world, np.full((world.states, world.actions), 1 / world.actions))
        one = lengths[:, 0]
        error = float(plots.standard_error(one))
        job.say(f"  first episode, exactly expected: {walk:.1f} steps")
        job.check(Check("steps of the first episode", float(one.mean()), error, 868.7, 0.0))
    if lengths.shape[1] < EPISODES:
        return  # other than the anchors
    job.check(
        mean_check(f"steps over 50 episodes, n={n}", lengths.sum(1), total, 30),
        drawn_check(f"first episode within 20 steps, n={n}", lengths, _first_short, first, 30),
    )


def _first_short(lengths: np.ndarray) -> float:
    """The first episode whose mean [R, episodes] is at most 20 steps; one too many if none is."""
    short = np.flatnonzero(lengths.mean(0) <= 20)
    return float(short[0] + 1) if len(short) else float(lengths.shape[1] + 1)
