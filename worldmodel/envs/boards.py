"""Board games of two players: tic-tac-toe and connect four, against oneself or an opponent.

    opponent=self   each step is a move of the player whose turn it is; the observation is seen from
                    the side of who moves next, and the reward is that of who has just moved
    otherwise       a step is a move and the answer to it; the reward is the agent's

A game is worth 1 to the winner, -1 to the loser (who has moved before, in self-play, and is not
paid again) and 0 in a draw. What may be played stands in `action_mask`, whose turn it is in
`to_play`, so that an agent knows that it plays both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from .config import EnvConfig, EnvError, unknown
from .wrappers import Guard, Repeat

CELL = 48  # pixels
COLOURS = {"floor": (246, 244, 239), "line": (150, 156, 168), "win": (86, 168, 116)}
STONES = {1: (232, 131, 42), -1: (62, 98, 168)}
OPPONENTS = ("self", "minimax", "mcts", "random")
STARTS = ("agent", "opponent", "either")
MOST_EXACT = 12  # cells of a board whose games are searched to their ends


@dataclass(frozen=True)
class Game:
    """A board, how many stones in a row win, and whether stones fall to the bottom of a column."""

    height: int
    width: int
    row: int
    falls: bool

    @property
    def moves(self) -> int:
        """How many different moves there are."""
        return self.width if self.falls else self.height * self.width


GAMES = {"tic_tac_toe": Game(3, 3, 3, False), "connect_four": Game(6, 7, 4, True)}
LINES = ((0, 1), (1, 0), (1, 1), (1, -1))


def legal(game: Game, board: np.ndarray) -> np.ndarray:
    """bool [moves] for stones [H, W] of 1, -1 and 0."""
    return board[0] == 0 if game.falls else board.ravel() == 0


def place(game: Game, board: np.ndarray, move: int, player: int) -> tuple[int, int]:
    """Put a stone on the board; where it lies."""
    if game.falls:
        row, column = int(np.flatnonzero(board[:, move] == 0)[-1]), move
    else:
        row, column = divmod(move, game.width)
    board[row, column] = player
    return row, column


def winning(game: Game, board: np.ndarray, row: int, column: int) -> list[tuple[int, int]]:
    """The cells of the line that the stone there completes; none where it does not."""
    player = board[row, column]
    for down, right in LINES:
        line = [(row, column)]
        for sign in (1, -1):
            r, c = row + sign * down, column + sign * right
            while 0 <= r < game.height and 0 <= c < game.width and board[r, c] == player:
                line.append((r, c))
                r, c = r + sign * down, c + sign * right
        if len(line) >= game.row:
            return line
    return []


class Exact:
    """Perfect play: the worth of every position, found by looking at all games from it."""

    def __init__(self, game: Game) -> None:
        if game.height * game.width > MOST_EXACT:
            raise EnvError(
                f"opponent=minimax looks at every game, too many on {game.height} x {game.width} "
                "cells. Take opponent=mcts."
            )
        self.game = game
        self._known: dict[bytes, int] = {}

    def worth(self, board: np.ndarray, player: int) -> list[int]:
        """-1, 0 or 1 of each legal move, in order, for who makes it."""
        return [self._after(board, int(m), player) for m in np.flatnonzero(legal(self.game, board))]

    def best(self, board: np.ndarray, player: int, rng: np.random.Generator) -> int:
        """One of the best moves, by chance."""
        worth = np.array(self.worth(board, player))
        moves = np.flatnonzero(legal(self.game, board))
        return int(rng.choice(moves[worth == worth.max()]))

    def _after(self, board: np.ndarray, move: int, player: int) -> int:
        after = board.copy()
        where = place(self.game, after, move, player)
        if winning(self.game, after, *where):
            return 1
        key = (after * player).tobytes()
        if key not in self._known:
            self._known[key] = -max(self.worth(after, -player), default=0)
        return self._known[key]


class BoardGame(gymnasium.Env[Any, Any]):
    """See the head of this file.

    opponent: self | minimax | mcts | random. start: who moves first where there is an opponent:
    agent | opponent | either (by chance). simulations: of opponent=mcts, for each move. alternates:
    the observation says whose turn it is; False for an agent that learns against an opponent alone.
    A move that is not legal is an EnvError.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 2}  # noqa: RUF012

    def __init__(
        self,
        game: Game,
        opponent: str = "self",
        start: str = "either",
        simulations: int = 1000,
        alternates: bool = True,
        render_mode: str | None = None,
    ) -> None:
        for what, value, known in (("opponent", opponent, OPPONENTS), ("start", start, STARTS)):
            if value not in known:
                raise unknown(what, value, known)
        if not isinstance(simulations, int) or not 1 <= simulations <= 1 << 24:
            raise EnvError(f"simulations is {simulations!r}; allowed: 1 to {1 << 24:,}.")
        self.game, self.opponent, self.start = game, opponent, start
        self.simulations, self.alternates, self.render_mode = simulations, alternates, render_mode
        self._exact = Exact(game) if opponent == "minimax" else None
        cells = game.height * game.width
        seen: dict[str, spaces.Space[Any]] = {
            "board": spaces.Box(0.0, 1.0, (2 * cells,), np.float32),
            "action_mask": spaces.Box(0, 1, (game.moves,), np.int8),
        }
        if alternates:
            seen["to_play"] = spaces.Discrete(2)
        elif opponent == "self":
            raise EnvError("opponent=self plays both sides: it needs alternates=true.")
        self.observation_space = spaces.Dict(seen)
        self.action_space = spaces.Discrete(game.moves)
        self._new()

    def _new(self) -> None:
        self.board = np.zeros((self.game.height, self.game.width), np.int8)
        self.player = 1  # who moves next
        self.line: list[tuple[int, int]] = []  # that won

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._new()
        if self.opponent != "self":
            second = self.start == "opponent"
            if self.start == "either":
                second = bool(self.np_random.integers(2))
            if second:
                self._move(self._answer())
        return self._seen(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not legal(self.game, self.board)[int(action)]:
            allowed = np.flatnonzero(legal(self.game, self.board)).tolist()
            raise EnvError(f"Move {int(action)} is not legal here; allowed: {allowed}.")
        reward, ended = self._move(int(action))
        if self.opponent != "self" and not ended:
            lost, ended = self._move(self._answer())
            reward = -lost
        return self._seen(), reward, ended, False, {}

    def _move(self, move: int) -> tuple[float, bool]:
        """What a move is worth to who makes it, and whether the game ends."""
        where = place(self.game, self.board, move, self.player)
        self.player = -self.player
        self.line = winning(self.game, self.board, *where)
        return float(bool(self.line)), bool(self.line) or not legal(self.game, self.board).any()

    def _answer(self) -> int:
        if self._exact is not None:
            return self._exact.best(self.board, self.player, self.np_random)
        if self.opponent == "mcts":
            from .board_search import best_move  # loads numba

            seed = int(self.np_random.integers(1, 1 << 62))
            g = self.game
            rules = (g.height, g.width, g.row, g.falls, g.moves)
            return best_move(rules, self.board, self.player, self.simulations, seed)
        return int(self.np_random.choice(np.flatnonzero(legal(self.game, self.board))))

    def _seen(self) -> dict[str, Any]:
        """Own stones and the other's, from the side of who moves next."""
        mine = [self.board == self.player, self.board == -self.player]
        obs: dict[str, Any] = {
            "board": np.concatenate([x.ravel() for x in mine]).astype(np.float32),
            "action_mask": legal(self.game, self.board).astype(np.int8),
        }
        return obs | ({"to_play": int(self.player < 0)} if self.alternates else {})

    def render(self) -> Any:
        """uint8 [H, W, 3], square."""
        return draw(self.board, self.line)


def draw(board: np.ndarray, line: list[tuple[int, int]] | None = None) -> np.ndarray:
    """A picture of stones [H, W], square; the winning line has another floor."""
    import cv2

    height, width = board.shape
    side = CELL * max(height, width)
    image = np.empty((side, side, 3), np.uint8)
    image[:] = COLOURS["line"]
    top, left = (side - CELL * height) // 2, (side - CELL * width) // 2
    for (row, column), stone in np.ndenumerate(board):
        y, x = top + row * CELL, left + column * CELL
        won = line is not None and (row, column) in line
        image[y + 1 : y + CELL - 1, x + 1 : x + CELL - 1] = COLOURS["win" if won else "floor"]
        if stone:
            middle = (x + CELL // 2, y + CELL // 2)
            cv2.circle(image, middle, int(0.36 * CELL), STONES[int(stone)], -1, cv2.LINE_AA)
    return image


def board_width(config: EnvConfig) -> int:
    """How many cells a row of the board has; 0 for what is no board."""
    return GAMES[config.id].width if config.suite == "boards" else 0


def build(config: EnvConfig) -> gymnasium.Env[Any, Any]:
    """A game by its id, with `kwargs` for `BoardGame`. Raises EnvError for names nobody knows."""
    if config.id not in GAMES:
        raise unknown("board game", config.id, GAMES)
    known = ("opponent", "start", "simulations", "alternates")
    for name in config.kwargs:
        if name not in known:
            raise unknown("setting of a board game", name, known)
    mode = "rgb_array" if config.pixels else None
    env = BoardGame(GAMES[config.id], render_mode=mode, **config.kwargs)
    return Repeat(Guard(env), config.action_repeat)
