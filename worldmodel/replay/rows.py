"""Rows by their numbers: where a batch lies, what was stored with it, and recorded episodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worldmodel.replay.ring import Ring
from worldmodel.replay.schema import COLUMN, FIRST, FLAGS, LAST, OBS, STORED, TERMINAL
from worldmodel.types import Transitions


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


def context(ring: Ring, fields: list[str], index: RowIndex) -> tuple[dict[str, Tensor], np.ndarray]:
    """Columns of the rows before those of an index, [B, ...], and where there are some, bool [B];
    zeros elsewhere. fields: their names in the ring."""
    if not fields:
        return {}, np.zeros(len(index.start), bool)
    oldest = ring.oldest[index.stream]
    before = np.maximum(index.start - 1, oldest)  # the first row itself, where none is before it
    copies, whole = ring.copies(("flags", *fields), index.stream, before, 1)
    flags = copies.pop("flags").numpy()[:, 0]
    known = (index.start > oldest) & whole & ((flags & STORED) != 0)
    found = {name.removeprefix(COLUMN): copy[:, 0] for name, copy in copies.items()}
    if not known.all():
        for value in found.values():
            value.numpy()[~known] = 0
    return found, known


def write(ring: Ring, index: RowIndex, values: dict[str, np.ndarray], every: bool) -> None:
    """Overwrite fields of columns, [B, T, ...], in the rows of an index that are still held.

    Raises ValueError, nothing written, where rows have no columns, unless this is `every` column.
    """
    skips = np.maximum(0, ring.oldest[index.stream] - index.start)
    places = zip(index.stream.tolist(), index.start.tolist(), skips.tolist(), strict=True)
    pieces = [place for place in enumerate(places) if place[1][2] < index.length]
    if not every and not all(
        ring.all_stored(stream, start + skip, index.length - skip)
        for _, (stream, start, skip) in pieces
    ):
        raise ValueError("Some of these rows have no columns yet: give all columns.")
    for b, (stream, start, skip) in pieces:
        for name, array in values.items():
            ring.write(name, stream, start + skip, array[b, skip:])
        ring.mark_stored(stream, start + skip, index.length - skip)


def rows(
    ring: Ring, fields: list[str], stream: int, start: int, stop: int
) -> dict[str, np.ndarray]:
    """Copies [T, ...] of some rows of one stream by key; see `Replay.rows`."""
    check(ring, RowIndex(np.array([stream]), np.array([start]), stop - start))
    out = {}
    for name in fields:
        values = np.empty((stop - start, *ring.fields[name].shape), ring.fields[name].dtype)
        ring.read(name, stream, start, values)
        out[name.removeprefix(OBS)] = values
    flags = out.pop("flags")
    return out | {name: (flags & bit) != 0 for name, bit in FLAGS.items()}


def transitions(
    ring: Ring, index: RowIndex, steps: int, discount: float, weight: np.ndarray
) -> Transitions:
    """The transitions of up to so many steps that begin at the rows of an index, none of which
    ends an episode or is the newest of its stream."""
    stream, start = index.stream, index.start
    rows = start[:, None] + np.arange(1, steps + 1)  # [B, n]
    held = rows <= (ring.count[stream] - 1)[:, None]
    # What lies beyond the newest row is not held: row t + 1 stands in for it, and does not count.
    taken = np.where(held, rows, start[:, None] + 1).ravel()
    row = ring.take(("flags", "reward"), stream.repeat(steps), taken, 1)
    flags, paid = (row[name].numpy().reshape(rows.shape) for name in ("flags", "reward"))
    last = (flags & LAST) != 0
    counts = held & (last.cumsum(1) - last == 0)  # as far as the episode's last row
    length = counts.sum(1)
    powers = float(discount) ** np.arange(steps + 1)
    reward = np.where(counts, powers[:-1] * paid, 0.0).sum(1)
    factor = np.where((counts & ((flags & TERMINAL) != 0)).any(1), 0.0, powers[length])
    names = [name for name in ring.fields if name.startswith(OBS)]
    places = np.concatenate([start, start + length])
    obs = ring.take(names, np.concatenate([stream, stream]), places, 1)
    both = {name.removeprefix(OBS): value[:, 0].chunk(2) for name, value in obs.items()}
    return Transitions(
        {key: seen for key, (seen, _) in both.items()},
        ring.take(("action",), stream, start + 1, 1)["action"][:, 0],
        torch.from_numpy(reward.astype(np.float32)),
        torch.from_numpy(factor.astype(np.float32)),
        {key: then for key, (_, then) in both.items()},
        torch.from_numpy(weight),
        index,
    )


def beginnings(ring: Ring, stream: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Which rows [B], none of them the newest of its stream, begin a transition, bool [B]."""
    flags = ring.take(("flags",), stream, row, 1)["flags"].numpy()[:, 0]
    found: np.ndarray = (flags & LAST) == 0
    return found


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
