"""Learned values and policy on the grid, as they come and as the world changes: films and ends."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from agents.dyna import DynaConfig, DynaQConfig, DynaQPlusConfig
from agents.dyna.experiment import Experiment
from scripts.studies.figures.job import Job
from worldmodel import plots
from worldmodel.envs.grid import GRIDS, GridWorld


class Film(NamedTuple):
    """Who is filmed where. episodes: before the first moment; moments: real steps from there on,
    often where much happens."""

    maze: str
    name: str
    agent: DynaConfig
    episodes: int
    moments: tuple[int, ...]


FILMS = (
    Film("dyna_maze", "Dyna-Q", DynaQConfig(n=10), 1, (*range(0, 200, 12), *range(200, 901, 70))),
    Film(
        "blocking_maze", "Dyna-Q+", DynaQPlusConfig(n=50, alpha=0.5, kappa=1e-3), 0,
        (*range(100, 1000, 100), *range(1000, 1600, 50), *range(1600, 3001, 200)),
    ),
)  # fmt: skip


class Snapshot(NamedTuple):
    """An agent's mind at one moment: values [rows, columns], NaN for walls; the best moves, bool
    [rows, columns, 4], none where nothing is known; the steps and the rewards so far."""

    values: np.ndarray
    moves: np.ndarray
    phase: int
    steps: int
    rewards: float


def measure(film: Film, seed: int, quick: bool = False) -> tuple[GridWorld, list[Snapshot]]:
    """One run's snapshots, before its first step and at each moment."""
    grid = GridWorld(GRIDS[film.maze])
    run = Experiment(grid.table(), film.agent, seed)
    found = [snapshot(grid, run)]
    if film.episodes:
        run.advance(episodes=film.episodes)
    moments = film.moments[:: len(film.moments) // 2] if quick else film.moments
    for more in np.diff(moments, prepend=0):
        found.append(snapshot(grid, run.advance(int(more))))
    return grid, found


def snapshot(grid: GridWorld, run: Experiment) -> Snapshot:
    """What a run believes now."""
    q, cells = run.q.reshape(grid.height, grid.width, 4), grid.cells[run.phase]
    best = q.max(-1)
    # Where all actions are worth the same there is no best one to show.
    moves = (q == best[..., None]) & (best > q.min(-1))[..., None]
    moves[np.isin(cells, ("#", "G", "H"))] = False
    values = np.where(cells == "#", np.nan, best)
    return Snapshot(values, moves, run.phase, run.steps, float(run.rewards.sum()))


def make(job: Job) -> None:
    """One run of each agent, filmed."""
    seed = job.seeds(1, most=1)[0]
    for film in FILMS:
        grid, found = measure(film, seed, job.quick)
        agent, maze = film.agent, film.maze.replace("_", " ")
        note = f"{film.name} in the {maze}, n={agent.n}, alpha {agent.alpha:g}; seed {seed}."
        ends = [
            shot
            for shot, after in zip(found, [*found[1:], None], strict=True)
            if after is None or after.phase != shot.phase
        ]
        top = float(np.nanmax([shot.values for shot in found])) or 1.0
        made, (panel,) = _panels(grid, found[:1], top, note)
        frames = [partial(_show, panel, grid, shot, top) for shot in found]
        job.files.append(plots.animate(made, job.path("gif", film.maze), frames, dpi=70))
        plots.close(made)
        made, _ = _panels(grid, ends, top, note)
        job.files.append(plots.save(made, job.path("png", film.maze)))
        write(job, film.maze, found)


def write(job: Job, maze: str, found: list[Snapshot]) -> None:
    """Every cell at every moment, walls left out."""
    names = ("steps", "phase", "row", "column", "value", "up", "right", "down", "left", "seeds")
    table = [
        (shot.steps, shot.phase, *cell, value, *shot.moves[cell].astype(int), job.seeds_text)
        for shot in found
        for cell, value in np.ndenumerate(shot.values)
        if not np.isnan(value)
    ]
    job.files.append(plots.write_table(job.path("csv", maze), names, table))


def _panels(grid: GridWorld, shots: list[Snapshot], top: float, note: str) -> tuple[Any, Any]:
    """A figure with a panel for each snapshot."""
    made, axes = plots.figure(len(shots), width=5.6, height=4.0)
    for panel, shot in zip(axes[0], shots, strict=True):
        _show(panel, grid, shot, top)
    bar = made.colorbar(axes[0][-1].images[0], ax=axes[0][-1], shrink=0.85)
    bar.set_label("value of the best action")
    plots.caption(made, note)
    return made, axes[0]


def _show(panel: Any, grid: GridWorld, shot: Snapshot, top: float) -> None:
    cells = grid.cells[shot.phase]
    marks = {
        (int(row), int(column)): str(cells[row, column])
        for row, column in np.argwhere(np.isin(cells, ("S", "G")))
    }
    panel.clear()
    title = f"after {shot.steps:,} real steps, goals reached: {shot.rewards:,.0f}"
    plots.draw_grid(panel, shot.values, shot.moves, marks, title, (0.0, top))
