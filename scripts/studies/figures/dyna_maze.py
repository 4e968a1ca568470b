"""Planning pays: episodes of the Dyna maze get short with few real steps (figure 8.2 of the book).

The same runs three times: by episodes, by real steps, and by changes of values, which planning
multiplies.
"""

from __future__ import annotations

import numpy as np

from agents.dyna import DynaQConfig
from agents.dyna.exact import expected_steps
from agents.dyna.experiment import Experiment
from scripts.studies.figures.job import (
    COLOUR,
    DOTTED,
    Check,
    Job,
    draw_panels,
    drawn_check,
    maze,
    mean_check,
)
from worldmodel import plots, progress

RUNS, EPISODES, STEPS = 100, 50, 6000
# n: episode whose mean is within 20 steps first; steps over 50 episodes. 30 runs.
ANCHORS = {0: (28, 4707), 5: (6, 1831), 50: (3, 1646)}
LINES = {
    0: ("n=0 (Q-learning)", COLOUR["Q-learning"], "-"),
    5: ("n=5", COLOUR["Dyna-Q"], "--"),
    50: ("n=50", COLOUR["Dyna-Q"], "-"),
}
LABELS = (
    ("episode", "steps per episode"),
    ("real steps", "goals reached so far"),
    ("changes of values, planned and real", "goals reached so far"),
)


def measure(n: int, seeds: range, episodes: int, steps: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Steps of each episode [R, episodes]; goals reached by each of the 200 moments of `moments`
    [R, 200]; changes of values for each real step."""
    world, lengths, goals = maze("dyna_maze"), [], []
    for seed in progress.each(seeds, "runs"):
        run = Experiment(world, DynaQConfig(n=n), seed).advance(episodes=episodes)
        lengths.append(run.episode_steps)
        run.advance(max(0, steps - run.steps))
        goals.append(np.searchsorted(np.cumsum(run.episode_steps), moments(steps), side="right"))
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
    panels: dict[str, list[plots.Curve]] = {}
    for n, (name, colour, style) in LINES.items():
        lengths, goals, each = measure(n, seeds, episodes, steps)
        for title, at, runs in (
            ("by episodes", np.arange(1, episodes + 1), lengths),
            ("by real steps", x, goals),
            ("by changes of values", x * each, goals),
        ):
            curve = plots.mean_curve(name, at, runs, colour=colour, style=style)
            panels.setdefault(title, []).append(curve)
        compare(job, n, lengths)
    made, axes = draw_panels(panels, LABELS, width=4.3)
    axes[0].set_yscale("log")
    axes[0].axhline(14, **DOTTED)
    axes[2].set_xscale("log")
    axes[2].set_xlim(left=100)
    note = "Dyna maze; dotted: the shortest way, 14 steps; alpha .1, gamma .95, epsilon .1. "
    job.save(made, panels, note + "Mean and 95% band,")


def compare(job: Job, n: int, lengths: np.ndarray) -> None:
    """The book's curves in numbers: how soon episodes are short, and how long all of them are."""
    first, total = ANCHORS[n]
    if n == 0:
        world, one = maze("dyna_maze"), lengths[:, 0]
        walk = expected_steps(world, np.full((world.states, world.actions), 1 / world.actions))
        job.say(f"  first episode, exactly expected: {walk:.1f} steps")
        error = float(plots.standard_error(one))
        job.check(Check("steps of the first episode", float(one.mean()), error, 868.7, 0.0))
    if lengths.shape[1] == EPISODES:  # as the anchors have them
        job.check(
            mean_check(f"steps over 50 episodes, n={n}", lengths.sum(1), total, 30),
            drawn_check(f"first episode within 20 steps, n={n}", lengths, _first_short, first, 30),
        )


def _first_short(lengths: np.ndarray) -> float:
    """The first episode whose mean [R, episodes] is at most 20 steps; one too many if none is."""
    short = np.flatnonzero(lengths.mean(0) <= 20)
    return float(short[0] + 1) if len(short) else float(lengths.shape[1] + 1)
