"""Where one episode ends and the next begins, in arrays that hold several one after another.

Told by the numbers of the episodes, or by an array with an entry for each of them (ends, lengths,
beginnings); by is_first; by the flags of the end; and where a next observation is not the
observation of the following row. Rows that hold no step are left out: those that were never
written, and those in which a vector environment of gymnasium began a new episode (autoreset).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from worldmodel.replay.datasets.align import same_rows
from worldmodel.replay.datasets.recording import DatasetError, Raw, flat
from worldmodel.replay.datasets.vocabulary import words_of

# An array with an entry for each episode: "episode_ends", "meta/ep_len", "traj_lengths".
EACH = re.compile(
    r"(^|_)(episode|ep|traj|trajectory|demo|rollout)s?_"
    r"(data_index_from|data_index_to|ends?|lengths?|lens?|offsets?|starts?|begins?)$"
)
UNWRITTEN = 8  # rows of zeros at the end, without a flag of an end before them: so many are none
MOST_BREAKS = 0.5  # of all rows: more are no episodes, the rows are shuffled

USUAL = 200  # rows that tell the size of the usual step
JUMP = 2.0  # times farther than the step beside it: an observation of another episode
LEAP = 5.0  # the same without next observations, which tell less
AUTORESET = "rows in which a vector environment began a new episode (autoreset) are left out"
SAME_STEP = (
    "last steps are left out: a vector environment began the next episode at once (autoreset), and "
    "its first observation was recorded as their next one"
)
EMPTY = "rows at the end hold zeros alone, and are left out as never written"
MASKED = "rows are left out, as the mask says that they hold no step"
BROKEN = "rows with a next observation that is not the one of the row after them: parted there"
LATE = (
    "ends stand in rows that look like the first ones of the next episode, as CleanRL marks them; "
    "if they are, say it: offline_names={is_first: NAME}"
)
Notes = dict[str, dict[str, int]]  # what was found, how often in which place


def numbers_of(arrays: Mapping[str, Any], steps: int) -> tuple[str, np.ndarray] | None:
    """The name of an array with an entry for each episode that says how `steps` rows belong to
    them, and the number of each row's episode [steps]; None where there is none."""
    for name, value in arrays.items():
        if EACH.search("_".join(words_of(name.lower()))) and value.dtype.kind in "iu":
            lengths = _lengths(np.ravel(value).astype(np.int64), steps)
            if lengths is not None:
                return name, np.repeat(np.arange(len(lengths)), lengths)
    return None


def _lengths(entries: np.ndarray, steps: int) -> np.ndarray | None:
    """The lengths of episodes of which `entries` holds the lengths, ends or beginnings."""
    if not 0 < len(entries) < steps or entries.min() < 0 or entries.max() > steps:
        return None
    if entries.min() > 0 and entries.sum() == steps:
        return entries
    grows = bool((np.diff(entries) > 0).all())
    if grows and entries[0] > 0 and entries[-1] == steps:
        return np.diff(entries, prepend=0)
    if grows and entries[0] == 0 and entries[-1] < steps:
        return np.diff(entries, append=steps)
    return None


def split(
    raw: Raw, notes: Notes, ids: Any = None, counter: Any = None, asked: str = "auto"
) -> Iterator[Raw]:
    """The episodes of one long recording. ids, counter: the number of each row's episode, and its
    place there. asked: one of ALIGNMENTS. notes: takes what was found.

    Raises DatasetError where episodes cannot be told apart.
    """
    if ids is not None:
        order, begins = _by_number(raw.where, ids, counter)
        if order is not None:
            raw = raw.part(raw.where, order)
    length = len(raw.action)
    longer = all(len(v) == length + 1 for v in raw.obs.values())
    ends = _ends(raw)
    if ids is not None:
        pass
    elif raw.is_first is not None:
        begins = np.flatnonzero(raw.is_first)
    elif raw.whole or (longer and (ends[-1:].any() or not ends.any())):
        raw.whole, begins = True, np.zeros(0, int)
    else:
        begins = np.flatnonzero(ends) + 1
        if late := _late(raw, ends):
            note(notes, LATE, raw.where, late)
    if not (raw.whole or longer):
        if asked == "next_step" and not raw.next_obs:
            yield from _next_step(raw, ends, notes)
            return
        way = _autoreset(raw, ends, asked)
        if way:
            keep = ~ends
            if way == "next_step":
                keep = np.append(True, keep[:-1])
            what = AUTORESET if way == "next_step" else SAME_STEP
            note(notes, what, raw.where, int((~keep).sum()))
            begins = np.unique(np.cumsum(np.append(0, keep))[begins[begins <= length]])
            raw = raw.part(raw.where, np.flatnonzero(keep))
            length, ends = len(raw.action), ends[keep]
        breaks = _breaks(raw, ends, begins)
        if len(breaks):
            note(notes, BROKEN, raw.where, len(breaks))
            begins = np.union1d(begins, breaks + 1)
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
        yield raw.part(f"{raw.where}, episode {number}", slice(a, b))


