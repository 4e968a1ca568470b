"""Recorded episodes by number, as labels, reports and pages name them.

episode   number in the replay, from 0: oldest first, one environment after the other
step      row of the episode, from 0, its first row (the reset); the reward of step t is for
          arriving there through action t
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from worldmodel.config import ConfigError
from worldmodel.replay import Replay, RowIndex
from worldmodel.types import Batch


class Episodes:
    """Episodes of a replay. places: (stream, start, stop) of each; without, all that there are. One
    may lack its beginning (overwritten) or its end (the run stopped in it); then step 0 is its
    oldest row."""

    def __init__(
        self, replay: Replay, places: Sequence[tuple[int, int, int]] | None = None
    ) -> None:
        self.replay, self.spec = replay, replay.spec
        self.places = list(replay.episodes() if places is None else places)
        self.lengths = np.array([stop - start for _, start, stop in self.places], np.int64)

    def __len__(self) -> int:
        """How many episodes there are."""
        return len(self.places)

    def check(self, episode: Any, step: Any = 0, where: str = "") -> None:
        """ConfigError, beginning with `where` it was asked for, unless there is that step."""
        there = f"{where}there" if where else "There"
        if type(episode) is not int or not 0 <= episode < len(self):
            raise ConfigError(
                f"{there} is no episode {episode}: they are numbered 0 to {len(self) - 1}."
            )
        last = int(self.lengths[episode]) - 1
        if type(step) is not int or not 0 <= step <= last:
            raise ConfigError(
                f"{there} is no step {step} in episode {episode}: it has 0 to {last}."
            )

    def read(self, episode: int, start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
        """Every key of the steps start ... stop - 1, [T, ...]: observations, action (encoded),
        reward and flags."""
        stream, first, end = self.places[episode]
        return self.replay.rows(stream, first + start, end if stop is None else first + stop)

    def observation(self, episode: int, step: int) -> dict[str, np.ndarray]:
        """What was observed at one step, by key."""
        rows = self.read(episode, step, step + 1)
        return {key: rows[key][0] for key in self.spec.obs}

    def batch(self, episodes: Iterable[int], start: Any, length: int) -> Batch:
        """`length` rows of some episodes from a step on, [n, length, ...]; start: one for all, or
        [n]. Its context is what is stored before them."""
        stream, first, _ = np.array([self.places[number] for number in episodes], np.int64).T
        index = RowIndex(stream, first + start, length)
        return self.replay.gather(index, context=self.replay.columns)
