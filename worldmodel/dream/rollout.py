"""Open loop: a model follows what really happened for a while, then goes on by itself."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldmodel import tree
from worldmodel.capabilities import Decodes, Surprises, start_of
from worldmodel.types import Batch


class OpenLoop(NamedTuple):
    """What a model showed and predicted at every row of a batch, [B, T, ...] each.

    shown: what it decodes by key, images in [0, 1] and vectors in their own units; empty for a
    model that cannot decode. reward, cont: its predictions, cont that of going on; 0 and 1 for the
    rows of the context. surprise: the surprise of each row in nats
    (`Surprises`), 0 for the context; None where nobody asked or the model cannot say.
    """

    shown: dict[str, Tensor]
    reward: Tensor
    cont: Tensor
    surprise: Tensor | None = None


@torch.no_grad()
def open_loop(
    model: Any,
    batch: Batch,
    context: int = 5,
    surprise: bool = False,
    dreams: int = 1,
    start: Any = None,
) -> OpenLoop:
    """Follow a batch for `context` rows, then go on from its actions alone.

        row          0 ... context-1            context ... T-1
        state        model.observe (posterior)  model.step (prior): no observation arrives
        prediction   a reconstruction           an open-loop prediction

    model: a `Dynamics`, which may be one that Decodes; batch: [B, T, ...] rows on its device.
    dreams: how many go on from each sequence; what is given back is their mean, the model's
    expectation (of squared error it has the least). start: the states before the first rows,
    unless they are those of `start_of`. Raises ValueError unless 1 <= context < T and dreams >= 1.
    """
    size, length = batch.shape
    if dreams < 1:
        raise ValueError(f"dreams={dreams}: at least one must go on.")
    if not 1 <= context < length:
        raise ValueError(
            f"context={context} must be at least 1 and less than the batch's {length} rows."
        )
    state = start_of(model, batch) if start is None else start
    nothing = torch.zeros_like(batch.reward[:, 0])
    shown: dict[str, list[Tensor]] = {}
    rewards, conts, surprises = [], [], []
    asked = surprise and isinstance(model, Surprises)

    def several(x: Tensor) -> Tensor:
        return x.repeat_interleave(dreams, 0) if dreams > 1 and t >= context else x

    def mean(x: Tensor) -> Tensor:
        return x.unflatten(0, (size, dreams)).mean(1) if len(x) > size else x

    for t in range(length):
        obs = {key: several(value[:, t]) for key, value in batch.obs.items()}
        action = several(batch.action[:, t])
        if t == context:
            state, nothing = tree.map(several, state), several(nothing)
        if t < context:
            state = model.observe(state, obs, action, batch.is_first[:, t])
            reward, cont, nats = nothing, nothing + 1, nothing
        else:
            nats = model.surprise(state, obs, action) if asked else nothing
            state, reward, cont = model.step(state, action)
        rewards.append(mean(reward))
        conts.append(mean(cont))
        surprises.append(mean(nats))
        for key, value in decoded(model, state).items():
            shown.setdefault(key, []).append(mean(value))
    return OpenLoop(
        {key: torch.stack(values, 1) for key, values in shown.items()},
        torch.stack(rewards, 1),
        torch.stack(conts, 1),
        torch.stack(surprises, 1) if asked else None,
    )


@torch.no_grad()
def follow(model: Any, batch: Batch, start: Any = None) -> Any:
    """The states [B, T, ...] of a model that is shown every row of a batch. start: the states
    before the first rows, unless they are those of `start_of`."""
    state = start_of(model, batch) if start is None else start
    states = []
    for t in range(batch.shape[1]):
        obs = {key: value[:, t] for key, value in batch.obs.items()}
        state = model.observe(state, obs, batch.action[:, t], batch.is_first[:, t])
        states.append(state)
    return tree.stack(states, 1)


def decoded(model: Any, state: Any) -> dict[str, Tensor]:
    """What a state looks like by key, [B, ...]; empty for a model that cannot decode."""
    return model.decode(state) if isinstance(model, Decodes) else {}


def device_of(model: Any) -> torch.device:
    """Where a model's numbers live."""
    return tree.device(model.initial(1))


def cut(batch: Batch, sequences: slice | Tensor, rows: slice) -> Batch:
    """Part of a batch; its context only where the first row is kept."""

    def part(x: Tensor) -> Tensor:
        return x[sequences, rows]

    return Batch(
        {key: part(value) for key, value in batch.obs.items()},
        part(batch.action),
        part(batch.reward),
        part(batch.is_first),
        part(batch.is_last),
        part(batch.is_terminal),
        {key: part(value) for key, value in batch.columns.items()},
        {} if rows.start else {key: value[sequences] for key, value in batch.context.items()},
    )
