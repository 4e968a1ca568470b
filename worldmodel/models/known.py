"""Rewards and ends of some tasks as functions of their numbers: a world need not learn them.

Each takes (state [..., D], action [..., A], next state [..., D]) as the environment observes and
takes them, actions in [-1, 1], and gives [...]. Your own is named "module:function".
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from worldmodel.config import ConfigError, unknown
from worldmodel.envs.named import found

Function = Callable[[Tensor, Tensor, Tensor], Tensor]

LEARNED, NEVER = "learned", "never"


def _swing_up(state: Tensor, action: Tensor, after: Tensor) -> Tensor:
    """PETS' cart-pole: how near the pole's tip is to the point above the middle of the rail, less
    a cost of the force (3 times the action)."""
    x, angle = after[..., 0], after[..., 1]
    off = (x - 0.6 * torch.sin(angle)).square() + (0.6 + 0.6 * torch.cos(angle)).square()
    return torch.exp(-off / 0.36) - 0.01 * (3 * action).square().sum(-1)


def _pendulum(state: Tensor, action: Tensor, after: Tensor) -> Tensor:
    """gymnasium's Pendulum-v1, which pays for the state before the step."""
    angle = torch.atan2(state[..., 1], state[..., 0])
    force = (2 * action.clamp(-1, 1)).square().sum(-1)
    return -(angle.square() + 0.1 * state[..., 2].square() + 0.001 * force)


def _one(state: Tensor, action: Tensor, after: Tensor) -> Tensor:
    """1 for every step."""
    return torch.ones_like(after[..., 0])


def _finite(after: Tensor) -> Tensor:
    return after.isfinite().all(-1)


def _cartpole_ends(state: Tensor, action: Tensor, after: Tensor) -> Tensor:
    stands = (after[..., 0].abs() <= 2.4) & (after[..., 2].abs() <= 12 * math.pi / 180)
    return ~stands


def _hopper_ends(state: Tensor, action: Tensor, after: Tensor) -> Tensor:
    calm = (after[..., 1:].abs() < 100).all(-1)
    upright = (after[..., 0] > 0.7) & (after[..., 1].abs() < 0.2)
    return ~(_finite(after) & calm & upright)


def _walker_ends(state: Tensor, action: Tensor, after: Tensor) -> Tensor:
    height, angle = after[..., 0], after[..., 1]
    return ~((height > 0.8) & (height < 2.0) & (angle.abs() < 1.0))


def _ant_ends(state: Tensor, action: Tensor, after: Tensor) -> Tensor:
    return ~(_finite(after) & (after[..., 0] >= 0.2) & (after[..., 0] <= 1.0))


def _humanoid_ends(state: Tensor, action: Tensor, after: Tensor) -> Tensor:
    return ~((after[..., 0] >= 1.0) & (after[..., 0] <= 2.0))


def _inverted_pendulum_ends(state: Tensor, action: Tensor, after: Tensor) -> Tensor:
    return ~(_finite(after) & (after[..., 1].abs() <= 0.2))


def _inverted_double_pendulum_ends(state: Tensor, action: Tensor, after: Tensor) -> Tensor:
    """The tip is at most 1 high. Observed: x, sines and cosines of the two angles, speeds."""
    sin1, sin2, cos1, cos2 = (after[..., i] for i in (1, 2, 3, 4))
    return 0.6 * (cos1 + cos1 * cos2 - sin1 * sin2) <= 1.0


REWARDS: dict[str, Function] = {"swing_up": _swing_up, "pendulum": _pendulum, "one": _one}
ENDS: dict[str, Function] = {
    "ant": _ant_ends, "cartpole": _cartpole_ends, "hopper": _hopper_ends,
    "humanoid": _humanoid_ends, "inverted_double_pendulum": _inverted_double_pendulum_ends,
    "inverted_pendulum": _inverted_pendulum_ends, "walker2d": _walker_ends,
}  # fmt: skip


def reward_function(name: str) -> Function | None:
    """The reward of this name; None where it is to be learned. Raises ConfigError."""
    if name == LEARNED:
        return None
    return _function(name, REWARDS, "reward", (LEARNED,))


def end_function(name: str) -> Function | None:
    """Whether a step ends the episode for good; None where that is to be learned. Raises
    ConfigError."""
    if name == LEARNED:
        return None
    if name == NEVER:
        return lambda state, action, after: torch.zeros_like(after[..., 0], dtype=torch.bool)
    return _function(name, ENDS, "terminal", (LEARNED, NEVER))


def _function(name: str, known: dict[str, Function], what: str, words: tuple[str, ...]) -> Function:
    if name in known:
        return known[name]
    if ":" not in name:
        raise ConfigError(
            unknown(what, name, [*words, *known]) + " Your own function is named 'module:function'."
        )
    function: Function = found(name, "function")
    return function
