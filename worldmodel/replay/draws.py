"""Which rows are handed out next: those of the online queue, and those drawn at random."""

from __future__ import annotations

import numpy as np

from worldmodel.replay.ring import Ring
from worldmodel.replay.rows import RowIndex, beginnings

# Sequences per environment that may wait in the online queue; older ones are left to chance.
BACKLOG = 16
REDRAWS = 1000  # of transitions that would begin where an episode ends


class Draws:
    """Draws rows of a ring with a generator of its own: uniformly, or with priorities.

    cursor: the first row of every stream that was not handed out online, [N].
    """

    def __init__(self, ring: Ring, seed: int, exponent: float) -> None:
        self._ring = ring
        self.rng = np.random.default_rng(seed)
        self.cursor = np.zeros(ring.streams, np.int64)
        self.priorities = None
        if exponent:
            from worldmodel.replay.priorities import Priorities  # loads numba

            self.priorities = Priorities(ring, exponent)

    def starts(self, length: int) -> np.ndarray:
        """How many sequences of so many rows every stream holds, [N]."""
        if length < 1:
            raise ValueError(f"A sequence has at least one row, not {length}.")
        self._ring.forget_overwritten()
        return np.maximum(0, self._ring.filled - length + 1)

    def sequences(self, count: int, length: int, online: bool) -> RowIndex:
        """Sequences [count] of so many rows, those that wait online first; see `Replay.sample`."""
        starts = self._enough(count, length)
        fresh = np.array(self._pop_online(count, length) if online else [], np.int64)
        fresh = fresh.reshape(-1, 2).T
        drawn = self._drawn(starts, count - fresh.shape[1], length)
        stream, start = np.concatenate([fresh, drawn], 1)
        return RowIndex(stream, start, length)

    def steps(self, count: int) -> RowIndex:
        """Rows [count] that begin a transition; see `Replay.transitions`."""
        starts = self._enough(count, 2)
        stream, row = self._drawn(starts, count, 2)
        for _ in range(REDRAWS):
            wrong = np.flatnonzero(~beginnings(self._ring, stream, row))
            if not len(wrong):
                return RowIndex(stream, row, 1)
            stream[wrong], row[wrong] = self._drawn(starts, len(wrong), 2)
        raise ValueError("Nearly all recorded episodes are one row long: no step to draw.")

    def weights(self, index: RowIndex, beta: float) -> np.ndarray:
        """Importance weights [B] of what was drawn; ones where draws are uniform."""
        if self.priorities is None:
            return np.ones(len(index.start), np.float32)
        return self.priorities.weights(index, beta)

    def _enough(self, count: int, length: int) -> np.ndarray:
        starts = self.starts(length)
        if count < 1 or not starts.any():
            raise ValueError(
                f"Cannot draw {count} times {length} rows: the fullest stream holds "
                f"{int(self._ring.filled.max())}. Add more rows first (see can_sample)."
            )
        return starts

    def _drawn(self, starts: np.ndarray, count: int, length: int) -> np.ndarray:
        """Streams and first rows, [2, count]; without priorities all starts are equally likely."""
        if not count:
            return np.zeros((2, 0), np.int64)
        if self.priorities is not None:
            return np.stack(self.priorities.draw(count, length, self.rng))
        edges = np.cumsum(starts)
        draw = self.rng.integers(int(edges[-1]), size=count)
        stream = np.searchsorted(edges, draw, side="right")
        return np.stack([stream, self._ring.oldest[stream] + draw - (edges - starts)[stream]])

    def _pop_online(self, limit: int, length: int) -> list[tuple[int, int]]:
        floor = np.maximum(self._ring.oldest, self._ring.count - BACKLOG * length)
        self.cursor = np.maximum(self.cursor, floor)
        waiting = (self._ring.count - self.cursor) // length
        found: list[tuple[int, int]] = []
        while len(found) < limit and waiting.any():
            stream = int(waiting.argmax())  # the longest queue first, so that none starves
            found.append((stream, int(self.cursor[stream])))
            self.cursor[stream] += length
            waiting[stream] -= 1
        return found
