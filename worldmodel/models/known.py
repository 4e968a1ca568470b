"""Rewards and ends of some tasks as functions of their numbers: a world need not learn them.

Each takes (state [..., D], action [..., A], next state [..., D]) as the environment observes and
takes them, actions in [-1, 1], and gives [...]: a reward numbers, an end true or false. Your own is
named "module:function". `Known` tries those that a world was given, and compares them with what was
recorded.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from worldmodel.config import ConfigError, first_line, unknown
from worldmodel.envs.named import found
from worldmodel.models.vectors import Rows
from worldmodel.types import ActionSpec

Function = Callable[[Tensor, Tensor, Tensor], Tensor]

LEARNED, NEVER = "learned", "never"
REWARD, TERMINAL = "agent.model.reward", "agent.model.terminal"  # the settings, in messages
TRIED = (2, 3)  # leading shape of the batch that a user's own function is tried on
# A named reward fits where its root mean squared error is at most this share of the recorded
# rewards' standard deviation, or is rounding; named ends, where at most this share of all is wrong.
REWARD_TOLERANCE, ROUNDING, END_TOLERANCE = 0.1, 1e-4, 0.01


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
# Numbers of the state that each is made for, where that matters.
SIZES = {
    REWARD: {"swing_up": 4, "pendulum": 3},
    TERMINAL: {
        "ant": 27, "cartpole": 4, "hopper": 11, "humanoid": 45, "inverted_double_pendulum": 9,
        "inverted_pendulum": 4, "walker2d": 17,
    },
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


class Known:
    """The functions that a world's settings `reward` and `terminal` name, or None where they are to
    be learned. learns_ends: whether this world could.

    Raises ConfigError for an unknown name, for a state with fewer numbers than the named function
    is made for, and where a user's own function fails or gives something else than it must.
    """

    def __init__(
        self, reward: str, terminal: str, state: int, action: ActionSpec, learns_ends: bool = True
    ) -> None:
        self.names = {REWARD: reward, TERMINAL: terminal}
        own = "a function of your own (module:function)"
        self._advice = {
            REWARD: f"Set {REWARD}={LEARNED}, or name {own}.",
            TERMINAL: f"Set {TERMINAL}={LEARNED}, or name {own}."
            if learns_ends
            else f"Name {own}.",
        }
        self.reward, self.ends = reward_function(reward), end_function(terminal)
        self.action = action
        self._warned: set[str] = set()
        for setting, function in ((REWARD, self.reward), (TERMINAL, self.ends)):
            name = self.names[setting]
            least = SIZES[setting].get(name, 0)
            if state < least:
                raise ConfigError(
                    f"{setting}={name} is made for a state of {least} numbers, but this one has "
                    f"{state}. {self._advice[setting]}"
                )
            if function is not None and ":" in name:
                _try(setting, name, function, state, action.size)

    @torch.no_grad()
    def compare(self, rows: Rows) -> None:
        """Warn, once for each setting, where what was recorded is not what the function says."""
        about = rows.values, self.action.clip(rows.action), rows.after
        if self.reward is not None:
            self._warn(REWARD, reward_fault(self.reward(*about), rows.reward))
        if self.ends is not None:
            self._warn(TERMINAL, ends_fault(self.ends(*about), rows.goes_on == 0))

    def _warn(self, setting: str, fault: str) -> None:
        if not fault or setting in self._warned:
            return
        self._warned.add(setting)
        warnings.warn(
            f"{setting}={self.names[setting]} is not what was recorded: {fault}. "
            f"{self._advice[setting]}",
            stacklevel=4,
        )


def reward_fault(said: Tensor, recorded: Tensor) -> str:
    """How far rewards [N] are from the recorded ones [N], in words; "" where they agree."""
    off = (said - recorded).double()
    scale = float(recorded.double().std(correction=0))
    rounding = ROUNDING * float(recorded.abs().max()) + 1e-6
    if float(off.square().mean().sqrt()) <= max(REWARD_TOLERANCE * scale, rounding):
        return ""
    return (
        f"its rewards of {len(off):,} transitions are off by {float(off.abs().mean()):.3g} on "
        f"average, and by {float(off.abs().max()):.3g} at most, where the recorded ones lie "
        f"between {float(recorded.min()):.3g} and {float(recorded.max()):.3g}"
    )


def ends_fault(said: Tensor, recorded: Tensor) -> str:
    """How ends [N] differ from the recorded ones [N], in words; "" where they agree."""
    missed, added = int((recorded & ~said).sum()), int((said & ~recorded).sum())
    if missed + added <= END_TOLERANCE * int((recorded | said).sum()):
        return ""
    return (
        f"of {len(said):,} transitions {int(recorded.sum()):,} ended their episode, of which it "
        f"misses {missed:,}, and it ends {added:,} others"
    )


def _try(setting: str, name: str, function: Function, state: int, action: int) -> None:
    """ConfigError unless a user's function gives one number, or true or false, for each row."""
    kind = "floating-point numbers" if setting == REWARD else "true or false (torch.bool)"
    shapes = (*TRIED, state), (*TRIED, action), (*TRIED, state)
    takes = "state {}, action {}, next state {}".format(*map(list, shapes))
    wanted = (
        f"It must take tensors [..., D], [..., A], [..., D], and give a tensor [...] of {kind}: "
        f"for {takes} one of shape {list(TRIED)}."
    )
    try:
        given: Any = function(*map(torch.zeros, shapes))
    except Exception as error:  # of anybody's function
        raise ConfigError(
            f"{setting}={name} raised {type(error).__name__}: {first_line(error)}. {wanted}"
        ) from error
    if not isinstance(given, Tensor):
        raise ConfigError(f"{setting}={name} gave a {type(given).__name__}. {wanted}")
    right = given.is_floating_point() if setting == REWARD else given.dtype == torch.bool
    if tuple(given.shape) != TRIED or not right:
        raise ConfigError(
            f"{setting}={name} gave a tensor of shape {list(given.shape)} and type {given.dtype}. "
            f"{wanted}"
        )
