"""What the tests of small agents share: a replay of random rows, and what every run must do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from worldmodel.replay import Replay, ReplayConfig
from worldmodel.types import MASK_KEY, EnvSpec


def filled_replay(
    spec: EnvSpec,
    steps: int = 40,
    reward: Callable[[np.ndarray], np.ndarray] | None = None,
    terminal: bool = False,
    num_envs: int = 2,
    **settings: Any,
) -> Replay:
    """Random rows in episodes of five; they end, or with terminal=True each step ends one.

    reward: of the actions [N, A]; random without.
    """
    replay = Replay(spec, ReplayConfig(capacity=1000), num_envs, seed=3, **settings)
    rng = np.random.default_rng(0)
    length = 2 if terminal else 5
    for step in range(steps):
        first, last = step % length == 0, step % length == length - 1
        action = rng.uniform(-1, 1, (num_envs, spec.action.size)).astype(np.float32)
        if spec.action.kind == "discrete":
            action = spec.action.encode(spec.action.decode(action))
        paid = rng.normal(size=num_envs) if reward is None else reward(action)
        rows: dict[str, Any] = {
            "action": np.zeros_like(action) if first else action,
            "reward": np.zeros(num_envs, np.float32) if first else paid.astype(np.float32),
            "is_first": np.full(num_envs, first),
            "is_last": np.full(num_envs, last),
            "is_terminal": np.full(num_envs, last and (terminal or step % 2 == 0)),
        }
        replay.add(rows | observed(spec, num_envs, seed=step))
    return replay


def observed(spec: EnvSpec, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random observations [B, ...]; a mask allows one action at least."""
    rng = np.random.default_rng(seed)
    out: dict[str, np.ndarray] = {}
    for key, one in spec.obs.items():
        if one.kind == "image":
            out[key] = rng.integers(256, size=(batch, *one.shape)).astype(np.uint8)
            continue
        out[key] = rng.normal(size=(batch, *one.shape)).astype(np.float32)
        if one.kind == "discrete" or key == MASK_KEY:
            hot = np.eye(one.shape[0], dtype=np.float32)[rng.integers(one.shape[0], size=batch)]
            out[key] = hot if key != MASK_KEY else np.maximum(hot, out[key] > 0)
    return out
