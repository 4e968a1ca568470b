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
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from worldmodel import tree

MASK_KEY = "action_mask"
PLAYER_KEY = "to_play"

S = TypeVar("S")  # the state of a world


class Prediction(NamedTuple, Generic[S]):
    """One predicted step: the next state [B, ...], the reward [B] of arriving there, and
    P(the episode goes on) [B], undiscounted: whoever imagines multiplies by `Dynamics.discount`."""

    state: S
    reward: Tensor
    cont: Tensor


@runtime_checkable
class Dynamics(Protocol[S]):
    """A learned world; also a table, and the true equations. Imagination, planners and dreams use
    only this.

    Its states S are NamedTuples of tensors with leading batch axes. Nobody but the world and its
    agent looks inside; everybody else uses `worldmodel.tree`.
    """

    @property
    def discount(self) -> float:
        """The discount per step that the world was learned for; never part of `cont`."""
        ...

    def initial(self, batch_size: int) -> S:
        """The state before anything was seen, [B, ...]."""
        ...

    def observe(self, state: S, obs: dict[str, Tensor], action: Tensor, is_first: Tensor) -> S:
        """State after obs [B, ...] arrived through action [B, A]; where is_first [B], `state` and
        `action` count as the initial ones."""
        ...

    def step(self, state: S, action: Tensor) -> Prediction[S]:
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

    def fault(self, given: np.ndarray) -> str:
        """What is wrong with the type or the numbers of observations, or "": what a model would
        take for something else without a word."""
        if self.kind == "image":
            return "" if given.dtype == np.uint8 else f"type {given.dtype}; uint8 needed"
        if given.dtype.kind not in "fiub":
            return f"type {given.dtype}; numbers needed"
        # float64 beyond float32 would become infinite behind the check.
        with np.errstate(over="ignore"):
            return "" if np.isfinite(given.astype(np.float32)).all() else "not finite"


@dataclass(frozen=True)
class ActionSpec:
    """How actions travel through models and replay: one float32 vector [A].

    kind: "continuous" (each entry in [-1, 1]; `sizes` = (A,)) or "discrete" (one-hot vectors of
    the factors, concatenated; `sizes` = classes of each factor, one factor for Discrete).
    """

    kind: str
    sizes: tuple[int, ...]

    def __str__(self) -> str:
        """For people: "continuous, 2 in [-1, 1]", "discrete, 3 x 2"."""
        if self.kind == "continuous":
            return f"{self.kind}, {self.size} in [-1, 1]"
        return f"{self.kind}, {' x '.join(map(str, self.sizes))}"

    @property
    def size(self) -> int:
        """A, the length of an encoded action."""
        return sum(self.sizes)

    def decode(self, vector: np.ndarray) -> np.ndarray:
        """Encoded [..., A] -> what the environment takes: float32 [..., A], or int64 [...] for
        one factor, or int64 [..., factors]. A continuous action is clipped on the way."""
        if self.kind == "continuous":
            return np.asarray(self.clip(vector), np.float32)
        edges = np.cumsum(self.sizes)[:-1]
        parts = np.split(np.asarray(vector), edges, axis=-1)
        index = np.stack([part.argmax(-1) for part in parts], -1)
        return index[..., 0] if len(self.sizes) == 1 else index

    def permitted(self, vector: np.ndarray, mask: Any) -> np.ndarray:
        """An encoded action [A] as a mask [A] (None: all is allowed) allows it: of a factor whose
        class is forbidden, the first class that is not. A factor without any stays as it is."""
        if mask is None or self.kind == "continuous":
            return vector
        out, mask = vector.copy(), np.asarray(mask) > 0
        edges = np.cumsum(self.sizes)[:-1]
        for part, allowed in zip(np.split(out, edges), np.split(mask, edges), strict=True):
            if allowed.any() and not allowed[part.argmax()]:
                part[:] = 0
                part[allowed.argmax()] = 1
        return out

    def clip(self, vector: Any) -> Any:
        """An encoded action [..., A], array or tensor, as the environment executes it: entries of
        a continuous one within [-1, 1]. Replay keeps actions as they were drawn; this is the one
        place that clips them."""
        return vector.clip(-1.0, 1.0) if self.kind == "continuous" else vector

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
class Column:
    """What an agent wants stored beside each row: latents, search policies, root values.

    shape, dtype: of one row's value; dtype as NumPy names it. rewritable: whether
    `Replay.rewrite` may change it. below: whole numbers are less than this, where it is given;
    what is not, or is not finite, counts as damaged.
    """

    shape: tuple[int, ...]
    dtype: str
    rewritable: bool = True
    below: int | None = None


