"""An obstacle appears: a second memory that is planned anew for each episode (Dyna-2) against one
memory that must unlearn (Dyna-Q).

A room with two doors; the nearer one closes. First values are optimistic, so that all agents have
seen both doors by then, and the question is how soon they turn round.
"""

from __future__ import annotations

import numpy as np

from agents.dyna import Dyna2Config, DynaConfig, DynaQConfig
from agents.dyna.experiment import cumulative_rewards
from scripts.studies.figures.job import COLOUR, Job, draw_panels, mark_change, mean_text
from worldmodel import plots
from worldmodel.envs.grid import OPEN_BOTH, OPEN_LEFT, Grid, GridWorld

RUNS, CHANGE, STEPS, PLANNING, START = 60, 1500, 3500, 100, 1.0
# agent: its name in the legend, and its settings.
AGENTS: dict[str, tuple[str, DynaConfig]] = {
    "Dyna-Q": ("Dyna-Q", DynaQConfig(n=PLANNING, initial=START)),
    "trajectory sampling": (
        "Dyna-Q, planning along trajectories",
        DynaQConfig(n=PLANNING, initial=START, select="trajectory"),
    ),
    "Dyna-2": ("Dyna-2", Dyna2Config(n=PLANNING, initial=START, transient_alpha=0.5)),
}
LABELS = (
    ("real steps", "cumulative reward"),
    ("real steps after the change", "share of runs with two goals since"),
)


def make(job: Job) -> None:
    """Run, draw."""
    seeds = job.seeds(RUNS)
    world = GridWorld(Grid((OPEN_BOTH, OPEN_LEFT), (0, CHANGE))).table()
    x, after = np.arange(0, STEPS + 1, 25), np.arange(0, 501, 5)
    titles = ("all along", "the way found again")
    panels: dict[str, list[plots.Curve]] = {title: [] for title in titles}
    for agent, (name, config) in AGENTS.items():
        sums = np.pad(cumulative_rewards(world, config, seeds, STEPS), ((0, 0), (1, 0)))
        since = sums - sums[:, [CHANGE]]
        # An episode under way when the door closes may be past it, so the first goal may be luck:
        # the second one counts.
        again = (since[:, CHANGE + after] >= 2).astype(np.float64)
        for title, at, runs in zip(titles, (x, after), (sums[:, x], again), strict=True):
            panels[title].append(plots.mean_curve(name, at, runs, colour=COLOUR[agent]))
        text = f"  {name}, reward before the change {mean_text(sums[:, CHANGE], 1)}"
        for steps in (100, 300, STEPS - CHANGE):
            text += f", in {steps} steps after {mean_text(since[:, CHANGE + steps], 1)}"
        job.say(text)
    made, axes = draw_panels(panels, LABELS)
    mark_change(axes[0], CHANGE, 5, " a door closes")
    axes[1].set_ylim(0, 1.02)
    note = f"Two doors, then one; n={PLANNING}, alpha .1 (Dyna-2's transient memory .5), "
    note += "gamma .95, epsilon .1, first values 1.\n"
    job.save(made, panels, f"{note}Mean and 95% band,")
