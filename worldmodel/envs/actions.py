"""Actions as agents give them, and what environments take."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import Space, spaces

from worldmodel.images import LARGEST_ACTION

from .config import EnvError
from .spaces import class_counts


class Actions(gymnasium.ActionWrapper[Any, Any, Any]):
    """Box actions become float32 [A] in [-1, 1], clipped at the edge; discrete ones keep their
    meaning and start at 0. An entry whose bounds are equal stays at them, whatever is asked.

    Raises EnvError for action spaces that are neither bounded float Boxes nor Discrete,
    MultiDiscrete or MultiBinary, and for actions of a wrong shape, class or not finite.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self._native = env.action_space
        self.action_space = _outer(env.action_space)
        if isinstance(self._native, spaces.Box):
            low, high = (np.asarray(x, np.float64) for x in (self._native.low, self._native.high))
            self._middle, self._half = (low + high) / 2, (high - low) / 2
        else:
            self._classes = np.reshape(class_counts(self._native), self.action_space.shape or ())

    def action(self, action: Any) -> Any:
        """What the environment takes for one action of the agent."""
        native = self._native
        if isinstance(native, spaces.Box):
            return self._continuous(np.asarray(action, np.float64), native)
        index, space = np.asarray(action), self.action_space
        if index.shape != space.shape or index.dtype.kind not in "iub":
            words = (
                f"whole numbers of shape {list(space.shape)}" if space.shape else "one whole number"
            )
            raise EnvError(
                f"The action must be {words}, but is {index.dtype} {list(index.shape)}: {action!r}."
            )
        if (index < 0).any() or (index >= self._classes).any():
            raise EnvError(f"The action {action!r} lies outside of {space}.")
        start = getattr(native, "start", 0)
        assert native.shape is not None
        moved = (index.reshape(native.shape) + start).astype(native.dtype)
        return moved[()]  # one whole number as the space's own `sample` gives it: np.int64

    def _continuous(self, action: np.ndarray, native: spaces.Box) -> np.ndarray:
        if action.shape != self.action_space.shape:
            raise EnvError(
                f"The action has shape {list(action.shape)}, but must have "
                f"{list(self.action_space.shape or ())}, each entry in [-1, 1]."
            )
        if not np.isfinite(action).all():
            raise EnvError(f"The action is not finite: {action}. Look at the policy's output.")
        inside = np.minimum(np.maximum(action, -1.0), 1.0).reshape(native.shape)
        scaled = (self._middle + self._half * inside).astype(native.dtype)
        # Once more, since rounding must not leave the edge.
        return np.minimum(np.maximum(scaled, native.low), native.high)


def native_space(env: gymnasium.Env[Any, Any]) -> Space[Any]:
    """The action space of an environment from `make_env` as its author declared it."""
    layer = env
    while not isinstance(layer, Actions):
        assert isinstance(layer, gymnasium.Wrapper), "not an environment from make_env"
        layer = layer.env
    return layer.env.action_space


def _outer(space: Space[Any]) -> Space[Any]:
    """The action space that agents see."""
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(np.ravel(space.nvec))
    if isinstance(space, spaces.MultiBinary):
        return spaces.MultiDiscrete([2] * int(np.prod(space.shape)))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        low, high = space.low, space.high
        if (
            (np.abs([low, high]) > LARGEST_ACTION).any()
            or (low > high).any()
            or (low == high).all()
        ):
            raise EnvError(
                f"The action space {space} has an entry without two finite bounds (one beyond "
                f"{LARGEST_ACTION:g} is none), or none that can move, so it cannot be scaled "
                "to [-1, 1]. Give it finite bounds, low < high."
            )
        return spaces.Box(-1.0, 1.0, (int(np.prod(space.shape)),), np.float32)
    raise EnvError(
        f"The action space {space} is not supported. Allowed: a Box of floats with finite bounds, "
        f"Discrete, MultiDiscrete, MultiBinary. Wrap the environment so that it takes one of them."
    )
