"""What every part of a detector is: one way in which an observation can be strange."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from worldmodel.ood.api import Memory
from worldmodel.ood.look import Look


class Part(nn.Module):
    """A raw score of one tick; larger is stranger, in any unit. Calibration makes it comparable.

    name: of the part. needs: fields of `Look` without which there is no score. grain: the smallest
    difference between raw scores that means anything.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    grain: ClassVar[float] = 1e-9

    def fit(self, known: Look, held: Look) -> None:
        """Learn from rows [N, ...] that the autoencoder was trained on, and from rows of other
        episodes, which it was not. Most parts have nothing to learn."""

    def memory(self, batch_size: int) -> Memory:
        """Zeros [B, ...]: what it remembers before the first tick, if it remembers anything."""
        return {}

    def forward(self, look: Look, memory: Memory) -> tuple[Tensor, Memory]:
        """Raw score [B] and the next memory. A row whose episode begins comes with zeros."""
        raise NotImplementedError


def seen(value: Tensor | None) -> Tensor:
    """A field of a look that is there, since the part's `needs` names it."""
    assert value is not None
    return value


def rows_of(look: Look, most: int, seed: int = 0) -> Look:
    """At most so many rows of a look [N, ...], drawn at random."""
    first = next(x for x in look if isinstance(x, Tensor))
    if len(first) <= most:
        return look
    index = torch.randperm(len(first), generator=torch.Generator().manual_seed(seed))[:most]
    return Look(*(None if x is None else picked(x, index) for x in look))  # type: ignore[arg-type]


def picked(value: object, index: Tensor) -> object:
    """Rows of a tensor, or of each tensor of a latent state."""
    return value[index] if isinstance(value, Tensor) else value.map(lambda x: x[index])  # type: ignore[attr-defined]
