"""Which action led to which observation, and how an episode ended.

Recordings keep T actions in one of three ways:

    between    o_0 a_0 o_1 a_1 ... a_{T-1} o_T     one observation more than actions: no doubt
    taken_at   (o_0, a_0) (o_1, a_1) ...           an action beside the observation it was chosen at
    led_to     (o_0, 0) (o_1, a_0) ...             beside the observation it led to (as ours)

The last two have equal lengths and differ by one step; a model trained with the wrong one learns a
world in which actions come a step too late. So there is no default: they are told apart by what
else was recorded (next observations, is_first, first actions of zero), or asked for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldmodel.types import EnvSpec

ALIGNMENTS = ("auto", "taken_at", "led_to")
ENDINGS = ("auto", "terminated", "truncated")


class DatasetError(ValueError):
    """A recording cannot be used as it is; the message says where, why, and what to do."""


@dataclass(frozen=True)
class Convention:
    """What a recording does not say itself. alignment: see above. done: what a lone `done` flag
    means, "terminated" (the future is worth nothing) or "truncated" (only cut off). action_range:
    [low, high] of its continuous actions, where no environment and no dataset says it."""

    alignment: str = "auto"
    done: str = "auto"
    action_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("offline_alignment", self.alignment, ALIGNMENTS),
            ("offline_done", self.done, ENDINGS),
        ):
            if value not in known:
                raise DatasetError(f"{name} is '{value}'. Known: {', '.join(known)}.")
        bounds = self.action_range
        if bounds is not None and not (len(bounds) == 2 and bounds[0] < bounds[1]):
            raise DatasetError(
                f"offline_action_range is {list(bounds)}; it must be [low, high] with low < high."
            )


@dataclass
class Raw:
    """The arrays of one episode as they were recorded, [T, ...] or [T + 1, ...]; flags are bool
    or None where there are none. where: file and episode, for messages."""

    where: str
    obs: dict[str, np.ndarray]
    action: np.ndarray
    reward: np.ndarray | None = None
    next_obs: dict[str, np.ndarray] = field(default_factory=dict)
    is_first: np.ndarray | None = None
    terminal: np.ndarray | None = None
    cut: np.ndarray | None = None
    done: np.ndarray | None = None


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
    observation_space: what it says of its world itself, or None. own: rows of our own."""

    kind: str
    episodes: Callable[[], Iterator[Raw]]
    own: Callable[[], Iterator[Episode]] | None = None
    spec: EnvSpec | None = None
    observation_space: Any = None
    action_space: Any = None
    ignored: set[str] = field(default_factory=set)


@dataclass
class Aligner:
    """Aligns the episodes of one recording, all in the same way, and says which way that is.

    Raises DatasetError where lengths do not fit, the way is not clear, or episodes go on after
    their end.
    """

    convention: Convention
    way: str = ""
    why: str = ""
    lost_ends: int = 0  # terminal observations that were not recorded
    ended: str = ""

    def study(self, episodes: Iterable[Raw]) -> None:
        """Find out how the recording is aligned; all episodes must agree."""
        first_zero, moves, count = True, False, 0
        done_only = False
        for raw in episodes:
            count += 1
            way, why = self._by_shape(raw)
            if self.way and way != self.way:
                raise DatasetError(
                    f"{raw.where} has {_rows(raw)} observations for {len(raw.action)} actions, but "
                    f"the episodes before it are of the other kind ({self.why}). Record all in one "
                    "way."
                )
            self.way, self.why = way, why
            action = flat(raw.action)
            whole = raw.action.dtype.kind in "iub"  # 0 is an action like any other there
            still = not action[:1].any() and (raw.reward is None or not raw.reward[:1].any())
            first_zero &= still and not whole
            moves |= bool(action[1:].any())
            done_only |= _only_done(raw)
        if not count:
            raise DatasetError("The dataset holds no episode.")
        self._decide(first_zero and moves)
        if done_only and self.convention.done == "auto":
            raise DatasetError(
                "The recording has a flag `done` alone, which does not say whether an episode "
                "ended for good or was only cut off by a time limit; values differ by all that "
                "could still have come. Say it: offline_done=terminated or offline_done=truncated."
            )

    def _by_shape(self, raw: Raw) -> tuple[str, str]:
        """What one episode's lengths and keys say: ("", "") where they leave it open."""
        rows, actions = _rows(raw), len(raw.action)
        if rows == actions + 1:
            return "between", f"{rows} observations for {actions} actions"
        if rows != actions:
            raise DatasetError(
                f"{raw.where} has {rows} observations for {actions} actions. Allowed: as many, or "
                "one observation more."
            )
        if raw.next_obs:
            _check_next(raw)
            return "taken_at", "the next observations are there and continue it"
        if raw.is_first is not None:
            return "led_to", "rows with is_first, as in our own replays"
        return "", ""

    def _decide(self, first_zero: bool) -> None:
        """Settle what the shapes left open, and hold it against what was asked for."""
        asked = self.convention.alignment
        if self.way == "":
            if asked != "auto":
                self.way, self.why = asked, "as offline_alignment says"
            elif first_zero:
                self.way, self.why = "led_to", "first actions and first rewards are all zero"
            else:
                raise DatasetError(
                    "The recording has as many observations as actions, and nothing in it says "
                    "whether an action stands beside the observation it was chosen at or the one "
                    "that it led to. Say it: offline_alignment=taken_at or =led_to."
                )
        elif asked not in ("auto", self.way):
            raise DatasetError(
                f"offline_alignment is {asked}, but the recording says otherwise: {self.why}. "
                "Leave it out."
            )

    def align(self, raw: Raw) -> Episode:
        """One episode as steps between observations; `study` came before."""
        _check_lengths(raw)
        terminated = self._terminated(raw)
        obs, action = raw.obs, raw.action
        reward = np.zeros(len(action)) if raw.reward is None else raw.reward
        if len(reward) == len(action) + 1:  # one beside each observation
            reward = reward[1:]
        if self.way == "led_to":
            action, reward = action[1:], reward[1:]
        elif self.way == "taken_at" and raw.next_obs:
            obs = {k: np.concatenate([v, raw.next_obs[k][-1:]]) for k, v in obs.items()}
        elif self.way == "taken_at":  # nobody recorded where the last action led
            action, reward = action[:-1], reward[:-1]
            self.lost_ends += terminated
            terminated = False
        return Episode(raw.where, obs, action, reward, terminated)

    def _terminated(self, raw: Raw) -> bool:
        flag = raw.terminal
        if flag is None and raw.done is not None:
            done = raw.done
            if raw.cut is not None:
                flag = done & ~raw.cut
            elif self.convention.done == "terminated":
                flag = done
        if flag is None:
            return False
        inside = np.flatnonzero(flag[:-1])
        if len(inside):
            raise DatasetError(
                f"{raw.where} goes on after its end: terminal at {int(inside[0])} of {len(flag)} "
                "rows. Give is_first, or one file for each episode."
            )
        return bool(flag[-1])

    def describe(self) -> str:
        """One line for people."""
        meaning = {
            "between": "action t leads from observation t to t + 1",
            "taken_at": "action t was chosen at observation t",
            "led_to": "action t led to observation t",
        }[self.way]
        return f"{meaning} ({self.why})"


