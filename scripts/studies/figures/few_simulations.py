"""How MuZero learns from two simulations a decision: Gumbel search beside pUCT.

Two visits say little of two actions and next to nothing of nine. Gumbel search learns from the
values that it found and from what the network says of the rest, pUCT from the visits alone
(Danihelka et al., "Policy improvement by planning with Gumbel", 2022).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agents.run.cli import train_command
from scripts.studies.figures.curves import read
from scripts.studies.figures.job import Job, draw_panels
from worldmodel import plots
from worldmodel.config import RunError
from worldmodel.plots import COLOURS, Curve

SIMULATIONS, EVALUATIONS = 2, 10
# title -> words, steps, steps of the quick form
TASKS = {
    "CartPole-v1": ("experiment=gumbel_muzero eval_episodes=10", 10_000, 1_000),
    "tic-tac-toe, against perfect play": ("experiment=tic_tac_toe", 60_000, 3_000),
}
# name -> what it needs beside the words of the task
RULES = {
    "Gumbel": "agent.search.rule=gumbel",
    "pUCT": "agent.search.rule=puct agent.search.dirichlet=0.25",
}


def evaluations(folder: Path, words: str, steps: int, job: Job) -> np.ndarray:
    """Returns [EVALUATIONS] of a run's evaluations; it is trained, or goes on, where it has not all
    of them yet."""
    if not (folder / "summary.json").exists():
        given = [
            *words.split(), f"run={folder}", f"steps={steps}", f"eval_every={steps // EVALUATIONS}",
            f"agent.search.simulations={SIMULATIONS}", "final_episodes=20",
        ]  # fmt: skip
        if code := train_command(job.say, given):
            raise RunError(f"The training in '{folder}' ended with exit code {code}.")
    found = np.array([p.evaluation for p in read(folder).points])
    return found[np.isfinite(found)][:EVALUATIONS]


def make(job: Job) -> None:
    """Train all, draw their evaluations."""
    seeds, panels, trained = job.seeds(3), {}, Path(job.settings.out, f"{job.name}_runs")
    job.files.append(trained)
    for title, (words, *lengths) in TASKS.items():
        steps = lengths[job.quick]
        x = np.arange(1, EVALUATIONS + 1) * (steps // EVALUATIONS)
        panels[title] = curves = list[Curve]()
        for (name, rule), colour in zip(RULES.items(), COLOURS, strict=False):
            runs = []
            for seed in seeds:
                place = trained / f"{title.split(',')[0]}-{name}-{seed}"
                runs.append(evaluations(place, f"{words} {rule} seed={seed}", steps, job))
            curves.append(plots.mean_curve(name, x, runs, colour=colour))
            last = ", ".join(f"{run[-1]:.2f}" for run in runs)
            job.say(f"  {title}, {name}: at the end {last}")
    labels = [("steps", "return of an evaluation"), ("moves", "0: never loses")]
    made, _ = draw_panels(panels, labels)
    job.save(made, panels, f"MuZero, {SIMULATIONS} simulations a decision; mean and 95% band,")
