"""Replay rows that name their stream and row, so that any mix-up shows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from worldmodel.replay import Replay, ReplayConfig
from worldmodel.types import ActionSpec, Batch, Column, EnvSpec, ObsSpec

SPEC = EnvSpec(
    {"image": ObsSpec("image", (4, 4, 1)), "a/b": ObsSpec("vector", (2,))},
    ActionSpec("continuous", (2,)),
)
COLUMNS = {"deter": Column((3,), "float16"), "stoch": Column((2,), "uint8", below=5)}


def make(
    capacity: float = 60,
    num_envs: int = 2,
    seed: int = 0,
    stored: bool = True,
    exponent: float = 0.0,
    **config: Any,
) -> Replay:
    columns = COLUMNS if stored else {}
    settings = ReplayConfig(capacity=capacity, **config)
    return Replay(SPEC, settings, num_envs, columns, seed, priority_exponent=exponent)


def columns_of(stream: Any, row: Any) -> dict[str, torch.Tensor]:
    """Values that name their stream and row; whole numbers survive float16."""
    stream, row = torch.tensor(stream), torch.tensor(row)
    deter = torch.stack([stream, row // 100, row % 100], -1).half()
    return {"deter": deter, "stoch": torch.stack([stream % 5, row % 5], -1).byte()}


def add(
    replay: Replay,
    steps: int,
    ids: Sequence[int] | None = None,
    episode: int = 7,
    stored: bool = True,
) -> None:
    """`steps` rows that name their stream and row; episodes are `episode` rows long."""
    streams = np.arange(replay.num_envs) if ids is None else np.asarray(ids)
    for _ in range(steps):
        row = replay.counts[streams]
        rows = {
            "image": np.broadcast_to((row % 251)[:, None, None, None], (len(row), 4, 4, 1)),
            "a/b": np.stack([streams, row], -1),
            "action": np.stack([row, -row], -1).astype(np.float32),
            "reward": row.astype(np.float32),
            "is_first": row % episode == 0,
            "is_last": row % episode == episode - 1,
            "is_terminal": row % (2 * episode) == episode - 1,
        }
        rows["image"] = rows["image"].astype(np.uint8)
        if stored:
            rows |= columns_of(streams, row)
        replay.add(rows, None if ids is None else streams)


def check(batch: Batch) -> None:
    """Every row is the one that its index names, in every key."""
    length = batch.shape[1]
    row = batch.index.start[:, None] + np.arange(length)
    assert np.array_equal(batch.obs["a/b"][..., 1], row)
    assert np.all(batch.obs["a/b"][..., 0].numpy() == batch.index.stream[:, None])
    assert np.array_equal(batch.obs["image"][:, :, 2, 3, 0], row % 251)
    assert np.array_equal(batch.action, np.stack([row, -row], -1))
    assert np.array_equal(batch.reward, row)


def same(a: Batch, b: Batch) -> bool:
    pairs = [(getattr(a, k), getattr(b, k)) for k in ("action", "reward", "is_first", "is_last")]
    pairs += [(a.is_terminal, b.is_terminal), *[(a.obs[k], b.obs[k]) for k in a.obs]]
    assert a.context.keys() == b.context.keys()
    pairs += [(a.context[k], b.context[k]) for k in a.context]
    return all(torch.equal(x, y) for x, y in pairs)
