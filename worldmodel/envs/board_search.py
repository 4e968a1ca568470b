"""Plain Monte-Carlo tree search with the rules of a board game, as an opponent.

UCB1 with c = sqrt(2) and random games from each new leaf (Kocsis and Szepesvari 2006); outcomes are
1, 0 and -1 for who moves. No learning, no memory from move to move.
"""

from __future__ import annotations

import numba as nb
import numpy as np

import worldmodel.accel.compiling  # noqa: F401

Rules = tuple[int, int, int, bool, int]  # of boards.Game: height, width, row, falls, moves


def best_move(rules: Rules, board: np.ndarray, player: int, simulations: int, seed: int) -> int:
    """The most visited move of a search of so many random games."""
    return int(_search(board.astype(np.int64), player, rules, simulations, seed))


@nb.njit(cache=True)
def _place(board, rules, move, player):  # type: ignore[no-untyped-def]
    """Put a stone down: 1 where it wins, 0 where the game goes on, 2 where the board is full; -1
    and nothing done where the move is not legal."""
    height, width, row, falls, _ = rules
    if falls:
        r, c = -1, move
        for i in range(height):
            if board[i, c] == 0:
                r = i
    else:
        r, c = move // width, move % width
        if board[r, c] != 0:
            r = -1
    if r < 0:
        return -1
    board[r, c] = player
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        count = 1
        for sign in (1, -1):
            y, x = r + sign * down, c + sign * right
            while 0 <= y < height and 0 <= x < width and board[y, x] == player:
                count += 1
                y, x = y + sign * down, x + sign * right
        if count >= row:
            return 1
    for i in range(width):
        if board[0, i] == 0:
            return 0
    if not falls:
        for i in range(height):
            for j in range(width):
                if board[i, j] == 0:
                    return 0
    return 2


@nb.njit(cache=True)
def _random_game(board, rules, player):  # type: ignore[no-untyped-def]
    """The outcome for `player`, who moves first, of moves by chance."""
    mover = player
    while True:
        found = _place(board, rules, np.random.randint(rules[4]), mover)
        if found < 0:
            continue
        if found == 1:
            return 1.0 if mover == player else -1.0
        if found == 2:
            return 0.0
        mover = -mover


@nb.njit(cache=True)
def _search(start, player, rules, simulations, seed):  # type: ignore[no-untyped-def]
    np.random.seed(seed & 0xFFFFFFFF)
    moves = rules[4]
    child = np.full((simulations + 1, moves), -1, np.int64)
    visits = np.zeros((simulations + 1, moves), np.int64)
    total = np.zeros((simulations + 1, moves))
    path, taken = np.empty(simulations + 1, np.int64), np.empty(simulations + 1, np.int64)
    nodes = 1
    for _ in range(simulations):
        board, mover, node, depth, value = start.copy(), player, 0, 0, 0.0
        while True:
            best, best_score = -1, -np.inf
            count = visits[node].sum()
            for a in range(moves):
                trial = board.copy()
                if _place(trial, rules, a, mover) < 0:
                    continue
                n = visits[node, a]
                score = 1e9 + np.random.random()
                if n > 0:
                    score = total[node, a] / n + np.sqrt(2.0 * np.log(count) / n)
                if score > best_score:
                    best, best_score = a, score
            path[depth], taken[depth] = node, best
            depth += 1
            found = _place(board, rules, best, mover)
            mover = -mover
            if found > 0:  # for who moves now: lost, or a draw
                value = -1.0 if found == 1 else 0.0
                break
            if child[node, best] < 0:
                child[node, best] = nodes
                nodes += 1
                value = _random_game(board, rules, mover)
                break
            node = child[node, best]
        for i in range(depth - 1, -1, -1):
            value = -value
            visits[path[i], taken[i]] += 1
            total[path[i], taken[i]] += value
    return visits[0].argmax()
