"""Have we seen this before? Detectors that are fitted, calibrated, and asked at every tick."""

from __future__ import annotations

from worldmodel.ood.api import Memory, Score, Track
from worldmodel.ood.detector import Detector

__all__ = ["Detector", "Memory", "Score", "Track"]
