"""What an environment itself takes and gives, for those who program a robot after its manifest."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
from gymnasium import spaces

from agents.base import Policy
from worldmodel.envs import EnvError, make_env
from worldmodel.envs.actions import native_space
from worldmodel.envs.observe import native_observations
from worldmodel.envs.spaces import class_counts, leaves


def native(policy: Policy) -> dict[str, Any]:
    """What the environment itself takes, for an action's every entry, and what its discrete
    observations start at; with the reason where the environment is not here."""
    try:
        with closing(make_env(policy.env, spec=policy.spec)) as env:
            action, observed = native_space(env), native_observations(env)
    except EnvError as error:
        return {"unknown": str(error)[:300]}
    starts = {
        leaf.key: _entries(leaf.space)
        for leaf in leaves(observed, policy.env)
        if leaf.kind == "discrete" and leaf.key in policy.spec.seen
    }
    return {"action": _entries(action), "observation": starts}


def _entries(space: Any) -> dict[str, Any]:
    """low and high of a Box, start and number of classes of whole numbers; one for each entry."""
    if isinstance(space, spaces.Box):
        ends = {"low": space.low, "high": space.high}
        return {name: np.ravel(x).astype(float).tolist() for name, x in ends.items()}
    counts = class_counts(space)
    start = np.broadcast_to(np.ravel(getattr(space, "start", 0)), (len(counts),))
    return {"start": [int(n) for n in start], "classes": list(counts)}
