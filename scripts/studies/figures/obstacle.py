"""An obstacle appears: a second memory that is planned anew for each episode (Dyna-2) against one
memory that must unlearn (Dyna-Q).

A room with two doors; the nearer one closes. First values are optimistic, so that all agents have
seen both doors by then, and the question is how soon they turn round.
"""

from __future__ import annotations

import numpy as np

from agents.dyna import Dyna2Config, DynaConfig, DynaQConfig
from agents.dyna.experiment import Experiment
from scripts.studies.figures.job import COLOUR, Job
from worldmodel import plots
from worldmodel.envs.grid import OPEN_BOTH, OPEN_LEFT, Grid, GridWorld

RUNS, CHANGE, STEPS, PLANNING, START = 60, 1500, 3500, 100, 1.0
AGENTS: dict[str, DynaConfig] = {
    "Dyna-Q": DynaQConfig(n=PLANNING, initial=START),
    "trajectory sampling": DynaQConfig(n=PLANNING, initial=START, select="trajectory"),
    "Dyna-2": Dyna2Config(n=PLANNING, initial=START, transient_alpha=0.5),
}
LEGEND = {
    "Dyna-Q": "Dyna-Q",
    "trajectory sampling": "Dyna-Q, planning along trajectories",
    "Dyna-2": "Dyna-2",
}


def measure(agent: str, seeds: range) -> np.ndarray:
    """The reward of every real step [R, STEPS]; the world changes after CHANGE of them."""
    world = GridWorld(Grid((OPEN_BOTH, OPEN_LEFT), (0, CHANGE))).table()
    return np.array([Experiment(world, AGENTS[agent], s).advance(STEPS).rewards for s in seeds])


def make(job: Job) -> None:
    """Run, draw."""
    seeds = job.seeds(RUNS)
    x = np.arange(0, STEPS + 1, 25)
    after = np.arange(0, 501, 5)
    titles = ("all along", "the way found again")
    panels: dict[str, list[plots.Curve]] = {title: [] for title in titles}
    for agent, name in LEGEND.items():
        rewards, colour = measure(agent, seeds), COLOUR[agent]
        sums = np.concatenate([np.zeros((len(seeds), 1)), rewards.cumsum(1)], 1)
        panels[titles[0]].append(plots.mean_curve(name, x, sums[:, x], colour=colour))
        # An episode under way when the door closes may be past it, so the first goal may be luck:
        # the second one counts.
        again = (sums[:, CHANGE + after] - sums[:, [CHANGE]] >= 2).astype(np.float64)
        panels[titles[1]].append(plots.mean_curve(name, after, again, colour=colour))
        told = [f"{name}, reward before the change {_told(sums[:, CHANGE])}"]
        for steps in (100, 300, STEPS - CHANGE):
            since = sums[:, CHANGE + steps] - sums[:, CHANGE]
            told.append(f"in {steps} steps after {_told(since)}")
        job.say("  " + ", ".join(told))
    made, axes = plots.figure(columns=2)
    plots.draw(axes[0][0], panels[titles[0]], titles[0], "real steps", "cumulative reward")
    axes[0][0].axvline(CHANGE, color="#888888", linewidth=0.9, linestyle=":")
    axes[0][0].text(CHANGE, 5, " a door closes", fontsize=9, color="#555555")
    ylabel = "share of runs with two goals since"
    plots.draw(axes[0][1], panels[titles[1]], titles[1], "real steps after the change", ylabel)
    axes[0][1].set_ylim(0, 1.02)
    note = f"Two doors, then one; n={PLANNING}, alpha .1 (Dyna-2's transient memory .5), "
    note += "gamma .95, epsilon .1, first values 1.\n"
    job.save(made, panels, f"{note}Mean and 95% band,")


def _told(runs: np.ndarray) -> str:
    return f"{runs.mean():.1f} ({float(plots.standard_error(runs)):.1f})"
