"""Grid worlds: the mazes of Sutton and Barto's chapter on planning, a maze of corridors and a
slippery bridge.

A layout is a list of strings: `.` floor, `#` wall, `S` start, `G` goal, `H` pit. Goals and pits end
the episode. States are numbered row by row, walls included; actions are 0 up, 1 right, 2 down and
3 left. A step into a wall or over the edge leaves the agent where it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import gymnasium
import numpy as np
from gymnasium import spaces

from .config import EnvConfig, EnvError, unknown
from .table import Outcome, WorldTable, from_outcomes, in_turn
from .wrappers import Guard, Repeat

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left, in rows and columns
SYMBOLS = ".#SGH"
PICTURE = 288  # pixels of a picture's longer side, about
COLOURS = {
    "outside": (120, 126, 138), "floor": (246, 244, 239), "line": (226, 221, 211),
    "wall": (62, 68, 82),
    "start": (187, 212, 238), "goal": (86, 168, 116), "flag": (255, 255, 255),
    "pit": (36, 36, 44), "ring": (196, 84, 72), "agent": (232, 131, 42), "rim": (140, 70, 10),
}  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """A named world: its layouts in turn, and the steps after which each begins.

    slip: probability of going to one of the two sides instead, half for each.
    goal, pit: rewards of arriving there; every other step is worth `step`.
    """

    layouts: tuple[tuple[str, ...], ...]
    change: tuple[int, ...] = (0,)
    slip: float = 0.0
    goal: float = 1.0
    pit: float = -1.0
    step: float = 0.0


MAZE = (
    ".......#G",
    "..#....#.",
    "S.#....#.",
    "..#......",
    ".....#...",
    ".........",
)  # fmt: skip
OPEN_RIGHT = (
    "........G",
    ".........",
    ".........",
    "########.",
    ".........",
    "...S.....",
)  # fmt: skip
OPEN_LEFT = (*OPEN_RIGHT[:3], ".########", *OPEN_RIGHT[4:])
OPEN_BOTH = (*OPEN_RIGHT[:3], ".#######.", *OPEN_RIGHT[4:])
CORRIDORS = (
    "S..#.....",
    "##.#.###.",
    ".#...#.#.",
    ".#####.#.",
    "...#...#.",
    ".###.#.#.",
    "...#.#...",
    ".#.#.####",
    ".#......G",
)  # fmt: skip
BRIDGE = (
    ".........",
    ".........",
    "..HHHHH..",
    "S.......G",
    "..HHHHH..",
    ".........",
    ".........",
)  # fmt: skip

# Dyna maze: figure 8.2 of "Reinforcement Learning: An Introduction", 2nd edition; blocking and
# shortcut maze: figures 8.4 and 8.5.
GRIDS = {
    "dyna_maze": Grid((MAZE,)),
    "blocking_maze": Grid((OPEN_RIGHT, OPEN_LEFT), (0, 1000)),
    "shortcut_maze": Grid((OPEN_LEFT, OPEN_BOTH), (0, 3000)),
    "corridor_maze": Grid((CORRIDORS,)),
    "slippery_grid": Grid((BRIDGE,), slip=0.2),
}


def refine(layout: Sequence[str], times: int) -> tuple[str, ...]:
    """The same maze with every cell divided into times x times; a goal becomes as many goals, and
    the start the first cell of its block (example 8.4 of the book)."""
    rows = []
    for row in layout:
        fine = "".join(cell * times for cell in row)
        rows += [fine.replace("S" * times, "S" + "." * (times - 1))]
        rows += [fine.replace("S", ".")] * (times - 1)
    return tuple(rows)


class GridWorld(gymnasium.Env[Any, Any]):
    """A grid that may change once or more after so many steps, counted over all episodes.

    grid: layouts, rewards, slip. change_at: "step", or "episode" where a change waits for the next
    reset. A reset with a seed starts the world anew, its first layout included; one without goes
    on. Raises EnvError for layouts that are no grid with one start and at least one goal.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012

    def __init__(self, grid: Grid, change_at: str = "step", render_mode: str | None = None) -> None:
        if change_at not in ("step", "episode"):
            raise unknown("moment of change", change_at, ("step", "episode"))
        if not 0 <= grid.slip < 1:
            raise EnvError(f"slip is {grid.slip}, but must lie in [0, 1).")
        self.grid, self.render_mode = grid, render_mode
        self.cells = np.stack([_cells(layout) for layout in grid.layouts])  # [W, rows, columns]
        self.height, self.width = self.cells.shape[1:]
        self.starts = [int(np.flatnonzero(cells == "S")[0]) for cells in self.cells]
        self._at_episode = change_at == "episode"
        self._change = in_turn([self._table(w) for w in range(len(grid.layouts))], grid.change)
        self.observation_space = spaces.Discrete(self.height * self.width)
        self.action_space = spaces.Discrete(len(MOVES))
        self.clock = 0  # steps so far, over all episodes
        self.phase = 0
        self.state = self.starts[0]
        self.goes_on = False  # whether a reset goes on with what earlier episodes left: the clock

    def table(self) -> WorldTable:
        """The exact transitions, changes included."""
        return self._change._replace(at_episode=self._at_episode)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.clock = 0
        self.goes_on = len(self.cells) > 1
        self._settle()
        self.state = self.starts[self.phase]
        return self.state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        if not self._at_episode:
            self._settle()
        outcomes = self.outcomes(self.phase, self.state, int(action))
        pick = 0
        if len(outcomes) > 1:
            draw, total = self.np_random.random(), np.cumsum([o[0] for o in outcomes])
            pick = min(int(np.searchsorted(total, draw, side="right")), len(outcomes) - 1)
        _, self.state, reward, terminal = outcomes[pick]
        self.clock += 1
        return self.state, reward, terminal, False, {}

    def outcomes(self, phase: int, state: int, action: int) -> list[Outcome]:
        """What an action may lead to."""
        slip = self.grid.slip
        if slip == 0:
            return [self._move(phase, state, action, 1.0)]
        turns = ((0, 1 - slip), (-1, slip / 2), (1, slip / 2))
        return [self._move(phase, state, (action + t) % 4, chance) for t, chance in turns]

    def render(self) -> Any:
        """The grid and the agent in the middle of a square, uint8 [H, H, 3]."""
        picture = draw(self.cells[self.phase], self.state)
        # Images of agents and films are square, and cells should stay so when they are resized.
        height, width = picture.shape[:2]
        side = max(height, width)
        square = np.empty((side, side, 3), np.uint8)
        square[:] = COLOURS["outside"]
        top, left = (side - height) // 2, (side - width) // 2
        square[top : top + height, left : left + width] = picture
        return square

    def _settle(self) -> None:
        """The phase that belongs to the clock."""
        self.phase = int(np.searchsorted(self._change.change, self.clock, side="right")) - 1

    def _move(self, phase: int, state: int, action: int, chance: float) -> Outcome:
        cells = self.cells[phase]
        row, column = divmod(state, self.width)
        if cells[row, column] in "GH":  # an ended episode stays where it is
            return chance, state, 0.0, True
        to_row, to_column = row + MOVES[action][0], column + MOVES[action][1]
        inside = 0 <= to_row < self.height and 0 <= to_column < self.width
        if inside and cells[to_row, to_column] != "#":
            row, column = to_row, to_column
        rewards = {"G": self.grid.goal, "H": self.grid.pit}
        cell = str(cells[row, column])
        after = row * self.width + column
        return chance, after, rewards.get(cell, self.grid.step), cell in rewards

    def _table(self, phase: int) -> WorldTable:
        start = (self.cells[phase] == "S").ravel().astype(np.float64)
        return from_outcomes(start.size, len(MOVES), lambda s, a: self.outcomes(phase, s, a), start)


