"""Learned values and policy on the grid, as they come and as the world changes: films and ends."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from agents.dyna import DynaConfig, DynaQConfig, DynaQPlusConfig
from agents.dyna.experiment import Experiment
from scripts.studies.figures.job import Job, chunks
from worldmodel import plots
from worldmodel.envs.grid import GRIDS, GridWorld


@dataclass(frozen=True)
class Film:
    """Who is filmed where. begin: episodes before the first moment; moments: real steps from there
    on, often where much happens."""

    maze: str
    name: str
    agent: DynaConfig
    begin: int
    moments: tuple[int, ...]


FILMS = (
    Film("dyna_maze", "Dyna-Q", DynaQConfig(n=10), 1, (*range(0, 200, 12), *range(200, 901, 70))),
    Film(
        "blocking_maze",
        "Dyna-Q+",
        DynaQPlusConfig(n=50, alpha=0.5, kappa=1e-3),
        0,
        (*range(100, 1000, 100), *range(1000, 1600, 50), *range(1600, 3001, 200)),
    ),
)


@dataclass(frozen=True)
class Snapshot:
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
    if film.begin:
        run.advance(episodes=film.begin)
    moments = film.moments[:: len(film.moments) // 2] if quick else film.moments
    for more in chunks(np.array(moments)):
        run.advance(more)
        found.append(snapshot(grid, run))
    return grid, found


def snapshot(grid: GridWorld, run: Experiment) -> Snapshot:
    """What a run believes now."""
    q = run.q.reshape(grid.height, grid.width, 4)
    cells = grid.cells[run.phase]
    best = q.max(-1)
    # Where all actions are worth the same there is no best one to show.
    moves = (q == best[..., None]) & (best > q.min(-1))[..., None]
    closed = np.isin(cells, ("#", "G", "H"))
    moves[closed] = False
    values = np.where(cells == "#", np.nan, best)
    return Snapshot(values, moves, run.phase, run.steps, float(run.rewards.sum()))


def make(job: Job) -> None:
    """One run of each agent, filmed."""
    seed = job.seeds(1, most=1)[0]
    for film in FILMS:
        grid, found = measure(film, seed, job.quick)
        agent, maze = film.agent, film.maze.replace("_", " ")
        note = f"{film.name} in the {maze}, n={agent.n}, alpha {agent.alpha:g}; seed {seed}."
        draw(job, film.maze, grid, found, note)
        write(job, film.maze, found)


def draw(job: Job, maze: str, grid: GridWorld, found: list[Snapshot], note: str) -> None:
    """The GIF of all snapshots, and the PNG of the last one (of the last before a change, too)."""
    top = float(np.nanmax([shot.values for shot in found])) or 1.0
    for path, shots in (
        (job.path("gif", maze), found),
        (job.path("png", maze), [shot for i, shot in enumerate(found) if _stays(found, i)]),
    ):
        panels = 1 if path.suffix == ".gif" else len(shots)
        made, axes = plots.figure(columns=panels, width=5.6, height=4.0)
        for panel, shot in zip(axes[0], shots, strict=False):
            _show(panel, grid, shot, top)
        bar = made.colorbar(axes[0][-1].images[0], ax=axes[0][-1], shrink=0.85)
        bar.set_label("value of the best action")
        plots.caption(made, note)
        if path.suffix == ".gif":
            first = axes[0][0]
            frames = [partial(_show, first, grid, shot, top) for shot in found]
            plots.animate(made, path, frames, dpi=70)
            plots.close(made)
        else:
            plots.save(made, path)
        job.files.append(path)


def write(job: Job, maze: str, found: list[Snapshot]) -> None:
    """Every cell at every moment, walls left out."""
    rows = [
        (shot.steps, shot.phase, row, column, value, *shot.moves[row, column].astype(int))
        for shot in found
        for (row, column), value in np.ndenumerate(shot.values)
        if not np.isnan(value)
    ]
    names = ("steps", "phase", "row", "column", "value", "up", "right", "down", "left", "seeds")
    told = job.seeds_told()
    table = [(*row, told) for row in rows]
    job.files.append(plots.write_table(job.path("csv", maze), names, table))


def _stays(found: list[Snapshot], i: int) -> bool:
    """Whether a snapshot is the last of its phase."""
    return i == len(found) - 1 or found[i + 1].phase != found[i].phase


def _show(panel: Any, grid: GridWorld, shot: Snapshot, top: float) -> None:
    cells = grid.cells[shot.phase]
    marks = {
        (int(row), int(column)): str(cells[row, column])
        for row, column in np.argwhere(np.isin(cells, ("S", "G")))
    }
    panel.clear()
    title = f"after {shot.steps:,} real steps, goals reached: {shot.rewards:,.0f}"
    plots.draw_grid(panel, shot.values, shot.moves, marks, title, (0.0, top))
