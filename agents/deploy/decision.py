"""What one tick comes to, and the words for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

# Where an action comes from.
POLICY, PREVIOUS, FALLBACK, LAST_RESORT = "policy", "previous", "fallback", "last resort"

# Why. WAITING: this tick was good, but too few of them have been for the policy to return.
OK, UNKNOWN, LATE, NONFINITE, INPUT, ERROR, WAITING = (
    "ok", "unknown", "late", "nonfinite", "input", "error", "waiting",
)  # fmt: skip
REASONS = (OK, UNKNOWN, LATE, NONFINITE, INPUT, ERROR, WAITING)


@dataclass(frozen=True, slots=True)
class Decision:
    """The action of one robot at one tick.

    action: what the robot takes, as its environment did in training (float32 [A], or an index).
    encoded: the same as float32 [A]. source: policy, previous, fallback or last resort. reason:
    ok, unknown, late, nonfinite, input (the observation was refused), error (the policy raised) or
    waiting (all is well again, but not for long enough). detail: more of it, in words. latency:
    seconds from the observation's arrival. value: the score in units of `threshold`, or None where
    there was none; parts: its parts. scale: what caution multiplied the policy's action by.
    """

    action: np.ndarray
    encoded: np.ndarray
    source: str
    reason: str
    latency: float
    tick: int
    robot: int = 0
    detail: str = ""
    value: float | None = None
    threshold: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    scale: float = 1.0

    @property
    def trusted(self) -> bool:
        """Whether the policy acted."""
        return self.source == POLICY
