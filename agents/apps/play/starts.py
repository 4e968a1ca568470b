"""Where a dream may begin: the recorded episodes of a run."""

from __future__ import annotations

from typing import Any

import numpy as np

from worldmodel.replay import Replay, RowIndex
from worldmodel.types import Batch


class Recorded:
    """The episodes of a replay, numbered from 0 in the order in which they were recorded (stream
    by stream): whole ones or, where there is none, what there is."""

    def __init__(self, replay: Replay) -> None:
        self.replay = replay
        self.episodes = replay.episodes(complete=True) or replay.episodes()

    def length(self, episode: int) -> int:
        """Rows of an episode. ValueError where there is no such episode."""
        _, start, stop = self._find(episode)
        return stop - start

    def score(self, episode: int) -> float:
        """Sum of an episode's recorded rewards."""
        stream, start, stop = self._find(episode)
        return float(self.replay.rows(stream, start, stop)["reward"].sum())

    def rows(self, episode: int, rows: list[int]) -> dict[str, np.ndarray]:
        """The observations at these rows, [len(rows), ...] per key."""
        stream, start, _ = self._find(episode)
        parts = []
        for row in rows:
            self._check_row(episode, row)
            parts.append(self.replay.rows(stream, start + row, start + row + 1))
        return {key: np.concatenate([part[key] for part in parts]) for key in self.replay.spec.obs}

    def context(self, episode: int, row: int, length: int) -> Batch:
        """The rows that end at `row`, at most `length` of them and none of another episode,
        [1, T, ...]; with the state stored before them, where there is one.

        Raises ValueError for an unknown episode or row.
        """
        stream, start, _ = self._find(episode)
        self._check_row(episode, row)
        length = max(1, min(length, row + 1))
        first = start + row + 1 - length
        index = RowIndex(np.array([stream]), np.array([first]), length)
        return self.replay.gather(index, context=self.replay.columns)

    def _find(self, episode: Any) -> tuple[int, int, int]:
        if type(episode) is not int or not 0 <= episode < len(self.episodes):
            raise ValueError(
                f"There is no episode {episode}. This run recorded {len(self.episodes)}, numbered "
                f"0 to {len(self.episodes) - 1}."
            )
        return self.episodes[episode]

    def _check_row(self, episode: int, row: Any) -> None:
        length = self.length(episode)
        if type(row) is not int or not 0 <= row < length:
            raise ValueError(
                f"There is no row {row} in episode {episode}: its rows are 0 to {length - 1}."
            )
