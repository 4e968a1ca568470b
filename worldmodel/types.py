"""The words that every other file shares.

Shape symbols: B batch, T time, H imagined steps, A action, E embed, D deter, S groups,
K classes, F feature, N candidates. Sequences are [B, T, ...].

One row of experience is what arrived, and the action that led to it:

    row            t = 0          1            2     ...    n          n + 1
    obs            o_0            o_1          o_2          o_n        o'_0
    action         0              a_0          a_1          a_{n-1}    0
    reward         0              r_1          r_2          r_n        0
    is_first       True           False        False        False      True
    is_last        False          False        False        True       False
    is_terminal    False          False        False        True/False False

`action[t]` led to `obs[t]`, `reward[t]` and the flags of row t; it was chosen at row t-1.
`is_terminal` means that the future is worth nothing (terminated); `is_last` without
`is_terminal` means that the episode was only cut off (truncated).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

MASK_KEY = "action_mask"


class LatentState(NamedTuple):
    """The state of a learned world.

    deter: [..., D] deterministic, recurrent part.
    stoch: [..., S, K] sampled part; one-hot over K classes, or real with K = 1.
    """

    deter: Tensor
    stoch: Tensor

    @property
    def feat(self) -> Tensor:
        """[..., F] with F = D + S * K."""
        return torch.cat([self.deter, self.stoch.flatten(-2)], -1)

    def map(self, fn: Any) -> LatentState:
        """The same function applied to both parts (detach, flatten, index, ...)."""
        return LatentState(fn(self.deter), fn(self.stoch))


class Prediction(NamedTuple):
    """One predicted step: the next state, its reward [...] and P(episode goes on) [...]."""

    state: LatentState
    reward: Tensor
    cont: Tensor


@runtime_checkable
class Dynamics(Protocol):
    """A learned world. Imagination, planners and dreams use only this."""

    def initial(self, batch_size: int) -> LatentState:
        """The state before anything was seen, [B, ...]."""
        ...

    def observe(
        self, state: LatentState, obs: dict[str, Tensor], action: Tensor, is_first: Tensor
    ) -> LatentState:
        """State after obs [B, ...] arrived through action [B, A]."""
        ...

    def step(self, state: LatentState, action: Tensor) -> Prediction:
        """What action [B, A] will lead to, with no observation to help."""
        ...


@dataclass(frozen=True)
class ObsSpec:
    """One observation key. kind: "image" (uint8 [H, W, C]), "vector" (float32 [N]), "discrete"
    (one-hot float32 [N], from a Discrete or MultiDiscrete space; `sizes` holds the number of
    classes of each factor and sums to N), or "recorded" (float32 [N]: replay keeps it, for rewards
    and labels made later; no model sees it)."""

    kind: str
    shape: tuple[int, ...]
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class ActionSpec:
    """How actions travel through models and replay: one float32 vector [A].

    kind: "continuous" (each entry in [-1, 1]; `sizes` = (A,)) or "discrete" (one-hot vectors of
    the factors, concatenated; `sizes` = classes of each factor, one factor for Discrete).
    """

    kind: str
    sizes: tuple[int, ...]

    @property
    def size(self) -> int:
        """A, the length of an encoded action."""
        return sum(self.sizes)

    def decode(self, vector: np.ndarray) -> np.ndarray:
        """Encoded [..., A] -> what the environment takes: float32 [..., A], or int64 [...] for
        one factor, or int64 [..., factors]."""
        if self.kind == "continuous":
            return np.asarray(vector, np.float32)
        edges = np.cumsum(self.sizes)[:-1]
        parts = np.split(np.asarray(vector), edges, axis=-1)
        index = np.stack([part.argmax(-1) for part in parts], -1)
        return index[..., 0] if len(self.sizes) == 1 else index

    def encode(self, native: Any) -> np.ndarray:
        """The inverse of `decode`: what the environment takes -> float32 [..., A]."""
        if self.kind == "continuous":
            return np.asarray(native, np.float32)
        index = np.asarray(native, np.int64)
        if len(self.sizes) == 1:
            index = index[..., None]
        parts = [np.eye(n, dtype=np.float32)[index[..., i]] for i, n in enumerate(self.sizes)]
        return np.concatenate(parts, -1)


@dataclass(frozen=True)
class EnvSpec:
    """What a model or an agent must know of an environment. A key named `action_mask` is a
    "vector" of A zeros and ones: the discrete actions allowed at that observation."""

    obs: dict[str, ObsSpec]
    action: ActionSpec

    def keys(self, kind: str) -> list[str]:
        """Observation keys of one kind, sorted, `action_mask` left out."""
        return sorted(k for k, s in self.obs.items() if s.kind == kind and k != MASK_KEY)

    @property
    def seen(self) -> dict[str, ObsSpec]:
        """What models and policies see: every key but those that are only recorded."""
        return {key: obs for key, obs in self.obs.items() if obs.kind != "recorded"}

    @property
    def has_mask(self) -> bool:
        """Whether observations say which actions are allowed."""
        return MASK_KEY in self.obs


_PARTS = ("action", "reward", "is_first", "is_last", "is_terminal")  # of every batch


@dataclass
class Batch:
    """Rows drawn from replay, [B, T, ...] (see the diagram above).

    context: the stored state of the row before the first one, [B, ...], or None; where the row
    before does not exist or has no stored state, is_first[:, 0] is True.
    index: what `Replay.write_latents` needs to find these rows again.
    """

    obs: dict[str, Tensor]
    action: Tensor
    reward: Tensor
    is_first: Tensor
    is_last: Tensor
    is_terminal: Tensor
    context: LatentState | None = None
    index: Any = None

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        return self.reward.shape[0], self.reward.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """All of them by name ("obs.KEY", "action", "context.deter", ...), without the index."""
        out = {f"obs.{key}": value for key, value in self.obs.items()}
        out |= {name: getattr(self, name) for name in _PARTS}
        if self.context is not None:
            out |= {f"context.{k}": v for k, v in self.context._asdict().items()}
        return out

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Batch:
        """The batch with these `tensors`."""
        obs = {k.removeprefix("obs."): v for k, v in tensors.items() if k.startswith("obs.")}
        context = [tensors.get(f"context.{name}") for name in LatentState._fields]
        return cls(
            obs,
            **{name: tensors[name] for name in _PARTS},
            context=None if context[0] is None else LatentState(*context),  # type: ignore[arg-type]
        )

    def to(self, device: torch.device, non_blocking: bool = True) -> Batch:
        """The same rows on a device."""

        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=non_blocking)

        moved = Batch.of({name: move(value) for name, value in self.tensors().items()})
        moved.index = self.index
        return moved
