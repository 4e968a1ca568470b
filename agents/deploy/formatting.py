"""What the caller of a tick tells beside the observation, and what the log is told of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from agents.deploy.decision import Decision
from worldmodel.types import EnvSpec


def line(one: Decision) -> dict[str, Any]:
    """A decision for the log."""
    finite = one.value is not None and np.isfinite(one.value)
    return {
        "tick": one.tick,
        "robot": one.robot,
        "source": one.source,
        "reason": one.reason,
        "detail": one.detail,
        "action": one.encoded,
        "latency_ms": round(1e3 * one.latency, 3),
        "value": one.value if finite else None if one.value is None else str(one.value),
        "parts": {k: round(v, 4) if np.isfinite(v) else str(v) for k, v in one.parts.items()},
    }


def needed(spec: EnvSpec) -> str:
    """What an observation must hold, in words."""
    return ", ".join(
        f"{key} ({'uint8' if obs.kind == 'image' else 'float32'} {list(obs.shape)})"
        for key, obs in sorted(spec.seen.items())
    )


def flags(value: Any, robots: int) -> np.ndarray:
    """[B] bool from one flag, B of them, or None; what is neither counts as True for all, since a
    memory too many forgotten is the safer mistake."""
    if value is None:
        return np.zeros(robots, bool)
    try:
        return np.array(np.broadcast_to(np.asarray(value, bool), (robots,)))
    except (TypeError, ValueError, OverflowError):
        return np.ones(robots, bool)


def floats(
    value: Any, default: np.ndarray, usable: Callable[[np.ndarray], Any] | None = None
) -> np.ndarray:
    """Numbers in the shape of a default, which stays where they do not fit or are not usable."""
    if value is None:
        return default
    try:
        given = np.broadcast_to(np.asarray(value, default.dtype), default.shape)
    except (TypeError, ValueError, OverflowError):
        return default
    return given.copy() if usable is None else np.where(usable(given), given, default)
