"""Have we seen this before? What every detector promises, and the words it speaks in.

One tick of a control loop, in the order of the calls:

    obs_t arrives -> agent filters it: state_t -> detector.score(obs_t, state_t, action_{t-1})
                  -> unknown? the safe policy : the agent's action_t

`action_{t-1}` is the action that led to `obs_t`, as it was sent to the robot (encoded, [B, A]).

The arithmetic of a detector is one pure module (`Scorer`), so that it can be exported with the
agent; `Detector` adds what a program needs around it: fitting, calibration, memory, errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from worldmodel.rssm.state import LatentState

# Optional keys of `obs` beside the environment's own: bool [B], a new episode begins with this
# row; and float64 [B], when the sensor took it, in seconds of any clock that does not jump.
FIRST_KEY, STAMP_KEY = "is_first", "time_stamp"

Memory = dict[str, Tensor]  # what a scorer carries from tick to tick, [B, ...] each


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

    def strange(self, index: int = 0) -> list[str]:
        """Names of the parts above their own threshold for one of the B, strangest first; where
        none is, yet the whole is, the largest one."""
        ranked = sorted(self.parts, key=lambda name: -float(self.parts[name][index]))
        above = [name for name in ranked if self.parts[name][index] > 1]
        return above or (ranked[:1] if self.unknown[index] else [])


@dataclass(frozen=True)
class Track:
    """One whole episode as a detector lives it: T rows, the first one the reset.

    obs: [T, ...] for each key, as the environment gave them. action: float32 [T, A] that led to
    them (zeros on the first row). state: the agent's latent after each row [T, ...], or None.
    """

    obs: Mapping[str, np.ndarray]
    action: np.ndarray
    state: LatentState | None = None

    def __len__(self) -> int:
        return len(self.action)


class Scorer(Protocol):
    """The arithmetic of a detector: a pure `nn.Module`, the same input gives the same output.

    names: of the K parts. threshold: a float.
    """

    names: tuple[str, ...]
    threshold: float

    def initial(self, batch_size: int) -> Memory:
        """The memory before the first tick; its keys and shapes [B, ...] never change."""
        ...

    def forward(
        self,
        obs: Mapping[str, Tensor],
        state: LatentState,
        action: Tensor,
        is_first: Tensor,
        memory: Memory,
    ) -> tuple[Tensor, Tensor, Memory]:
        """value [B], parts [B, K] and the next memory.

        obs: images uint8 [B, H, W, C] and vectors float32 [B, N], by key. state: [B, ...] after
        obs. action: [B, A] that led to obs. is_first: bool [B]; such rows forget their memory.
        """
        ...


@runtime_checkable
class Detector(Protocol):
    """Fitted on what is known, calibrated on held-out episodes, then asked at every tick.

    Errors: RunError for a score before `fit` and `calibrate`; ConfigError for too few held-out
    episodes (it says how many are needed); ValueError for observations of a wrong shape or type,
    and for values that are not finite.
    """

    scorer: Any  # a Scorer, for export

    def fit(self, observations: Sequence[Track]) -> None:
        """Learn what is known from whole episodes."""
        ...

    def calibrate(self, episodes: Sequence[Track], false_alarm_rate: float) -> None:
        """Set the thresholds on episodes that `fit` did not see, so that a new normal episode
        raises one alarm or more with at most this probability."""
        ...

    def reset(self, is_first: np.ndarray | None = None) -> None:
        """Forget the rows of the batch [B] where it is True (None: all); so does a score whose
        obs holds `is_first`."""
        ...

    def score(
        self,
        obs: Mapping[str, Any],
        state: LatentState | None = None,
        action: Any = None,
    ) -> Score:
        """How strange obs [B, ...] is, given the agent's state after it and the action [B, A]
        that led to it. Parts that need what is not given are left out."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists, dicts and tensors; not the weights of the agent itself."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put `state_dict()` back."""
        ...