def note(notes: Notes, what: str, where: str, count: int) -> None:
    """Note what was found in a place; again is nothing."""
    notes.setdefault(what, {})[where] = count


def _ends(raw: Raw) -> np.ndarray:
    """The rows [T] after which an episode may begin. A run of flags is the end of one episode where
    the next observations go on through it, or where it closes the recording and is its only one."""
    length = len(raw.action)
    ends = np.zeros(length, bool)
    for flag in (raw.terminal, raw.cut, raw.done, raw.last):
        if flag is not None and len(flag) == length:
            ends |= flag
    runs = ends[:-1] & ends[1:]  # an end, and the next row is one too
    if not runs.any() or ends.all():
        return ends
    if raw.next_obs:
        ends[:-1] &= ~(runs & _continues(raw))
    elif (first := int(np.argmax(ends))) and ends[first:].all():
        ends[first:-1] = False
    return ends


def _continues(raw: Raw) -> np.ndarray:
    """Whether the next observation of each row but the last is the following observation [T - 1];
    next observations that fit none say nothing."""
    goes_on = np.ones(len(raw.action) - 1, bool)
    for key, after in raw.next_obs.items():
        if key in raw.obs and after.shape == raw.obs[key].shape and len(after) == len(raw.action):
            goes_on &= same_rows(after[:-1], raw.obs[key][1:])
    return goes_on


def _autoreset(raw: Raw, ends: np.ndarray, asked: str) -> str:
    """How a vector environment began new episodes inside of the recording: next_step, where the row
    after an end begins with the last observation, earns nothing, and jumps into the next episode;
    same_step, where the next observation of the last row is of the next episode; "" for neither.

    Raises DatasetError where next observations go on through all ends, and nothing says why.
    """
    last = np.flatnonzero(ends[:-1])
    if asked in ("next_step", "same_step") and raw.next_obs:
        return asked if len(last) else ""
    if asked != "auto" or not len(last) or not raw.next_obs or raw.of_row:
        return ""
    if not _continues(raw)[last].all():
        return ""
    rewards = np.zeros(len(ends)) if raw.reward is None else raw.reward
    idle = not ends[last + 1].any() and not rewards[(last + 1)[last + 1 < len(rewards)]].any()
    here, after = _step_size(raw, last), _step_size(raw, last + 1)
    if idle and after > JUMP * here:
        return "next_step"
    if here > JUMP * after:
        return "same_step"
    if not idle:
        return ""  # it went on after a flag
    raise DatasetError(
        f"{raw.where}: the next observations go on through the ends of all {len(last)} episodes. "
        "Say how that came about: offline_alignment=next_step or =same_step where a vector "
        "environment reset itself (autoreset), =taken_at where the world went on."
    )


def _step_size(raw: Raw, rows: np.ndarray) -> float:
    """How far the next observations of some rows are from theirs, in units of the usual step."""
    total = 0.0
    for key, after in raw.next_obs.items():
        if key in raw.obs and after.shape == raw.obs[key].shape:
            some = np.linspace(0, len(after) - 1, USUAL).astype(int)
            far, usual = (
                np.abs(flat(after[i]).astype(np.float64) - flat(raw.obs[key][i])).mean(axis=1)
                for i in (rows, some)
            )
            total += float(far.mean() / (np.median(usual) or 1.0))
    return total


def _late(raw: Raw, ends: np.ndarray) -> int:
    """How many ends there are, if the observation jumps on the way to them and not after them;
    else 0. Next observations say it better."""
    rows = np.flatnonzero(ends[1:-1]) + 1
    if raw.next_obs or raw.is_first is not None or len(rows) < 2:
        return 0
    some = rows[np.linspace(0, len(rows) - 1, min(len(rows), USUAL)).astype(int)]
    before, after = 0.0, 0.0
    for value in raw.obs.values():
        if len(value) == len(ends):
            numbers = flat(value[np.concatenate([some - 1, some, some + 1])]).astype(np.float64)
            past, here, coming = np.split(numbers, 3)
            before += float(np.abs(here - past).mean())
            after += float(np.abs(coming - here).mean())
    return len(rows) if before > LEAP * after > 0 else 0


