"""Figures: `scripts/plot.py figure=NAME` runs, draws PNG and CSV, and compares with anchors.

A figure is a module with `make(job)`; see scripts.studies.figures. `curves` and `decision` draw
runs that are there already, and have settings of their own; `all` leaves them out.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from scripts.studies.bench import split_choice
from scripts.studies.figures.job import Job, Settings
from worldmodel import config, progress

OF_RUNS = ("curves", "decision")  # of runs that are there already, with settings of their own
# name -> module of scripts.studies.figures, imported only when its name is asked for.
FIGURES: dict[str, str] = {
    "dyna_maze": "dyna_maze",
    "changing_mazes": "changing_mazes",
    "prioritized_sweeping": "sweeping",
    "speed_up": "speed_up",
    "model_error": "model_error",
    "dyna_2": "obstacle",
    "updates": "updates",
    "values": "values",
    "doubt": "doubt",
    "model_bias": "model_bias",
    "few_simulations": "few_simulations",
}


def plot_command(say: Callable[[str], None], arguments: Sequence[str]) -> int:
    """Draw the figure that the words ask for, or all of them; the process's exit code."""

    def work() -> int:
        name, rest = split_choice("figure", arguments, ["all", *OF_RUNS, *FIGURES])
        if name in OF_RUNS:
            of: Any = importlib.import_module(f"scripts.studies.figures.{name}")
            say("\n".join(map(str, of.make(config.from_cli(of.Settings, rest)))))
            return 0
        settings = config.from_cli(Settings, rest)
        for one in FIGURES if name == "all" else [name]:
            make_figure(one, settings, say)
        return 0

    return config.guarded(work, say)


def make_figure(name: str, settings: Settings, say: Callable[[str], None]) -> Job:
    """Make one figure; the job, with its files."""
    module: Any = importlib.import_module(f"scripts.studies.figures.{FIGURES[name]}")
    job, began = Job(name, settings, say), time.perf_counter()
    say(f"{name}:")
    with progress.step(f"drawing {name}"):
        module.make(job)
    say(f"  {job.seeds_text}; {time.perf_counter() - began:.1f} s")
    for path in job.files:
        say(f"  {path}")
    return job
