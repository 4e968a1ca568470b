"""Recorded experience: one ring of rows per environment, drawn from as sequences."""

from worldmodel.replay.buffer import Replay
from worldmodel.replay.config import ReplayConfig
from worldmodel.replay.folder import clear, holds_committed
from worldmodel.replay.index import ReplayDamaged
from worldmodel.replay.pool import Pool
from worldmodel.replay.rows import RowIndex
from worldmodel.types import Transitions

__all__ = [
    "Pool",
    "Replay",
    "ReplayConfig",
    "ReplayDamaged",
    "RowIndex",
    "Transitions",
    "clear",
    "holds_committed",
]
