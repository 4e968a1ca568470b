"""How often rows are drawn: a sum tree over all slots of a ring.

Schaul et al., "Prioritized experience replay" (2016), with one difference: a new row is given the
greatest priority among the rows that are held, not the greatest that there ever was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel.accel.kernels import machine_code, state_of
from worldmodel.replay.ring import Ring
from worldmodel.replay.rows import RowIndex
from worldmodel.replay.schema import LAST, PRIORITY


class Priorities:
    """The masses p^exponent of the rows of a ring, which holds them in its field "priority".

    A row that ends an episode has none, since nothing follows from it. Everything here follows
    from the ring's rows alone, to the bit: `rebuild` is all that a resumed run needs.
    """

    def __init__(self, ring: Ring, exponent: float) -> None:
        self._ring, self._exponent = ring, exponent
        slots = ring.streams * ring.rows
        # In row 0 the sum, in row 1 the greatest of the two nodes 2 i and 2 i + 1 at node i.
        self._tree = np.zeros((2, 2 << (slots - 1).bit_length()))

    @property
    def newest(self) -> float:
        """The mass of a new row: the greatest that is held, or 1."""
        return float(self._tree[1, 1]) or 1.0

    def rebuild(self) -> None:
        """Take over what the ring holds."""
        self._tree[:] = 0
        for stream in range(self._ring.streams):
            self.refresh(stream, np.arange(self._ring.oldest[stream], self._ring.count[stream]))

    def refresh(self, stream: int, rows: np.ndarray) -> None:
        """Note what the ring now holds of these rows of a stream."""
        ring, slots = self._ring, rows % self._ring.rows
        ends = ring.arrays["flags"][stream][slots] & LAST
        masses = np.where(ends, 0.0, ring.arrays[PRIORITY][stream][slots])
        _put(self._tree, stream * ring.rows + slots, masses)

    def write(self, index: RowIndex, priorities: Any) -> None:
        """New priorities [B] of the first rows of an index; those overwritten are skipped.

        Raises ValueError where one is not positive, or too large or too small for float32.
        """
        values = np.asarray(torch.as_tensor(priorities).detach().cpu(), np.float64)
        if values.shape != index.start.shape:
            raise ValueError(f"{list(values.shape)} priorities of {len(index.start)} rows.")
        with np.errstate(over="ignore", invalid="ignore"):
            masses = (values**self._exponent).astype(np.float32)
        if not ((values > 0) & (masses > 0) & np.isfinite(masses)).all():
            raise ValueError(f"Priorities must be positive and finite, not {values.tolist()}.")
        there = index.start >= self._ring.oldest[index.stream]
        for stream in np.unique(index.stream[there]).tolist():
            which = there & (index.stream == stream)
            self._ring.write_priorities(stream, index.start[which], masses[which])
            self.refresh(stream, index.start[which])

    def draw(
        self, count: int, length: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Streams and rows [count] at which `length` rows begin: one of each of `count` equal
        parts of all mass.

        Raises ValueError where no such row has any.
        """
        ring, tree = self._ring, self._tree
        edges = zip(ring.oldest.tolist(), ring.count.tolist(), strict=True)
        hidden = [
            stream * ring.rows + np.arange(max(end - length + 1, old), end) % ring.rows
            for stream, (old, end) in enumerate(edges)
        ]
        slots = np.concatenate(hidden)
        masses = tree[0, tree.shape[1] // 2 + slots]
        _put(tree, slots, np.zeros(len(slots)))  # too new: not enough rows follow
        try:
            total = float(tree[0, 1])
            if not total > 0:
                raise ValueError(f"No row with a priority is followed by {length - 1} others.")
            targets = (np.arange(count) + rng.random(count)) * (total / count)
            stream, slot = np.divmod(_find(tree, targets), ring.rows)
        finally:
            _put(tree, slots, masses)
        newest = ring.count[stream] - 1
        return stream, newest - (newest - slot) % ring.rows

    def weights(self, index: RowIndex, beta: float) -> np.ndarray:
        """(N P)^-beta [B] over the greatest of them, float32; 1 for rows with no mass."""
        slots = index.stream * self._ring.rows + index.start % self._ring.rows
        masses = self._tree[0, self._tree.shape[1] // 2 + slots]
        least = masses[masses > 0].min(initial=np.inf)
        return np.where(masses > 0, masses / least, 1.0).astype(np.float32) ** np.float32(-beta)


def _put_in(tree: np.ndarray, slots: np.ndarray, masses: np.ndarray) -> None:
    """Set leaves, and all nodes above them."""
    leaves = tree.shape[1] // 2
    for i in range(len(slots)):
        node = leaves + slots[i]
        tree[0, node] = tree[1, node] = masses[i]
        node //= 2
        while node >= 1:
            tree[0, node] = tree[0, 2 * node] + tree[0, 2 * node + 1]
            tree[1, node] = max(tree[1, 2 * node], tree[1, 2 * node + 1])
            node //= 2


def _find_in(tree: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The slots at which the running sum of all masses passes these targets."""
    leaves = tree.shape[1] // 2
    found = np.empty(len(targets), np.int64)
    for i in range(len(targets)):
        node, left = 1, targets[i]
        while node < leaves:
            node *= 2
            # Rounding may leave a little too much for what is there: not into an empty half.
            if left >= tree[0, node] and tree[0, node + 1] > 0:
                left -= tree[0, node]
                node += 1
        found[i] = node - leaves
    return found


_STATE = state_of([Path(__file__)])
_put, _find = machine_code(_put_in, _STATE), machine_code(_find_in, _STATE)
