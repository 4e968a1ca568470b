"""A time stamp that does not move on: the sensor sent the same thing again, or an older one."""

from __future__ import annotations

from typing import Any

import numpy as np

STRANGE = 2.0  # in units of a threshold: there is nothing to calibrate about a repeated stamp


class Stale:
    """Whether stamps are newer than those of the tick before."""

    def __init__(self) -> None:
        self._newest: np.ndarray | None = None

    def reset(self, rows: np.ndarray | None = None) -> None:
        """Forget the rows [B] where it is True; all of them for None."""
        if rows is None or self._newest is None or len(self._newest) != len(rows):
            self._newest = None
        else:
            self._newest[rows] = -np.inf

    def __call__(self, stamp: Any, is_first: np.ndarray) -> np.ndarray | None:
        """0 or 2 [B] float32, or None where there are no stamps. A stamp that is not finite is
        stale."""
        if stamp is None:
            return None
        stamps = np.broadcast_to(np.asarray(stamp, np.float64), is_first.shape)
        if self._newest is None or len(self._newest) != len(stamps):
            self._newest = np.full(stamps.shape, -np.inf)
        before = np.where(is_first, -np.inf, self._newest)
        stale = ~(stamps > before)
        self._newest = np.where(stale, before, stamps)
        return np.where(stale, STRANGE, 0.0).astype(np.float32)