def build(config: EnvConfig) -> gymnasium.Env[Any, Any]:
    """The grid of `config.id`. kwargs: resolution (every cell divided into so many by so many),
    slip, change_at, and change_after (steps before the layout changes, where it does).

    Raises EnvError for unknown names and impossible numbers.
    """
    if config.id not in GRIDS:
        raise unknown("grid", config.id, GRIDS)
    grid, known = GRIDS[config.id], ("resolution", "slip", "change_at", "change_after")
    given: Mapping[str, Any] = config.kwargs
    for name in given:
        if name not in known or (name.startswith("change") and len(grid.layouts) == 1):
            raise unknown(f"argument of '{config.id}'", name, known)
    times = _integer("resolution", given.get("resolution", 1), 1)
    after = _integer("change_after", given.get("change_after", grid.change[-1]), 0)
    changes = len(grid.layouts) > 1 and after > 0
    layouts = grid.layouts if changes else grid.layouts[-1:]  # after 0 steps: changed already
    made = replace(
        grid,
        layouts=tuple(refine(layout, times) for layout in layouts),
        change=(0, after) if changes else (0,),
        slip=float(given.get("slip", grid.slip)),
    )
    mode = "rgb_array" if config.pixels else None
    env = GridWorld(made, given.get("change_at", "step"), mode)
    return Repeat(Guard(env), config.action_repeat)


