"""Have we seen this before? What a detector takes and gives.

One tick of a control loop, in the order of the calls:

    obs_t arrives -> agent filters it: state_t -> detector.score(obs_t, state_t, action_{t-1})
                  -> unknown? the safe policy : the agent's action_t

`action_{t-1}` is the action that led to `obs_t`, as it was sent to the robot (encoded, [B, A]).
`state_t` is the state of the agent's world, where it has one (`agent.world_state`).

The arithmetic of a detector is one pure module (`scorer.Scorer`), so that it can be exported with
the agent; `detector.Detector` adds what a program needs around it: fitting, calibration, memory,
errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Optional keys of `obs` beside the environment's own: bool [B], a new episode begins with this
# row; and float64 [B], when the sensor took it, in seconds of any clock that does not jump.
FIRST_KEY, STAMP_KEY = "is_first", "time_stamp"

Memory = dict[str, Any]  # what a scorer carries from tick to tick: a tree of tensors [B, ...]


@dataclass(frozen=True)
class Score:
    """How strange B observations are. value, parts: in units of their thresholds.

    value: [B] float32, all parts combined. threshold: above it an observation is unknown.
    unknown: [B] bool. parts: each [B] float32, where 1 is the part's own threshold, so that those
    above 1 name what is strange; a part that could not be computed (no state, no action, no time
    stamp) is left out.
    """

    value: np.ndarray
    threshold: float
    unknown: np.ndarray
    parts: Mapping[str, np.ndarray]

    @classmethod
    def of(
        cls, value: np.ndarray, parts: np.ndarray, names: Sequence[str], threshold: float
    ) -> Score:
        """From a scorer's numbers: value [B], parts [B, K] (NaN where one was not computed)."""
        named = {n: parts[:, k] for k, n in enumerate(names) if not np.isnan(parts[0, k])}
        # Not `value > threshold`: a score that is not a number is no proof that all is well.
        return cls(value, float(threshold), ~(value <= threshold), named)

    def strange(self, index: int = 0) -> list[str]:
        """Names of the parts above their own threshold for one of the B, strangest first; where
        none is, yet the combined value is, the largest one."""
        ranked = sorted(self.parts, key=lambda name: -float(self.parts[name][index]))
        above = [name for name in ranked if self.parts[name][index] > 1]
        return above or (ranked[:1] if self.unknown[index] else [])


@dataclass(frozen=True)
class Track:
    """One complete episode as a detector receives it: T rows, the first one the reset.

    obs: [T, ...] for each key, as the environment gave them. action: float32 [T, A] that led to
    them (zeros on the first row). state: of the agent's world after each row, [T, ...], or None.
    reward: float32 [T] that came with them (0 on the first row), or None where it is not known.
    """

    obs: Mapping[str, np.ndarray]
    action: np.ndarray
    state: Any = None
    reward: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.action)
