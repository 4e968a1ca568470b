"""Learned values and policy on the grid, as they come and as the world changes: films and ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.dyna import DynaConfig, DynaQConfig, DynaQPlusConfig
from agents.dyna.experiment import Experiment
from agents.studies.figures.job import Job, chunks
from worldmodel import plots
from worldmodel.envs.grid import GRIDS, GridWorld

# Moments in real steps: often where much happens.
EARLY = (*range(0, 900, 60), *range(900, 2000, 100), 2000)
CHANGE = (*range(0, 1000, 100), *range(1000, 1600, 50), *range(1600, 3001, 100))


@dataclass(frozen=True)
class Snapshot:
    """An agent's mind at one moment: values [rows, columns], NaN for walls; the best moves, bool
    [rows, columns, 4], none where nothing is known; the steps and the rewards so far."""

    values: np.ndarray
    moves: np.ndarray
    phase: int
    steps: int
    rewards: float


def measure(
    maze: str, agent: DynaConfig, seed: int, moments: Sequence[int]
) -> tuple[GridWorld, list[Snapshot]]:
    """One run's snapshots at each moment, in real steps."""
    grid = GridWorld(GRIDS[maze])
    run, found = Experiment(grid.table(), agent, seed), []
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
    seed = job.seeds(1)[0]
    plus = DynaQPlusConfig(n=50, alpha=0.5, kappa=1e-3)
    for maze, agent, moments in (
        ("dyna_maze", DynaQConfig(n=10), EARLY),
        ("blocking_maze", plus, CHANGE),
    ):
        name = "Dyna-Q" if maze == "dyna_maze" else "Dyna-Q+"
        few = moments[:: len(moments) // 2] if job.quick else moments
        grid, found = measure(maze, agent, seed, few)
        note = f"{name} in the {maze.replace('_', ' ')}, n={agent.n}, alpha {agent.alpha:g}"
        film(job, maze, grid, found, f"{note}; seed {seed}.")
        write(job, maze, found)


def film(job: Job, maze: str, grid: GridWorld, found: list[Snapshot], note: str) -> None:
    """The GIF of all snapshots, and the PNG of the last one (of the last before a change, too)."""
    top = float(np.nanmax([shot.values for shot in found])) or 1.0
    shots = [shot for i, shot in enumerate(found) if _stays(found, i)]
    made, axes = plots.figure(width=5.6, height=4.4)
    show = _shower(axes[0][0], grid, found, top)
    show(len(found) - 1)
    bar = made.colorbar(axes[0][0].images[0], ax=axes[0][0], shrink=0.8)
    bar.set_label("value of the best action")
    plots.caption(made, note)
    job.files.append(plots.animate(made, job.path("gif", maze), len(found), show, dpi=70))
    plots.close(made)
    made, axes = plots.figure(columns=len(shots), width=5.6, height=4.2)
    for panel, shot in zip(axes[0], shots, strict=True):
        _shower(panel, grid, [shot], top)(0)
    bar = made.colorbar(axes[0][-1].images[0], ax=axes[0][-1], shrink=0.8)
    bar.set_label("value of the best action")
    plots.caption(made, note)
    job.files.append(plots.save(made, job.path("png", maze)))


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


def _shower(
    panel: Any, grid: GridWorld, found: Sequence[Snapshot], top: float
) -> Callable[[int], None]:
    def show(i: int) -> None:
        shot = found[i]
        cells = grid.cells[shot.phase]
        marks = {
            (int(row), int(column)): str(cells[row, column])
            for row, column in np.argwhere(np.isin(cells, ("S", "G")))
        }
        panel.clear()
        title = f"after {shot.steps:,} real steps, goal reached {shot.rewards:,.0f} times"
        plots.draw_grid(panel, shot.values, shot.moves, marks, title, (0.0, top))

    return show
