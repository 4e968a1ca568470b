"""A small world as arrays: every outcome of every state and action, with its probability.

Agents do not see it. It is for exact answers (the optimum, the value of a policy) and for whole
experiments that run in compiled code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from .config import EnvConfig, EnvError

Outcome = tuple[float, int, float, bool]  # probability, next state, reward, terminal


class WorldTable(NamedTuple):
    """The true transitions of a world with S states and A actions. W phases follow each other in
    time (one, where the world never changes); each pair has up to K outcomes.

    next: int32 [W, S, A, K] state that an outcome leads to.
    probability: float64 [W, S, A, K]; sums to 1 over K, and unused places are 0.
    reward: float64 [W, S, A, K]. terminal: bool [W, S, A, K], whether the episode ends.
    start: float64 [W, S] probability that an episode begins there.
    change: int64 [W] steps, over all episodes, after which each phase begins; change[0] = 0.
    at_episode: whether a new phase waits for the next episode's beginning.
    """

    next: np.ndarray
    probability: np.ndarray
    reward: np.ndarray
    terminal: np.ndarray
    start: np.ndarray
    change: np.ndarray
    at_episode: bool

    @property
    def states(self) -> int:
        """S."""
        return self.next.shape[1]

    @property
    def actions(self) -> int:
        """A."""
        return self.next.shape[2]


def from_outcomes(
    states: int,
    actions: int,
    outcomes: Callable[[int, int], Sequence[Outcome]],
    start: np.ndarray,
) -> WorldTable:
    """The table of a world that never changes; equal outcomes of a pair are merged.

    outcomes: from state and action to their outcomes. start: [S] probabilities.
    """
    merged = []
    for s in range(states):
        for a in range(actions):
            pair: dict[tuple[int, float, bool], float] = {}
            for probability, after, reward, terminal in outcomes(s, a):
                key = (int(after), float(reward), bool(terminal))
                if probability > 0:
                    pair[key] = pair.get(key, 0.0) + float(probability)
            merged.append(pair)
    width = max(len(pair) for pair in merged)
    shape = (1, states, actions, width)
    arrays: dict[str, Any] = {
        "next": np.zeros(shape, np.int32),
        "reward": np.zeros(shape),
        "terminal": np.zeros(shape, bool),
        "probability": np.zeros(shape),
    }
    for p, pair in enumerate(merged):
        for k, (outcome, chance) in enumerate(pair.items()):
            place = (0, *divmod(p, actions), k)
            for array, value in zip(arrays.values(), (*outcome, chance), strict=True):
                array[place] = value
    begin = np.asarray(start, np.float64)[None]
    return WorldTable(**arrays, start=begin, change=np.zeros(1, np.int64), at_episode=False)


def in_turn(tables: Sequence[WorldTable], change: Sequence[int]) -> WorldTable:
    """Worlds of the same states and actions, one after the other.

    change: steps after which each begins; the first is 0. Raises EnvError where they do not rise.
    """
    steps = np.asarray(change, np.int64)
    if len(steps) != len(tables) or steps[0] != 0 or (np.diff(steps) <= 0).any():
        raise EnvError(
            f"{len(tables)} phases begin at the steps {list(change)}, but these must be as many, "
            "begin with 0 and rise."
        )
    width = max(table.next.shape[-1] for table in tables)

    def joined(name: str) -> np.ndarray:
        parts = [getattr(table, name) for table in tables]
        if name == "start":
            return np.concatenate(parts)
        return np.concatenate([np.pad(x, [(0, 0)] * 3 + [(0, width - x.shape[-1])]) for x in parts])

    fields = ("next", "probability", "reward", "terminal", "start")
    arrays = {name: joined(name) for name in fields}
    return WorldTable(**arrays, change=steps, at_episode=False)


def table_of(env: gymnasium.Env[Any, Any]) -> WorldTable:
    """The table of one of our grids, or of gymnasium's FrozenLake, Taxi or CliffWalking, in
    whatever wrappers.

    A time limit is no part of it. Raises EnvError where the environment has no table.
    """
    inner: Any = env.unwrapped
    if hasattr(inner, "table"):
        table = inner.table()
        assert isinstance(table, WorldTable)
        return table
    if not hasattr(inner, "P") or not hasattr(inner, "initial_state_distrib"):
        raise EnvError(
            f"{type(inner).__name__} has no transition table. Known with one: the suite grid, and "
            "gymnasium's FrozenLake, Taxi and CliffWalking."
        )
    outcomes, start = inner.P, np.asarray(inner.initial_state_distrib)
    return from_outcomes(len(outcomes), len(outcomes[0]), lambda s, a: outcomes[s][a], start)


def world_table(config: EnvConfig) -> WorldTable:
    """The table of the environment that `make_env(config)` makes."""
    from . import make_env

    if config.action_repeat != 1:
        raise EnvError("A transition table has no action_repeat; set it to 1.")
    env = make_env(config)
    try:
        return table_of(env)
    finally:
        env.close()
