"""Recorded experience: one ring of rows per environment, drawn from as sequences."""

from worldmodel.replay.buffer import Replay, ReplayConfig, RowIndex
from worldmodel.replay.files import ReplayDamaged
from worldmodel.replay.latents import LatentSpec

__all__ = ["LatentSpec", "Replay", "ReplayConfig", "ReplayDamaged", "RowIndex"]
