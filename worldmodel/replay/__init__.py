"""Recorded experience: one ring of rows per environment, drawn from as sequences."""

from worldmodel.replay.buffer import Replay
from worldmodel.replay.config import ReplayConfig
from worldmodel.replay.folder import clear, holds_committed
from worldmodel.replay.index import ReplayDamaged
from worldmodel.replay.rows import RowIndex

__all__ = [
    "Replay",
    "ReplayConfig",
    "ReplayDamaged",
    "RowIndex",
    "clear",
    "holds_committed",
]
