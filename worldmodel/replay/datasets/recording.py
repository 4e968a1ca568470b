"""What a recording is made of: its episodes as they were recorded, and as steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from worldmodel.types import EnvSpec

ALIGNMENTS = ("auto", "taken_at", "led_to", "next_step", "same_step")
ENDINGS = ("auto", "terminated", "truncated")
ACTIONS = ("auto", "continuous", "discrete", "one_hot")
AXES = ("auto", "episodes_first", "steps_first")


class DatasetError(ValueError):
    """A recording cannot be used as it is; the message says where, why, and what to do."""


@dataclass(frozen=True)
class Convention:
    """What a recording does not say itself. alignment: see `align`. done: what a lone `done` flag
    means, "terminated" (the future is worth nothing) or "truncated" (only cut off). action_range:
    [low, high] of its continuous actions, where no environment and no dataset says it. actions:
    whether they are numbers or classes. axes: which axis of stacked arrays counts the episodes.
    names: which array is what (names.MAPPABLE), where its name does not say."""

    alignment: str = "auto"
    done: str = "auto"
    action_range: tuple[float, float] | None = None
    actions: str = "auto"
    axes: str = "auto"
    names: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value, known in (
            ("offline_alignment", self.alignment, ALIGNMENTS),
            ("offline_done", self.done, ENDINGS),
            ("offline_actions", self.actions, ACTIONS),
            ("offline_axes", self.axes, AXES),
        ):
            if value not in known:
                raise DatasetError(f"{name} is '{value}'. Known: {', '.join(known)}.")
        bounds = self.action_range
        if bounds is not None and not (len(bounds) == 2 and bounds[0] < bounds[1]):
            raise DatasetError(
                f"offline_action_range is {list(bounds)}; it must be [low, high] with low < high."
            )


@dataclass(frozen=True)
class Format:
    """What the tool that wrote a recording documents, recognised by its names. alignment: "" where
    it leaves that open. done: what its lone `done` means, "" likewise. arrives: whether a reward
    stands beside the observation that it came with, though actions stand where they were chosen.
    firm: its alignment holds even where first actions and rewards are all zero."""

    name: str = ""
    alignment: str = ""
    done: str = ""
    arrives: bool = False
    firm: bool = True


@dataclass
class Raw:
    """The arrays of one episode as they were recorded, [T, ...] or [T + 1, ...]; flags are bool
    or None where there are none. where: file and episode, for messages. whole: it is one episode,
    however its flags repeat. of_row: whether `terminal` and `last` speak of the observation in
    their row (is_terminal, is_last), not of the step that begins there."""

    where: str
    obs: dict[str, Any]
    action: np.ndarray
    reward: np.ndarray | None = None
    next_obs: dict[str, Any] = field(default_factory=dict)
    is_first: np.ndarray | None = None
    terminal: np.ndarray | None = None
    cut: np.ndarray | None = None
    done: np.ndarray | None = None
    last: np.ndarray | None = None  # the last row of an episode, whatever ended it
    success: np.ndarray | None = None
    whole: bool = False
    of_row: bool = False
    format: Format = Format()
    says: str = "flags of the end"  # how it ended, by what

    def part(self, where: str, rows: Any) -> Raw:
        """Some of its rows as an episode of their own; arrays of one row more keep theirs."""

        def cut(x: np.ndarray | None) -> np.ndarray | None:
            return None if x is None else x[rows]

        return replace(
            self, where=where, action=self.action[rows], reward=cut(self.reward),
            obs={k: v[rows] for k, v in self.obs.items()},
            next_obs={k: v[rows] for k, v in self.next_obs.items()},
            is_first=cut(self.is_first), terminal=cut(self.terminal), cut=cut(self.cut),
            done=cut(self.done), last=cut(self.last), success=cut(self.success),
        )  # fmt: skip

    def flags(self) -> dict[str, np.ndarray]:
        """What was recorded beside each step: rewards and flags, by name."""
        found = {
            "reward": self.reward, "is_first": self.is_first, "terminal": self.terminal,
            "cut": self.cut, "done": self.done, "last": self.last, "success": self.success,
        }  # fmt: skip
        return {name: value for name, value in found.items() if value is not None}


@dataclass
class Episode:
    """T steps between T + 1 observations: action[t] leads from obs[t] to obs[t + 1] and earns
    reward[t]. terminated: whether the last observation is an end of the world; else the episode
    was cut off there. encoded: actions are ours already."""

    where: str
    obs: dict[str, np.ndarray]
    action: np.ndarray
    reward: np.ndarray
    terminated: bool
    encoded: bool = False

    def __len__(self) -> int:
        return len(self.action)


@dataclass
class Source:
    """A recording: what it is, and its episodes, each time from the start. spec, action_space,
    observation_space: what it says of its world itself, or None. own: rows of our own. out: names
    that are not used, and why. notes: what else was found, how often in which place."""

    kind: str
    episodes: Callable[[], Iterator[Raw]]
    own: Callable[[], Iterator[Episode]] | None = None
    spec: EnvSpec | None = None
    observation_space: Any = None
    action_space: Any = None
    out: dict[str, str] = field(default_factory=dict)
    notes: dict[str, dict[str, int]] = field(default_factory=dict)


def flat(array: np.ndarray) -> np.ndarray:
    """[T, ...] -> [T, N], for T = 0 too."""
    return array.reshape(len(array), math.prod(array.shape[1:]))


def is_hot(numbers: np.ndarray) -> bool:
    """Whether every row [T, N] is one-hot, or nothing but zeros; at least one is."""
    if numbers.ndim != 2 or numbers.shape[1] < 2 or not np.isin(numbers, (0, 1)).all():
        return False
    sums = numbers.sum(1)
    return bool((sums <= 1).all() and sums.any())