def split(raw: Raw, ids: np.ndarray | None = None) -> Iterator[Raw]:
    """The episodes of one long recording: parted where is_first begins one, where `ids` change,
    or after the rows that end one."""
    length = len(raw.action)
    if ids is not None:
        begins = np.flatnonzero(ids[1:] != ids[:-1]) + 1
    elif raw.is_first is not None:
        begins = np.flatnonzero(raw.is_first)
    else:
        ends = np.zeros(length, bool)
        for flag in (raw.terminal, raw.cut, raw.done):
            if flag is not None and len(flag) == length:
                ends |= flag
        begins = np.flatnonzero(ends) + 1
    edges = [0, *(int(i) for i in begins if 0 < i < length), length]
    if len(edges) == 2:
        yield raw
        return
    short = {k: len(v) for k, v in raw.obs.items() if len(v) != length}
    if short:
        raise DatasetError(
            f"{raw.where} holds several episodes, so all its arrays must have one length; it has "
            f"{length} actions and {short}."
        )
    for number, (a, b) in enumerate(itertools.pairwise(edges)):

        def part(x: np.ndarray | None, a: int = a, b: int = b) -> np.ndarray | None:
            return None if x is None else x[a:b]

        action = part(raw.action)
        assert action is not None
        yield Raw(
            f"{raw.where}, episode {number}",
            {k: v[a:b] for k, v in raw.obs.items()},
            action,
            part(raw.reward),
            {k: v[a:b] for k, v in raw.next_obs.items()},
            *(part(x) for x in (raw.is_first, raw.terminal, raw.cut, raw.done)),
        )


def flat(array: np.ndarray) -> np.ndarray:
    """[T, ...] -> [T, N], for T = 0 too."""
    return array.reshape(len(array), math.prod(array.shape[1:]))


def _rows(raw: Raw) -> int:
    lengths = {k: len(v) for k, v in raw.obs.items()}
    if len(set(lengths.values())) != 1:
        raise DatasetError(f"{raw.where}: the observations differ in length: {lengths}.")
    return next(iter(lengths.values()))


def _only_done(raw: Raw) -> bool:
    alone = raw.terminal is None and raw.cut is None
    return raw.done is not None and alone and bool(raw.done.any())


def _check_next(raw: Raw) -> None:
    """The next observation of a step is the observation of the following one."""
    for key, after in raw.next_obs.items():
        if key not in raw.obs or after.shape != raw.obs[key].shape:
            shape = list(raw.obs[key].shape) if key in raw.obs else "no observation"
            raise DatasetError(
                f"{raw.where}: the next observation '{key}' is {list(after.shape)}, but the "
                f"observation is {shape}."
            )
        same = np.isclose(after[:-1], raw.obs[key][1:], rtol=1e-4, atol=1e-4)
        wrong = np.flatnonzero(~flat(same).all(-1))
        if len(wrong):
            raise DatasetError(
                f"{raw.where}: the next observation '{key}' of step {int(wrong[0])} is not the "
                f"observation of step {int(wrong[0]) + 1} ({len(wrong)} such steps). The steps are "
                "shuffled, or episodes follow each other without a flag between them."
            )
    missing = sorted(set(raw.obs) - set(raw.next_obs))
    if missing:
        raise DatasetError(f"{raw.where}: next observations of {missing} are missing.")


def _check_lengths(raw: Raw) -> None:
    rows, actions = _rows(raw), len(raw.action)
    for name in ("reward", "is_first", "terminal", "cut", "done"):
        value = getattr(raw, name)
        if value is not None and len(value) not in {rows, actions}:
            raise DatasetError(
                f"{raw.where}: '{name}' has {len(value)} entries for {actions} actions and {rows} "
                "observations."
            )
