"""What a learner of the Dyna family keeps beside its model, and the queue in it, compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from agents.dyna.config import DynaConfig
from worldmodel.models.tables import compiled, random_state

SIZE, STAMPS, UPDATES, CALLS = 0, 1, 2, 3  # Memory.counters


class Memory(NamedTuple):
    """What the learner keeps beside the model, for P = S * A pairs.

    q: float64 [P] values. transient: float64 [P] Dyna-2's second memory ([0] where there is none).
    heap: int32 [P] the queue, a binary heap of pairs. place: int32 [P] where a pair is in it, or
    -1. priority: float64 [P]; stamp: int64 [P] when it was queued, so that the older of two equals
    goes first. counters: int64 [4] at SIZE (of the queue), STAMPS, UPDATES (planned ever) and
    CALLS (outcomes looked up ever). rng: uint64 [1].
    """

    q: np.ndarray
    transient: np.ndarray
    heap: np.ndarray
    place: np.ndarray
    priority: np.ndarray
    stamp: np.ndarray
    counters: np.ndarray
    rng: np.ndarray


def new_memory(states: int, actions: int, config: DynaConfig, seed: int | Sequence[int]) -> Memory:
    """A memory that has learned nothing."""
    pairs = states * actions
    queue = pairs if config.select == "prioritized" else 0
    return Memory(
        np.full(pairs, float(config.initial)),
        np.zeros(pairs if config.transient else 0),
        np.zeros(queue, np.int32),
        np.full(queue, -1, np.int32),
        np.zeros(queue),
        np.zeros(queue, np.int64),
        np.zeros(4, np.int64),
        random_state(seed),
    )


@compiled
def push(m, p, change):  # type: ignore[no-untyped-def]
    """Put a pair into the queue by the size of its change, or into another place there."""
    if m.place[p] < 0:
        m.place[p] = m.counters[SIZE]
        m.heap[m.counters[SIZE]] = p
        m.counters[SIZE] += 1
    m.priority[p] = change
    m.stamp[p] = m.counters[STAMPS]
    m.counters[STAMPS] += 1
    _down(m, _up(m, m.place[p]))


@compiled
def pop(m):  # type: ignore[no-untyped-def]
    """Take the first pair from the queue."""
    p = np.int64(m.heap[0])
    m.place[p] = -1
    m.counters[SIZE] -= 1
    if m.counters[SIZE] > 0:
        m.heap[0] = m.heap[m.counters[SIZE]]
        m.place[m.heap[0]] = 0
        _down(m, 0)
    return p


@compiled
def _goes_first(m, p, other):  # type: ignore[no-untyped-def]
    if m.priority[p] != m.priority[other]:
        return m.priority[p] > m.priority[other]
    return m.stamp[p] < m.stamp[other]


@compiled
def _swap(m, i, j):  # type: ignore[no-untyped-def]
    m.heap[i], m.heap[j] = m.heap[j], m.heap[i]
    m.place[m.heap[i]], m.place[m.heap[j]] = i, j


@compiled
def _up(m, start):  # type: ignore[no-untyped-def]
    i = np.int64(start)
    while i > 0 and _goes_first(m, m.heap[i], m.heap[(i - 1) // 2]):
        _swap(m, i, (i - 1) // 2)
        i = (i - 1) // 2
    return i


@compiled
def _down(m, start):  # type: ignore[no-untyped-def]
    i = np.int64(start)
    while 2 * i + 1 < m.counters[SIZE]:
        child = 2 * i + 1
        if child + 1 < m.counters[SIZE] and _goes_first(m, m.heap[child + 1], m.heap[child]):
            child += 1
        if not _goes_first(m, m.heap[child], m.heap[i]):
            break
        _swap(m, i, child)
        i = child
