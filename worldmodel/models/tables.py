"""What every action led to in every state, as flat arrays, and the compiled functions that write
and read them millions of times a second; `worldmodel.models.tabular` makes a `Dynamics` of them.

    pair     p = s * A + a
    outcome  a row of next, reward, cont, times; the first one of pair p is row p itself, others
             are chained to it from row P on
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from worldmodel.accel.kernels import machine_code, state_of

F = TypeVar("F", bound=Callable[..., Any])
TIME, KNOWN, USED = 0, 1, 2  # Tables.counters: transitions seen, states left, rows in use


def compiled(function: F) -> F:
    """The function in machine code, kept on disk (`accel.kernels.machine_code`) for each state
    of the sources: all files beside this one's caller, and this one.

    Arrays are lent by the caller and must not be made inside (_nrt=False), and every call is
    expanded where it stands (forceinline): counting references to the fields of a named tuple, and
    then handing them on, each took about five times as long as the work.
    """
    state = _state_of(Path(function.__code__.co_filename).parent)
    return machine_code(function, state, _nrt=False, forceinline=True)


@cache
def _state_of(folder: Path) -> str:
    return state_of(sorted({*folder.glob("*.py"), Path(__file__)}))


# Random numbers: SplitMix64 (Steele, Lea and Flood, 2014). Its whole state is one number in an
# array, so a checkpoint holds it and a plain Python loop can draw the same ones.

_STEP, _FIRST, _SECOND = (
    np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def random_state(seed: int | Sequence[int]) -> np.ndarray:
    """A new generator, uint64 [1]."""
    return np.array([np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]])


@compiled
def draw(rng):  # type: ignore[no-untyped-def]
    """64 random bits."""
    rng[0] += _STEP
    z = rng[0]
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))


@compiled
def uniform(rng):  # type: ignore[no-untyped-def]
    """A float64 in [0, 1), one of 2**53."""
    return np.float64(np.int64(draw(rng) >> np.uint64(11))) * (1.0 / 9007199254740992.0)


@compiled
def below(rng, n):  # type: ignore[no-untyped-def]
    """A whole number in [0, n), n < 2**31; uneven by less than n / 2**32."""
    return np.int64(((draw(rng) >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32))


class Tables(NamedTuple):
    """What was seen so far, for S states, A actions, P = S * A pairs and N >= P outcomes.

    next: int32 [N] the state that the outcome leads to. reward: float64 [N].
    cont: float64 [N], 0 where the outcome ends the episode, else 1.
    times: int64 [N] how often it was seen. chain: int32 [N] the pair's next outcome, or -1.
    pair: int32 [N] whose outcome it is. before, after: int32 [N] its neighbours in the list of
    outcomes that lead to the same state, or -1. first: int32 [S] the head of that list, or -1.
    seen: int64 [P] how often a pair was tried. last: int64 [P] when it was tried last (0: never).
    states: int32 [S] the states acted from, in the order of their first time.
    tried: int32 [P] for each state the actions tried there, in order; num_tried: int32 [S].
    counters: int64 [3] at TIME, KNOWN and USED. actions: A.
    """

    next: np.ndarray
    reward: np.ndarray
    cont: np.ndarray
    times: np.ndarray
    chain: np.ndarray
    pair: np.ndarray
    before: np.ndarray
    after: np.ndarray
    first: np.ndarray
    seen: np.ndarray
    last: np.ndarray
    states: np.ndarray
    tried: np.ndarray
    num_tried: np.ndarray
    counters: np.ndarray
    actions: int


OUTCOME_FIELDS = 8  # the first so many fields have one entry for each outcome
LINKS = ("chain", "before", "after", "first")  # -1 where there is none


def new_tables(states: int, actions: int) -> Tables:
    """Empty tables for `states` and `actions`."""
    pairs = states * actions

    def zeros(name: str) -> np.ndarray:
        size = {"first": states, "states": states, "num_tried": states, "counters": 3}
        float64 = name in ("reward", "cont")
        int64 = name in ("times", "seen", "last", "counters")
        dtype = np.float64 if float64 else np.int64 if int64 else np.int32
        return np.full(size.get(name, pairs), -1 if name in LINKS else 0, dtype)

    arrays = {name: zeros(name) for name in Tables._fields[:-1]}
    tables = Tables(**arrays, actions=actions)
    tables.pair[:] = np.arange(pairs)
    tables.counters[USED] = pairs
    return tables


def with_capacity(tables: Tables, outcomes: int) -> Tables:
    """The same tables with room for so many more outcomes; as they are where there is room."""
    have, need = len(tables.next), int(tables.counters[USED]) + outcomes
    if need <= have:
        return tables
    size = max(need, have + have // 2)
    names = Tables._fields[:OUTCOME_FIELDS]
    grown: dict[str, Any] = {name: np.resize(getattr(tables, name), size) for name in names}
    return tables._replace(**grown)


@compiled
def get(array, i):  # type: ignore[no-untyped-def]
    """array[i] for i >= 0. Indices with a sign would be compared with 0 at each look-up, which took
    a third of the time of planning."""
    return array[np.uint64(i)]


@compiled
def record(t, every, s, a, reward, s2, terminal):  # type: ignore[no-untyped-def]
    """Note one transition; the pair. every: keep all outcomes (room for one more is needed), not
    only the newest."""
    p = s * t.actions + a
    t.counters[TIME] += 1
    if t.seen[p] == 0:
        if t.num_tried[s] == 0:
            t.states[t.counters[KNOWN]] = s
            t.counters[KNOWN] += 1
        t.tried[s * t.actions + t.num_tried[s]] = a
        t.num_tried[s] += 1
    t.seen[p] += 1
    t.last[p] = t.counters[TIME]
    cont = 0.0 if terminal else 1.0
    row = p
    if t.seen[p] > 1 and every:
        while t.next[row] != s2 or t.reward[row] != reward or t.cont[row] != cont:
            if t.chain[row] < 0:
                t.chain[row] = t.counters[USED]
                t.counters[USED] += 1
                row = t.chain[row]
                t.pair[row], t.chain[row], t.times[row] = p, -1, 0
                break
            row = t.chain[row]
    if t.times[row] == 0:
        _link(t, row, s2)
    elif t.next[row] != s2:
        _unlink(t, row)
        _link(t, row, s2)
    t.next[row], t.reward[row], t.cont[row] = s2, reward, cont
    t.times[row] += 1
    return p


@compiled
def _link(t, row, s2):  # type: ignore[no-untyped-def]
    """Put an outcome at the head of the list of those that lead to s2."""
    head = t.first[s2]
    t.before[row], t.after[row] = -1, head
    if head >= 0:
        t.before[head] = row
    t.first[s2] = row


@compiled
def _unlink(t, row):  # type: ignore[no-untyped-def]
    """Take an outcome from the list it is in."""
    before, after = t.before[row], t.after[row]
    if before >= 0:
        t.after[before] = after
    else:
        t.first[t.next[row]] = after
    if after >= 0:
        t.before[after] = before


@compiled
def sample(t, rng, p):  # type: ignore[no-untyped-def]
    """An outcome of a pair that was tried, as often as it was seen. Draws nothing where there is
    only one."""
    if get(t.chain, p) < 0:
        return p
    left, row = below(rng, t.seen[p]), p
    while left >= t.times[row]:
        left -= t.times[row]
        row = t.chain[row]
    return row


@compiled
def record_all(t, every, s, a, reward, s2, terminal):  # type: ignore[no-untyped-def]
    """`record` for transitions in their order."""
    for i in range(len(s)):
        record(t, every, s[i], a[i], reward[i], s2[i], terminal[i])


@compiled
def sample_all(t, rng, pairs, rows):  # type: ignore[no-untyped-def]
    """An outcome of every pair, -1 where it was never tried."""
    for i in range(len(pairs)):
        rows[i] = sample(t, rng, pairs[i]) if t.seen[pairs[i]] > 0 else -1
