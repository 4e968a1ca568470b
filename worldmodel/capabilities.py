"""What a world may offer beyond `worldmodel.types.Dynamics`: ask with isinstance.

A method that depends on how the world is configured is set on its instances and not in its class,
so that isinstance is right.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from worldmodel import tree
from worldmodel.types import Batch, Column, Prediction

S = TypeVar("S")  # the state of a world
S_contra = TypeVar("S_contra", contravariant=True)


@runtime_checkable
class Decodes(Protocol[S_contra]):
    """Shows what a state looks like."""

    def decode(self, state: S_contra) -> dict[str, Tensor]:
        """Images in [0, 1] [..., H, W, C], vectors in their own units, by observation key."""
        ...


@runtime_checkable
class Features(Protocol[S_contra]):
    """Describes a state in numbers, for heads and detectors."""

    @property
    def feat_size(self) -> int:
        """F."""
        ...

    @property
    def feat_bound(self) -> float:
        """No entry of `feat` is larger in absolute value; math.inf where there is no bound."""
        ...

    def feat(self, state: S_contra) -> Tensor:
        """[..., F]."""
        ...


@runtime_checkable
class Surprises(Protocol[S_contra]):
    """Says how much an observation tells it."""

    def surprise(
        self,
        state: S_contra,
        obs: dict[str, Tensor],
        action: Tensor,
        believed: S_contra | None = None,
    ) -> Tensor:
        """Nats [B] that obs [B, ...] tells beyond what was predicted for it from the state before
        it and the action [B, A] that led to it; beyond what `believed` predicts, another state
        before it, where that is given. [B, K] for K actions [B, K, A] that may have led to it.
        Draws nothing."""
        ...


def for_each_action(surprise: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`Surprises.surprise` of a world that answers for one action [B, A], made to answer for K of
    them [B, K, A], too: all else is repeated."""

    @functools.wraps(surprise)
    def answer(
        world: Any, state: Any, obs: dict[str, Tensor], action: Tensor, believed: Any = None
    ) -> Tensor:
        if action.dim() == 2:
            return surprise(world, state, obs, action, believed)
        count = action.shape[1]
        given = tree.map(lambda x: x.repeat_interleave(count, 0), (state, obs, believed))
        nats = surprise(world, given[0], given[1], action.flatten(0, 1), given[2])
        return nats.unflatten(0, (-1, count))

    return answer


@runtime_checkable
class Expects(Protocol[S]):
    """Looks ahead without drawing anything."""

    @property
    def expects_reward(self) -> bool:
        """Whether the reward is the environment's own; False where another one was learned."""
        ...

    def expect(self, state: S, action: Tensor) -> Prediction[S]:
        """As `Dynamics.step`, with the expectation of the next state in place of a draw."""
        ...


@runtime_checkable
class Unrolls(Protocol[S]):
    """Follows actions that are known from the start sooner than one `step` after the other."""

    def unroll(self, state: S, actions: Tensor) -> Prediction[S]:
        """What `Dynamics.step` gives for each of actions [B, H, A] in turn: states [B, H, ...],
        rewards and cont [B, H]."""
        ...


@runtime_checkable
class Deterministic(Protocol):
    """Says whether its steps draw anything."""

    @property
    def deterministic(self) -> bool:
        """Whether the same action in the same state always leads to the same prediction."""
        ...


@runtime_checkable
class Uncertain(Protocol[S_contra]):
    """Knows how unsure it is of what an action leads to."""

    @property
    def uncertainty_unit(self) -> str:
        """What a value of 1 means."""
        ...

    def uncertainty(self, state: S_contra, action: Tensor) -> Tensor:
        """[B], in `uncertainty_unit`, for action [B, A]."""
        ...


@runtime_checkable
class Masks(Protocol[S_contra]):
    """Knows which discrete actions a state allows."""

    def action_mask(self, state: S_contra) -> Tensor | None:
        """[..., A] of 0 and 1, or None where all actions are allowed."""
        ...


@runtime_checkable
class Alternates(Protocol):
    """Says whether two players move in turn."""

    @property
    def alternates(self) -> bool:
        """Whether each state is seen, and each reward paid, from the side of who moves there: a
        value counts with the other sign one step before."""
        ...


@runtime_checkable
class Packs(Protocol[S]):
    """Stores its states beside the rows of a replay, as columns."""

    @property
    def columns(self) -> Mapping[str, Column]:
        """What one state becomes."""
        ...

    def pack(self, state: S) -> dict[str, Tensor]:
        """Values [..., *shape] of `columns`, on the state's device."""
        ...

    def unpack(self, columns: Mapping[str, Tensor]) -> S:
        """The states [..., ...] that stored values hold, on their device."""
        ...


@runtime_checkable
class Relabels(Protocol[S_contra]):
    """Predicts a reward that need not be the environment's."""

    def recorded_reward(self, batch: Batch, states: S_contra) -> Tensor:
        """That reward of recorded rows [B, T], in the states [B, T, ...] after them."""
        ...


@runtime_checkable
class Compares(Protocol):
    """Says how alike single observations are."""

    def comparable(self, obs: dict[str, Tensor]) -> Tensor:
        """What it makes of observations [B, ...] without a past, [B, G]: the nearer, the more
        alike. Draws nothing."""
        ...


@runtime_checkable
class Learns(Protocol):
    """Learns from recorded sequences."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise and metrics; never steps, never calls backward."""
        ...


@runtime_checkable
class Fits(Protocol):
    """Learns from everything that was recorded, by itself: what is held out, how long, with which
    optimizer are its own affair."""

    def fit(self, replay: Any) -> dict[str, Any]:
        """Learn from all rows of a `worldmodel.replay.Replay`; metrics."""
        ...


@runtime_checkable
class Controls(Protocol):
    """Predicts one or a sum of several rewards."""

    @property
    def control(self) -> Mapping[str, float]:
        """The weight of each in what `step` gives as the reward."""
        ...


def start_of(model: Any, batch: Batch) -> Any:
    """The states [B, ...] of a `Dynamics` before the first rows of a batch on its device: those
    that were stored with the rows before them, where the model packs states, else initial ones."""
    if isinstance(model, Packs) and model.columns.keys() <= batch.context.keys():
        return model.unpack(batch.context)
    return model.initial(batch.shape[0])
