"""Actions as agents give them, and what environments take."""

from __future__ import annotations

import operator
from typing import Any

import gymnasium
import numpy as np
from gymnasium import Space, spaces

from .config import EnvError


class Actions(gymnasium.ActionWrapper[Any, Any, Any]):
    """Box actions become float32 [A] in [-1, 1], clipped at the edge; discrete ones keep their
    meaning and start at 0.

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

    def action(self, action: Any) -> Any:
        """What the environment takes for one action of the agent."""
        native = self._native
        if isinstance(native, spaces.Box):
            return self._continuous(np.asarray(action, np.float64), native)
        if isinstance(native, spaces.Discrete):
            return self._single(action, native)
        assert isinstance(self.action_space, spaces.MultiDiscrete)
        index = np.asarray(action)
        nvec = self.action_space.nvec
        if index.shape != nvec.shape or index.dtype.kind not in "iub":
            raise EnvError(
                f"The action must be whole numbers of shape {list(nvec.shape)}, but is "
                f"{index.dtype} {list(index.shape)}: {action!r}."
            )
        if (index < 0).any() or (index >= nvec).any():
            raise EnvError(f"The action {action!r} lies outside of {self.action_space}.")
        start = native.start if isinstance(native, spaces.MultiDiscrete) else 0
        assert native.shape is not None
        return (index.reshape(native.shape) + start).astype(native.dtype)

    def _single(self, action: Any, native: spaces.Discrete[Any]) -> int:
        try:
            index = operator.index(action)
        except TypeError as error:
            raise EnvError(
                f"The action must be one whole number, but is {action!r} ({type(action).__name__})."
            ) from error
        if not 0 <= index < native.n:
            raise EnvError(f"The action {index} lies outside of {self.action_space}.")
        return index + int(native.start)

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
        if not np.isfinite([space.low, space.high]).all() or (space.low >= space.high).any():
            raise EnvError(
                f"The action space {space} has an entry without two finite bounds, so it cannot be "
                f"scaled to [-1, 1]. Give it finite bounds with low < high."
            )
        return spaces.Box(-1.0, 1.0, (int(np.prod(space.shape)),), np.float32)
    raise EnvError(
        f"The action space {space} is not supported. Allowed: a Box of floats with finite bounds, "
        f"Discrete, MultiDiscrete, MultiBinary. Wrap the environment so that it takes one of them."
    )
