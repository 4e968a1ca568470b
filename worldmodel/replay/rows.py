"""Rows by their numbers: where a batch lies, what was stored with it, and recorded episodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from worldmodel.replay.latents import LatentSpec
from worldmodel.replay.ring import Ring
from worldmodel.replay.schema import FIRST, LAST, LATENT
from worldmodel.types import LatentState


@dataclass(frozen=True)
class RowIndex:
    """Where the rows of a batch lie: stream [B], absolute number of the first row [B], and T."""

    stream: np.ndarray
    start: np.ndarray
    length: int


def check(ring: Ring, index: RowIndex) -> None:
    """Raises ValueError where a ring does not, or no longer, hold the rows of an index."""
    stream, start = index.stream, index.start
    inside = index.length >= 1 and bool(np.all((stream >= 0) & (stream < ring.streams)))
    if not inside or np.any(
        (start < ring.oldest[stream]) | (start + index.length > ring.count[stream])
    ):
        raise ValueError(
            f"Rows {start.tolist()} + {index.length} of streams {stream.tolist()} are not "
            f"held; streams hold {ring.oldest.tolist()} to {ring.count.tolist()}."
        )


def context(
    ring: Ring, latent: LatentSpec | None, index: RowIndex
) -> tuple[LatentState | None, np.ndarray]:
    """The states stored with the rows before those of an index, [B, ...], and where there is one,
    bool [B]; zero elsewhere."""
    if latent is None:
        return None, np.zeros(len(index.start), bool)
    oldest = ring.oldest[index.stream]
    before = np.maximum(index.start - 1, oldest)  # the first row itself, where none is before it
    copies, whole = ring.copies(("flags", "deter", "stoch"), index.stream, before, 1)
    flags, deter, stoch = (copy.numpy()[:, 0] for copy in copies.values())
    known = (index.start > oldest) & whole & ((flags & LATENT) != 0)
    if known.all():
        return latent.unpack(deter, stoch), known
    deter[~known] = stoch[~known] = 0
    state = latent.unpack(deter, stoch)
    state.stoch[~torch.from_numpy(known)] = 0.0  # index 0 would decode to a one
    return state, known


def latents(ring: Ring, latent: LatentSpec, index: RowIndex) -> LatentState:
    """The states stored with the rows at an index, float32 [B, T, ...] on the CPU.

    Raises ValueError where rows are not held, or hold no state.
    """
    check(ring, index)
    names = ("flags", "deter", "stoch")
    copies = ring.take(names, index.stream, index.start, index.length)
    if not ((copies["flags"] & LATENT) != 0).all():
        raise ValueError("Some of these rows have no stored state (see write_latents).")
    return latent.unpack(copies["deter"].numpy(), copies["stoch"].numpy())


def episodes(ring: Ring, complete: bool) -> list[tuple[int, int, int]]:
    """Recorded episodes as (stream, start, stop), stop excluded; see `Replay.episodes`."""
    ring.forget_overwritten()
    found = []
    for stream in range(ring.streams):
        low, high = int(ring.oldest[stream]), int(ring.count[stream])
        flags = np.empty(high - low, np.uint8)
        ring.read("flags", stream, low, flags)
        starts = np.flatnonzero(flags & FIRST)
        edges = np.unique(np.concatenate([[0], starts, [len(flags)]]))
        for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            if not complete or (flags[a] & FIRST and flags[b - 1] & LAST):
                found.append((stream, low + a, low + b))
    return found
