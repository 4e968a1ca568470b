"""Have we seen this before? Detectors that are fitted, calibrated, and asked at every tick."""

from __future__ import annotations

from worldmodel.ood.api import Detector, Memory, Score, Scorer, Track

__all__ = ["Detector", "Memory", "Score", "Scorer", "Track"]