@dataclass(frozen=True)
class EnvSpec:
    """What a model or an agent must know of an environment. A key named `action_mask` is a
    "vector" of A zeros and ones: the discrete actions allowed at that observation. One named
    `to_play` says which of two players moves next: rewards are then those of who moved, and
    observations are seen from the side of who moves."""

    obs: dict[str, ObsSpec]
    action: ActionSpec

    def keys(self, kind: str) -> list[str]:
        """Observation keys of one kind, sorted, `action_mask` left out."""
        return sorted(k for k, s in self.obs.items() if s.kind == kind and k != MASK_KEY)

    @property
    def seen(self) -> dict[str, ObsSpec]:
        """What models and policies see: every key but those that are only recorded."""
        return {key: obs for key, obs in self.obs.items() if obs.kind != "recorded"}

    def differences(self, other: EnvSpec) -> list[str]:
        """Where another spec is not this one, a few words each; more keys are no difference."""
        lines = [
            f"'{key}' is {_brief(other.obs.get(key))} instead of {_brief(spec)}"
            for key, spec in self.obs.items()
            if other.obs.get(key) != spec
        ]
        if other.action != self.action:
            lines.append(f"actions are {_brief(other.action)} instead of {_brief(self.action)}")
        return lines

    @property
    def has_mask(self) -> bool:
        """Whether observations say which actions are allowed."""
        return MASK_KEY in self.obs


def _brief(spec: ObsSpec | ActionSpec | None) -> str:
    """A spec in a few words."""
    if spec is None:
        return "missing"
    shape = " x ".join(map(str, spec.shape if isinstance(spec, ObsSpec) else spec.sizes))
    classes = f" of classes {list(spec.sizes)}" if isinstance(spec, ObsSpec) and spec.sizes else ""
    return f"{spec.kind} {shape}{classes}"


_PARTS = ("action", "reward", "is_first", "is_last", "is_terminal")  # of every batch
_GROUPS = ("obs", "columns", "context")  # and these, by key


@dataclass
class Batch:
    """Rows drawn from replay, [B, T, ...] (see the diagram above).

    columns: stored values of these rows by name [B, T, ...], as far as they were asked for.
    context: those of the row before the first one, [B, ...]; where there are none they are zeros
    and is_first[:, 0] is True.
    weight: of each sequence's loss [B], where some are drawn more often than others; else None.
    index: what `Replay.rewrite` needs to find these rows again.
    """

    obs: dict[str, Tensor]
    action: Tensor
    reward: Tensor
    is_first: Tensor
    is_last: Tensor
    is_terminal: Tensor
    columns: dict[str, Tensor] = field(default_factory=dict)
    context: dict[str, Tensor] = field(default_factory=dict)
    weight: Tensor | None = None
    index: Any = None

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        return self.reward.shape[0], self.reward.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """All of them by name ("obs.KEY", "action", "context.NAME", ...), without the index."""
        out = {f"{of}.{key}": x for of in _GROUPS for key, x in getattr(self, of).items()}
        out |= {name: getattr(self, name) for name in _PARTS}
        return out if self.weight is None else out | {"weight": self.weight}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Batch:
        """The batch with these `tensors`."""
        parts: dict[str, Any] = {name: {} for name in _GROUPS}
        for name, value in tensors.items():
            group, _, key = name.partition(".")
            if key:
                parts[group][key] = value
            else:
                parts[name] = value
        return cls(**parts)

    def since(self, row: int) -> Batch:
        """The rows from this one on, without index and context."""
        if not row:
            return self
        parts = {
            name: x if name == "weight" else x[:, row:]
            for name, x in self.tensors().items()
            if not name.startswith("context.")
        }
        return Batch.of(parts)

    def to(self, device: torch.device, non_blocking: bool = True) -> Batch:
        """The same rows on a device."""

        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=non_blocking)

        moved = Batch.of({name: move(value) for name, value in self.tensors().items()})
        moved.index = self.index
        return moved


class Transitions(NamedTuple):
    """Steps drawn from replay, [B, ...] each: what was seen, what was done, what came of it.

        row         t              t+1 ... t+k-1        t+k
        obs         obs                                 next_obs
        action                     action
        reward                     r_1     r_{k-1}      r_k       reward = sum of gamma^(i-1) r_i

    discount is gamma^k, and 0 where row t+k is terminal: the value of next_obs counts this much.
    k is n, as it was asked for, or less where the episode ends or goes on no further yet; no
    transition leaves its episode. weight: of its loss, 1 where all are drawn alike. index: what
    `Replay.reweigh` needs to find row t again.
    """

    obs: dict[str, Tensor]
    action: Tensor
    reward: Tensor
    discount: Tensor
    next_obs: dict[str, Tensor]
    weight: Tensor
    index: Any = None

    def to(self, device: torch.device) -> Transitions:
        """The same transitions on a device."""
        return tree.to(self, device, non_blocking=True)
