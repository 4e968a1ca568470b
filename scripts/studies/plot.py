"""Figures: `scripts/plot.py figure=NAME` runs, draws PNG and CSV, and compares with anchors.

A figure is a module with `make(job)`; see scripts.studies.figures.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from scripts.studies.figures.job import Job, Settings
from worldmodel import config

# name -> module; a module is imported only when its name is asked for.
FIGURES: dict[str, str] = {
    "dyna_maze": "scripts.studies.figures.dyna_maze",
    "changing_mazes": "scripts.studies.figures.changing_mazes",
    "prioritized_sweeping": "scripts.studies.figures.sweeping",
    "speed_up": "scripts.studies.figures.speed_up",
    "model_error": "scripts.studies.figures.model_error",
    "dyna_2": "scripts.studies.figures.obstacle",
    "updates": "scripts.studies.figures.updates",
    "values": "scripts.studies.figures.values",
}


def plot_command(say: Callable[[str], None], arguments: Sequence[str]) -> int:
    """Draw the figure that the words ask for, or all of them; the process's exit code."""
    return config.guarded(lambda: _plot(list(arguments), say), say)


def _plot(words: list[str], say: Callable[[str], None]) -> int:
    asked = [word.partition("=")[2] for word in words if word.startswith("figure=")]
    if len(asked) != 1:
        raise config.ConfigError(
            f"Say what to draw: figure=NAME, once. Known: all, {', '.join(sorted(FIGURES))}."
        )
    if asked[0] not in (*FIGURES, "all"):
        raise config.ConfigError(config.unknown("figure", asked[0], (*FIGURES, "all")))
    rest = [word for word in words if not word.startswith("figure=")]
    settings = config.from_cli(Settings, rest)
    for name in FIGURES if asked[0] == "all" else asked:
        make_figure(name, settings, say)
    return 0


def make_figure(name: str, settings: Settings, say: Callable[[str], None]) -> Job:
    """Make one figure; the job, with its files and comparisons."""
    module: Any = importlib.import_module(FIGURES[name])
    job, began = Job(name, settings, say), time.perf_counter()
    say(f"{name}:")
    module.make(job)
    say(f"  {job.seeds_told()}; {time.perf_counter() - began:.1f} s")
    for path in job.files:
        say(f"  {path}")
    return job