def _next_step(raw: Raw, ends: np.ndarray, notes: Notes) -> Iterator[Raw]:
    """Episodes whose last observation stands in the row after their end, where a vector environment
    began the next one; of an unfinished one, its last row gives the observation alone."""
    last = np.flatnonzero(ends[:-1])
    note(notes, AUTORESET, raw.where, len(last))
    begins = [0, *(int(i) + 2 for i in last)]
    stops = [*(int(i) + 1 for i in last), len(ends) - 1]
    for number, (a, b) in enumerate(zip(begins, stops, strict=True)):
        if a < b:
            obs = {k: v[a : b + 1] for k, v in raw.obs.items()}
            one = raw.part(f"{raw.where}, episode {number}", slice(a, b))
            yield replace(one, obs=obs, whole=True)


def _breaks(raw: Raw, ends: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """The rows whose next observation is not the one of the following row, though nothing says that
    an episode ends there; none where they are so many that rows are shuffled."""
    if not raw.next_obs or len(ends) < 2:
        return np.zeros(0, int)
    known = ends.copy()
    known[begins[(begins > 0) & (begins < len(ends))] - 1] = True
    found = np.flatnonzero(~_continues(raw) & ~known[:-1])
    return found if len(found) <= MOST_BREAKS * len(ends) else np.zeros(0, int)


def _by_number(where: str, ids: Any, counter: Any) -> tuple[np.ndarray | None, np.ndarray]:
    """How to sort the rows by their episode (None: they are), and where each begins then."""
    changes = np.flatnonzero(ids[1:] != ids[:-1]) + 1
    starts = np.concatenate([[0], changes]).astype(int)
    if len(np.unique(ids)) == len(starts):
        return None, changes
    if counter is not None and len(counter) == len(ids):
        if np.array_equal(np.flatnonzero(np.diff(counter) != 1) + 1, changes):
            return None, changes  # each number was used again, for another episode
        order = np.lexsort((counter, ids))
        sorted_ids, count = ids[order], counter[order]
        begins = np.flatnonzero(sorted_ids[1:] != sorted_ids[:-1]) + 1
        if np.array_equal(np.flatnonzero(np.diff(count) != 1) + 1, begins):
            return order, begins
    back = next(int(i) for i in starts[1:] if ids[i] in ids[:i])
    raise DatasetError(
        f"{where}: the episode {ids[back]} goes on at row {back}, after rows of another one. Sort "
        "the rows by their episode, or give each episode a number of its own."
    )


def written(raw: Raw, valid: np.ndarray | None, notes: Notes) -> slice:
    """The rows of a recording without those at its end that hold no step: a mask [T] denies them,
    or they are zeros alone, as buffers and padded episodes leave them."""
    length = len(raw.action)
    if valid is not None and len(valid) == length and valid.any() and not valid.all():
        rows = np.flatnonzero(valid)
        if len(rows) != rows[-1] + 1 - rows[0]:
            raise DatasetError(
                f"{raw.where}: its mask denies rows in the midst of an episode. Leave those rows "
                "out of the file, and number the episodes (a column `episode`)."
            )
        note(notes, MASKED, raw.where, length - len(rows))
        return slice(int(rows[0]), int(rows[-1]) + 1)
    used = length - _zeros_at_end(raw)
    if 0 < used < length and (_ends(raw)[used - 1] or length - used >= UNWRITTEN):
        note(notes, EMPTY, raw.where, length - used)
        return slice(0, used)
    return slice(0, length)


def take(raw: Raw, rows: slice) -> Raw:
    """Some of its rows; observations that have a row more keep theirs."""
    more = {k: max(0, len(v) - len(raw.action)) for k, v in raw.obs.items()}
    obs = {k: v[rows.start : rows.stop + more[k]] for k, v in raw.obs.items()}
    return replace(raw.part(raw.where, rows), obs=obs)


def _zeros_at_end(raw: Raw) -> int:
    """How many rows at the end hold nothing but zeros. None where all observations are a few whole
    numbers, which may be zeros like any other."""
    length = len(raw.action)
    obs = [v for v in raw.obs.values() if isinstance(v, np.ndarray)]
    telling = any(v.dtype.kind == "f" or v.size >= 64 * max(1, len(v)) for v in obs)
    parts = [raw.action, *obs, *raw.next_obs.values()]
    parts += [] if raw.reward is None else [raw.reward]
    if not telling or any(len(v) - length not in (0, 1) for v in parts) or not length:
        return 0
    zero = np.ones(length, bool)
    for value in parts:
        zero &= ~flat(value[len(value) - length :] != 0).any(axis=1)
    return length if zero.all() else int(np.argmin(zero[::-1]))
