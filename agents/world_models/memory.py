"""What World Models read from a replay: rows to encode, sequences for M, beginnings of dreams."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from worldmodel.config import RunError
from worldmodel.models.mdnrnn import VMWorld
from worldmodel.replay import Replay, RowIndex

PIECE = 1000  # rows of one look at the rewards


def _spans(replay: Replay) -> list[tuple[int, int, int]]:
    """What is held, as (stream, start, stop)."""
    held = [(s, a, b) for s, a, b in replay.episodes() if b > a]
    spans: dict[int, tuple[int, int, int]] = {}
    for stream, start, stop in held:
        first = spans.get(stream, (stream, start, stop))[1]
        spans[stream] = (stream, first, stop)
    return list(spans.values())


def _pieces(replay: Replay, start: int, count: int) -> list[RowIndex]:
    """Of all rows that are held, stream after stream, those from number `start` on."""
    pieces, passed = [], 0
    for stream, first, stop in _spans(replay):
        low = max(first, first + start - passed)
        high = min(stop, first + start + count - passed)
        if low < high:
            pieces.append(RowIndex(np.array([stream]), np.array([low]), high - low))
        passed += stop - first
    return pieces


def row_count(replay: Replay) -> int:
    """Rows held, over all streams."""
    return sum(stop - start for _, start, stop in _spans(replay))


@torch.no_grad()
def encode_rows(
    replay: Replay, world: VMWorld, column: str, start: int, count: int, device: torch.device
) -> None:
    """Store mean and std of V, [2 N], beside `count` rows from number `start` on."""
    for index in _pieces(replay, start, count):
        image = replay.gather(index).obs[world.key][0].to(device)
        codes = torch.cat(world.encode(image), -1)
        replay.rewrite(index, {column: codes.unsqueeze(0)})


def reward_moments(replay: Replay) -> tuple[float, float]:
    """Mean and deviation of the rewards that followed actions; a deviation of 0 counts as 1."""
    total, squares, count = 0.0, 0.0, 0
    for start in range(0, row_count(replay), PIECE):
        for index in _pieces(replay, start, PIECE):
            batch = replay.gather(index, columns=())
            rewards = batch.reward[0][~batch.is_first[0]].double()
            total, squares = total + float(rewards.sum()), squares + float(rewards.square().sum())
            count += len(rewards)
    mean = total / max(1, count)
    std = max(0.0, squares / max(1, count) - mean**2) ** 0.5
    return mean, std if std > 1e-6 else 1.0


def windows(replay: Replay, batch: int, length: int, rng: torch.Generator) -> RowIndex:
    """`batch` sequences of `length` rows: of an episode that is as long, rows from anywhere in it;
    of a shorter one, all of it and what follows. Each row is about equally likely.

    Raises RunError where nothing is long enough.
    """
    ends = replay.counts
    fits = [(s, a, b) for s, a, b in replay.episodes() if a + length <= ends[s] and b - a > 1]
    if not fits:
        raise RunError(
            f"M learns from sequences of batch_length={length} rows, but replay holds none that "
            "begins with an episode. Lower agent.batch_length, or raise agent.collect or "
            "replay.capacity."
        )
    stream, start, stop = (torch.tensor(column) for column in zip(*fits, strict=True))
    picks = torch.multinomial((stop - start).double(), batch, replacement=True, generator=rng)
    room = (stop - start - length).clamp_min(0)[picks] + 1
    offset = (torch.rand(batch, generator=rng, dtype=torch.float64) * room).long()
    return RowIndex(stream[picks].numpy(), (start[picks] + offset).numpy(), length)


def first_codes(replay: Replay, column: str, limit: int) -> Tensor:
    """The codes [S, 2 N] of the newest episodes' first rows, at most `limit`. Raises RunError
    where none is held."""
    episodes = replay.episodes()
    stream, start = (np.array([e[i] for e in episodes], np.int64) for i in (0, 1))
    batch = replay.gather(RowIndex(stream, start, 1), columns=[column])
    first = batch.columns[column][batch.is_first[:, 0], 0][-limit:]
    if not len(first):
        raise RunError(
            "Dreams begin where recorded episodes began, but replay holds no episode's beginning "
            "any more. Give env.time_limit=..., or raise replay.capacity."
        )
    return first
