"""Episodes side by side: one in each environment, for whoever acts on all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# From the tick, the observations, the rewards [B] of the last actions (0 at first) and whose
# episode still goes on [B] bool: native actions, one for each.
Act = Callable[[int, list[Any], np.ndarray, np.ndarray], Any]


def play_out(envs: Sequence[Any], act: Act) -> list[list[float]]:
    """The rewards of one complete episode in each environment. What has ended keeps its last
    observation until all have. Closes the environments."""
    try:
        obs = [env.reset()[0] for env in envs]
        rewards: list[list[float]] = [[] for _ in envs]
        going = np.ones(len(envs), bool)
        tick = 0
        while going.any():
            last = np.array([one[-1] if one else 0.0 for one in rewards], np.float32)
            native = act(tick, obs, last, going)
            for i in map(int, np.flatnonzero(going)):
                obs[i], reward, terminated, truncated, _ = envs[i].step(native[i])
                rewards[i].append(float(reward))
                going[i] = not (terminated or truncated)
            tick += 1
        return rewards
    finally:
        for env in envs:
            env.close()
