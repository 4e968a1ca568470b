"""Which action led to which observation, and how an episode ended.

Recordings keep T actions in one of three ways:

    between    o_0 a_0 o_1 a_1 ... a_{T-1} o_T     one observation more than actions: no doubt
    taken_at   (o_0, a_0) (o_1, a_1) ...           an action beside the observation it was chosen at
    led_to     (o_0, 0) (o_1, a_0) ...             beside the observation it led to (as ours)

Rows of a vector environment of gymnasium are taken_at, but hold its autoresets: the row after an
end is no step (next_step), or its last step leads into the next episode (same_step; `boundaries`).

The last two have equal lengths and differ by one step; a model trained with the wrong one learns a
world in which actions come a step too late. So there is no default. In this order they are told
apart by the lengths, by what the user says, by next observations that continue the episode, by
what the tool that wrote the file documents, by fillers of zeros in the first rows (led_to) or in
the last (taken_at); or asked for. `is_first` alone tells nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from worldmodel.replay.datasets.recording import (
    Convention,
    DatasetError,
    Episode,
    Format,
    Raw,
    flat,
    is_hot,
)  # fmt: skip

OPEN = ("auto", "next_step", "same_step")  # what says nothing of where an action stands
FEW = 0.1  # a share of the episodes that is no rule


@dataclass
class Evidence:
    """What the values of the episodes say of their alignment, counted over `episodes`.

    first, second, last: how many have an action of zeros in that row (and in the first no reward),
    where zeros are no action like any other. opens: how many begin without a reward; pays: how
    many have one in their last row. moves: whether any action is not zero. later, earning: rows
    after the first of each episode, and those of them that earn something.
    """

    episodes: int = 0
    first: int = 0
    second: int = 0
    last: int = 0
    opens: int = 0
    pays: int = 0
    moves: bool = False
    later: int = 0
    earning: int = 0

    def note(self, raw: Raw) -> None:
        """Count one episode."""
        self.episodes += 1
        numbers = flat(raw.action)
        a_class = raw.action.dtype.kind in "iub" and not is_hot(numbers)
        zero = np.asarray((numbers == 0).all(axis=1)) & (not a_class)
        quiet = raw.reward is None or not np.nan_to_num(raw.reward[:1]).any()
        self.opens += quiet
        if raw.reward is not None:
            self.later += len(raw.reward[1:])
            self.earning += int(np.count_nonzero(raw.reward[1:]))
        self.pays += raw.reward is not None and bool(raw.reward[-1:].any())
        self.first += bool(zero[:1].any()) and quiet
        self.second += bool(zero[1:2].any())
        self.last += bool(zero[-1:].any())
        self.moves |= bool(numbers.any())

    @property
    def fillers_first(self) -> bool:
        """Whether each episode begins with a filler, and not because zeros are usual there."""
        usual = max(self.second, self.last) > FEW * self.episodes
        return self.moves and self.first == self.episodes and not usual

    @property
    def fillers_last(self) -> bool:
        """Whether each episode ends with a filler."""
        return self.moves and self.last == self.episodes and self.first <= FEW * self.episodes

    @property
    def resets_inside(self) -> bool:
        """Whether many episodes, and hardly any other rows, begin without a reward, as the rows of
        an autoreset do."""
        usual = self.earning < (1 - FEW) * self.later
        return 2 <= self.opens < self.episodes <= 2 * self.opens and not usual

    @property
    def rewards_arrive(self) -> bool:
        """Whether rewards stand beside the observation that they came with: none beside the first
        ones, some beside the last."""
        return self.opens == self.episodes and self.pays > 0


@dataclass
class Aligner:
    """Aligns the episodes of one recording, all in the same way, and says which way that is.

    Raises DatasetError where lengths do not fit, the way is not clear, or episodes go on after
    their end.
    """

    convention: Convention
    way: str = ""
    why: str = ""
    format: Format = field(default_factory=Format)
    arrives: bool = False  # a reward stands beside the observation that it came with
    doubt: bool = False  # first rows might be those of an autoreset
    lost: int = 0  # last steps that led to an observation which was not recorded,
    lost_ends: int = 0  # of which so many were terminal,
    lost_reward: float = 0.0  # with so much reward
    repeated: int = 0  # episodes that go on after a flag of their end
    ends: str = ""  # what says how episodes ended

    def study(self, episodes: Iterable[Raw]) -> None:
        """Find out how the recording is aligned; all episodes must agree."""
        evidence, of_row, done_only, begun = Evidence(), True, False, False
        for raw in episodes:
            way, why = self._by_shape(raw)
            if begun and way != self.way:
                raise DatasetError(
                    f"{raw.where} has {rows_of(raw)} observations for {len(raw.action)} actions, "
                    f"but the episodes before it are of the other kind ({self.why}). Record all in "
                    "one way."
                )
            self.way, self.why, self.format, begun = way, why, raw.format, True
            evidence.note(raw)
            of_row &= raw.of_row
            done_only |= _only_done(raw)
        if not begun:
            raise DatasetError("The dataset holds no episode.")
        self._decide(evidence, of_row)
        if done_only and self.convention.done == "auto" and not self.format.done:
            raise DatasetError(
                "The recording has a flag `done` alone, which does not say whether an episode "
                "ended for good or was only cut off by a time limit; values differ by all that "
                "could still have come. Say it: offline_done=terminated or offline_done=truncated."
            )

    def _by_shape(self, raw: Raw) -> tuple[str, str]:
        """What one episode's lengths and keys say: ("", "") where they leave it open."""
        rows, actions, asked = rows_of(raw), len(raw.action), self.convention.alignment
        if rows == actions + 1:
            return "between", f"{rows} observations for {actions} actions"
        if rows != actions:
            raise DatasetError(
                f"{raw.where} has {rows} observations for {actions} actions. Allowed: as many, or "
                "one observation more."
            )
        if raw.next_obs and asked != "led_to":
            _check_next(raw)
            return "taken_at", "the next observations are there and continue it"
        return "", ""

    def _decide(self, evidence: Evidence, of_row: bool) -> None:
        """Settle what the shapes left open, and hold it against what was asked for."""
        asked, known = self.convention.alignment, self.format
        if self.way:
            if asked not in (*OPEN, self.way):
                raise DatasetError(
                    f"offline_alignment is {asked}, but the recording says otherwise: {self.why}. "
                    "Leave it out."
                )
        elif asked not in OPEN:
            self.way, self.why = asked, "as offline_alignment says"
        elif evidence.fillers_first and not (known.alignment and known.firm):
            self.way, self.why = "led_to", "first actions and first rewards are all zero"
        elif known.alignment:
            self.way, self.why = known.alignment, f"as {known.name} documents it"
        elif of_row and evidence.fillers_last:
            self.way, self.why = "taken_at", "the last action of each episode is a filler of zeros"
        else:
            raise DatasetError(
                "The recording has as many observations as actions, and nothing in it says "
                "whether an action stands beside the observation it was chosen at or the one "
                "that it led to. Say it: offline_alignment=taken_at or =led_to, or =next_step for "
                "rows of a vector environment of gymnasium, with those of its autoreset."
            )
        self.arrives = self.way == "taken_at" and (
            known.arrives or (of_row and evidence.rewards_arrive)
        )
        self.doubt = self.way == "taken_at" and not self.arrives and evidence.resets_inside

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
            action = action[:-1]
            if not raw.of_row:
                self.lost += 1
                self.lost_ends += terminated
                self.lost_reward += float(np.sum(reward[-1:])) if not self.arrives else 0.0
                terminated = False
            reward = reward[1:] if self.arrives else reward[:-1]
        return Episode(raw.where, obs, action, reward, terminated)

    def _terminated(self, raw: Raw) -> bool:
        flag, self.ends = raw.terminal, raw.says
        done = raw.last if raw.done is None else raw.done
        says = self.convention.done
        who = (self.format.name if says == "auto" else "") or "offline_done"
        if flag is None and done is not None:
            if raw.cut is not None:
                flag = done & ~raw.cut
            elif says == "auto" and raw.success is not None and self.format.done == "truncated":
                flag, self.ends = done & raw.success, "done with success"
            elif (self.format.done if says == "auto" else says) == "terminated":
                flag = done
                self.ends = f"`done`, as {who} says"
            else:
                self.ends = f"`done` marks the last row, as {who} says"
        if flag is None:
            if raw.cut is None and done is None:
                self.ends = "no flag was recorded"
            return False
        inside = np.flatnonzero(flag[:-1])
        if len(inside) and not (raw.whole or flag[inside[0] :].all()):
            raise DatasetError(
                f"{raw.where} goes on after its end: terminal at {int(inside[0])} of {len(flag)} "
                "rows. Give is_first, or one file for each episode."
            )
        self.repeated += bool(len(inside))
        return bool(flag[-1])

    def describe(self) -> str:
        """One line for people."""
        meaning = {
            "between": "action t leads from observation t to t + 1",
            "taken_at": "action t was chosen at observation t",
            "led_to": "action t led to observation t",
        }[self.way]
        beside = "; rewards stand beside the observation that they came with"
        return f"{meaning} ({self.why}){beside if self.arrives else ''}"

    def forget(self) -> None:
        """Begin to count anew, before another pass over the episodes."""
        self.lost, self.lost_ends, self.lost_reward, self.repeated = 0, 0, 0.0, 0


