"""Where dreams begin: recorded experience, or frames that somebody gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from worldmodel.dream.rollout import cut
from worldmodel.replay import Replay, RowIndex
from worldmodel.types import Batch, EnvSpec

# Draws `count` beginnings, rows [count, T], with the generator that it is given.
Starts = Callable[[np.random.Generator, int], Batch]


def starts_from(replay: Replay, context: int = 5) -> Starts:
    """Beginnings out of recorded experience: `context` rows of one episode, each equally likely,
    none of them an episode's last. Raises ValueError where no episode is that long."""
    episodes = replay.episodes()
    fits = [e for e in episodes if e[2] - e[1] > context]
    if context < 1 or not fits:
        longest = max((stop - start for _, start, stop in episodes), default=0)
        raise ValueError(
            f"No dream can begin with context={context} rows: the longest of the recorded "
            f"episodes has {longest}, its last one included. Give a context from 1 to "
            f"{longest - 1}."
        )
    streams = np.concatenate([np.full(stop - context - start, n) for n, start, stop in fits])
    rows = np.concatenate([np.arange(start, stop - context) for _, start, stop in fits])

    def draw(rng: np.random.Generator, count: int) -> Batch:
        picks = rng.integers(len(rows), size=count)
        return replay.gather(RowIndex(streams[picks], rows[picks], context), context=replay.columns)

    return draw


def starts_of(batch: Batch) -> Starts:
    """Beginnings out of given rows [B, T], each sequence equally likely."""

    def draw(rng: np.random.Generator, count: int) -> Batch:
        picks = torch.from_numpy(rng.integers(batch.shape[0], size=count))
        return cut(batch, picks, slice(None))

    return draw


def rows_of_frames(spec: EnvSpec, obs: Mapping[str, Any], actions: Sequence[Any] = ()) -> Batch:
    """The rows [1, T] of an episode's beginning, from what was seen and done in it.

    obs: T observations of every key, [T, ...]; actions: the T - 1 native actions between them.
    Raises ValueError where a key is missing or the numbers do not fit.
    """
    missing = sorted(set(spec.seen) - set(obs))
    if missing:
        raise ValueError(f"The frames lack {missing}; needed: {sorted(spec.seen)}.")
    arrays = {key: np.asarray(obs[key]) for key in spec.seen}
    for key, array in arrays.items():
        if array.ndim != len(spec.seen[key].shape) + 1 or array.shape[1:] != spec.seen[key].shape:
            wanted = ", ".join(map(str, spec.seen[key].shape))
            raise ValueError(f"'{key}' has shape {list(array.shape)}; needed: [T, {wanted}].")
    lengths = {key: len(array) for key, array in arrays.items()}
    length = next(iter(lengths.values()))
    if set(lengths.values()) != {len(actions) + 1}:
        raise ValueError(
            f"{lengths} frames with {len(actions)} actions between them: T frames of every key "
            "need T - 1 actions."
        )
    encoded = np.zeros((length, spec.action.size), np.float32)
    for t, action in enumerate(actions):
        encoded[t + 1] = spec.action.encode(action)
    kinds = {key: np.uint8 if s.kind == "image" else np.float32 for key, s in spec.seen.items()}
    first = torch.arange(length)[None] == 0
    nothing = torch.zeros(1, length)
    return Batch(
        {k: torch.from_numpy(np.array(v, kinds[k]))[None] for k, v in arrays.items()},
        torch.from_numpy(encoded)[None],
        nothing,
        first,
        nothing.bool(),
        nothing.bool(),
    )