def draw(cells: np.ndarray, state: int | None = None, side: int = PICTURE) -> np.ndarray:
    """A picture of a layout, uint8 [H, W, 3], and of the agent where a state is given.

    cells: [rows, columns] of layout symbols. side: pixels of the longer side, about.
    """
    rows, columns = cells.shape
    size = max(4, side // max(rows, columns))
    image = np.empty((rows * size, columns * size, 3), np.uint8)
    image[:] = COLOURS["floor"]
    for (row, column), cell in np.ndenumerate(cells):
        _draw_cell(image, str(cell), row * size, column * size, size)
    if state is not None:
        row, column = divmod(state, columns)
        centre = (int((column + 0.5) * size), int((row + 0.5) * size))
        radius = max(3, int(size * 0.32))
        cv2.circle(image, centre, radius, COLOURS["agent"], -1, cv2.LINE_AA)
        if size >= 12:
            cv2.circle(image, centre, radius, COLOURS["rim"], max(1, size // 20), cv2.LINE_AA)
    return image


def _draw_cell(image: np.ndarray, cell: str, top: int, left: int, size: int) -> None:
    """One cell with its line on the grid."""
    block = image[top : top + size, left : left + size]
    block[:] = COLOURS[{"#": "wall", "S": "start", "G": "goal", "H": "pit"}.get(cell, "floor")]
    if cell != "#" and size >= 8:
        block[-1:], block[:, -1:] = COLOURS["line"], COLOURS["line"]
    if size < 12:
        return
    middle = (left + size // 2, top + size // 2)
    if cell == "H":
        cv2.circle(image, middle, size // 3, COLOURS["ring"], max(1, size // 12), cv2.LINE_AA)
    if cell == "G":  # a flag on its pole
        pole, width = left + size // 3, max(1, size // 14)
        high, low = top + size // 5, top + size * 4 // 5
        cv2.line(image, (pole, high), (pole, low), COLOURS["flag"], width, cv2.LINE_AA)
        tip = (left + size * 3 // 4, top + size * 3 // 8)
        flag = np.array([(pole, high), tip, (pole, top + size * 11 // 20)], np.int32)
        cv2.fillPoly(image, [flag], COLOURS["flag"], cv2.LINE_AA)


def _cells(layout: Sequence[str]) -> np.ndarray:
    """Symbols [rows, columns], checked."""
    lengths = {len(row) for row in layout}
    text = "".join(layout)
    if isinstance(layout, str) or len(lengths) != 1 or set(text) - set(SYMBOLS):
        raise EnvError(
            f"A layout has rows of one length, made of the symbols {SYMBOLS}; given: {layout}."
        )
    if text.count("S") != 1 or "G" not in text:
        raise EnvError(f"A layout has one start S and at least one goal G; given: {layout}.")
    return np.array([list(row) for row in layout])


def _integer(name: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or value < least:
        raise EnvError(f"{name} is {value!r}, but must be a whole number of at least {least}.")
    return value