def rows_of(raw: Raw) -> int:
    """How many observations an episode has. Raises DatasetError where they differ."""
    lengths = {k: len(v) for k, v in raw.obs.items()}
    if len(set(lengths.values())) != 1:
        raise DatasetError(
            f"{raw.where}: the observations differ in length: {lengths}. Each must be [T, ...], a "
            "row for each step; where a file holds a single step, stack those of an episode."
        )
    return next(iter(lengths.values()))


def _only_done(raw: Raw) -> bool:
    flags = [flag for flag in (raw.done, raw.last) if flag is not None and flag.any()]
    return raw.terminal is None and raw.cut is None and bool(flags)


def _check_next(raw: Raw) -> None:
    """The next observation of a step is the observation of the following one."""
    for key, after in raw.next_obs.items():
        if key not in raw.obs or after.shape != raw.obs[key].shape:
            shape = list(raw.obs[key].shape) if key in raw.obs else "no observation"
            raise DatasetError(
                f"{raw.where}: the next observation '{key}' is {list(after.shape)}, but the "
                f"observation is {shape}."
            )
        wrong = np.flatnonzero(~same_rows(after[:-1], raw.obs[key][1:]))
        if len(wrong):
            raise DatasetError(
                f"{raw.where}: the next observation '{key}' of step {int(wrong[0])} is not the "
                f"observation of step {int(wrong[0]) + 1} ({len(wrong)} such steps). The steps are "
                "shuffled, or episodes follow each other without a flag between them."
            )
    missing = sorted(set(raw.obs) - set(raw.next_obs))
    if missing:
        raise DatasetError(f"{raw.where}: next observations of {missing} are missing.")


def same_rows(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Which rows [T, ...] of two arrays are the same, bool [T]."""
    whole = one.dtype.kind in "biu" and other.dtype.kind in "biu"
    same = one == other if whole else np.isclose(one, other, rtol=1e-4, atol=1e-4)
    return np.asarray(flat(same).all(axis=-1))


def _check_lengths(raw: Raw) -> None:
    rows, actions = rows_of(raw), len(raw.action)
    for name, value in raw.flags().items():
        if len(value) not in {rows, actions}:
            raise DatasetError(
                f"{raw.where}: '{name}' has {len(value)} entries for {actions} actions and {rows} "
                "observations."
            )
