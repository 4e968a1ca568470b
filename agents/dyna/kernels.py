"""The one learner of the Dyna family, compiled: act, learn from a real step, plan.

    real step (s, a, r, s')
      -> record it in the model's tables
      -> direct:      Q(s, a) += alpha (r + gamma max Q(s', .) - Q(s, a))
      -> plan n times with outcomes of the model instead of the world's:
           uniform       a state acted from, then an action tried there
           trajectory    simulate the policy from the present state
           prioritized   the pair whose value would change most, then its predecessors

An outcome that ends the episode has cont = 0 and never bootstraps. With a transient memory
(Dyna-2) values are the sum of both memories; real steps change the permanent one by its own
values alone, planning changes the transient one by the sum.
"""

from __future__ import annotations

import math

import numpy as np

from agents.dyna.memory import CALLS, SIZE, UPDATES, Memory, pop, push
from agents.dyna.settings import PRIORITIZED, TRAJECTORY
from worldmodel.models.tables import KNOWN, TIME, Tables, below, compiled, record, sample, uniform


@compiled
def value(m, k, p):  # type: ignore[no-untyped-def]
    """What a pair is believed to be worth."""
    if k.transient:
        return m.q[p] + m.transient[p]
    return m.q[p]


@compiled
def best(m, t, k, s):  # type: ignore[no-untyped-def]
    """The greatest value in a state."""
    p = s * t.actions
    most = value(m, k, p)
    for i in range(1, t.actions):
        most = max(most, value(m, k, p + i))
    return most


@compiled
def choose(m, t, k, s, everything):  # type: ignore[no-untyped-def]
    """An action of the policy; among those tried in the state unless `everything`. Equal values
    are drawn from."""
    count = t.actions if everything else t.num_tried[s]
    if k.temperature > 0:
        return _softmax(m, t, k, s, everything, count)
    if k.epsilon > 0 and uniform(m.rng) < k.epsilon:
        i = below(m.rng, count)
        return i if everything else t.tried[s * t.actions + i]
    return _greedy(m, t, k, s, everything, count)


@compiled
def _candidate(t, s, i, everything):  # type: ignore[no-untyped-def]
    return np.int64(i) if everything else np.int64(t.tried[s * t.actions + i])


@compiled
def _greedy(m, t, k, s, everything, count):  # type: ignore[no-untyped-def]
    most, ties = -np.inf, 0
    for i in range(count):
        v = value(m, k, s * t.actions + _candidate(t, s, i, everything))
        if v > most:
            most, ties = v, 1
        elif v == most:
            ties += 1
    pick = below(m.rng, ties) if ties > 1 else 0
    for i in range(count):
        a = _candidate(t, s, i, everything)
        if value(m, k, s * t.actions + a) == most:
            if pick == 0:
                return a
            pick -= 1
    return np.int64(-1)  # values are not finite


@compiled
def _softmax(m, t, k, s, everything, count):  # type: ignore[no-untyped-def]
    most = -np.inf
    for i in range(count):
        most = max(most, value(m, k, s * t.actions + _candidate(t, s, i, everything)))
    total = 0.0
    for i in range(count):
        v = value(m, k, s * t.actions + _candidate(t, s, i, everything))
        total += math.exp((v - most) / k.temperature)
    left = uniform(m.rng) * total
    for i in range(count):
        a = _candidate(t, s, i, everything)
        left -= math.exp((value(m, k, s * t.actions + a) - most) / k.temperature)
        if left < 0:
            return a
    return _candidate(t, s, count - 1, everything)


@compiled
def target(m, t, k, p):  # type: ignore[no-untyped-def]
    """The expected return of a tried pair by the model: one step, then the present values."""
    if t.chain[p] < 0:
        m.counters[CALLS] += 1
        return t.reward[p] + k.gamma * t.cont[p] * best(m, t, k, t.next[p])
    total, row = 0.0, p
    while row >= 0:
        m.counters[CALLS] += 1
        one = t.reward[row] + k.gamma * t.cont[row] * best(m, t, k, t.next[row])
        total += t.times[row] * one
        row = t.chain[row]
    return total / t.seen[p]


@compiled
def update(m, t, k, s, a):  # type: ignore[no-untyped-def]
    """One planning update; the state that the outcome leads to, or -1 where the episode ends."""
    p = s * t.actions + a
    after = s
    if t.seen[p] == 0:
        m.counters[CALLS] += 1
        goal = k.gamma * best(m, t, k, s)
    else:
        row = sample(t, m.rng, p) if not k.expected or k.select == TRAJECTORY else p
        after = t.next[row] if t.cont[row] > 0 else -1
        if k.expected:
            goal = target(m, t, k, p)
        else:
            m.counters[CALLS] += 1
            goal = t.reward[row] + k.gamma * t.cont[row] * best(m, t, k, t.next[row])
    if k.kappa > 0:
        goal += k.kappa * math.sqrt(t.counters[TIME] - t.last[p])
    if k.transient:
        m.transient[p] += k.transient_alpha * (goal - value(m, k, p))
    else:
        m.q[p] += k.alpha * (goal - m.q[p])
    m.counters[UPDATES] += 1
    return after


@compiled
def _affordable(m, k, calls):  # type: ignore[no-untyped-def]
    """Whether the bound on model calls leaves room; calls: their number at the beginning."""
    return k.max_calls == 0 or m.counters[CALLS] - calls < k.max_calls


@compiled
def plan(m, t, k, root):  # type: ignore[no-untyped-def]
    """n planning updates, fewer where the model calls are used up or nothing is known at root."""
    if k.select == TRAJECTORY:
        return _simulate(m, t, k, root)
    known, calls = t.counters[KNOWN], m.counters[CALLS]
    for _ in range(k.n):
        if not _affordable(m, k, calls):
            break
        s = t.states[below(m.rng, known)]
        if k.untried:
            a = below(m.rng, t.actions)
        else:
            a = np.int64(t.tried[s * t.actions + below(m.rng, t.num_tried[s])])
        update(m, t, k, s, a)


@compiled
def _simulate(m, t, k, root):  # type: ignore[no-untyped-def]
    """Follow the policy through the model, from root again after each end and at each state that
    was never acted from."""
    s, calls = root, m.counters[CALLS]
    for _ in range(k.n):
        if s < 0 or t.num_tried[s] == 0:
            s = root
        if t.num_tried[s] == 0 or not _affordable(m, k, calls):
            break
        a = choose(m, t, k, s, k.untried)
        s = update(m, t, k, s, a)


@compiled
def sweep(m, t, k, p):  # type: ignore[no-untyped-def]
    """Prioritized sweeping from a pair that was just tried; it queues what would change by more
    than theta."""
    _queue(m, t, k, p)
    sweep_on(m, t, k)


@compiled
def sweep_on(m, t, k):  # type: ignore[no-untyped-def]
    """Up to n updates from the queue as it is."""
    calls = m.counters[CALLS]
    for _ in range(k.n):
        if m.counters[SIZE] == 0 or not _affordable(m, k, calls):
            break
        p = pop(m)
        s = p // t.actions
        update(m, t, k, s, p - s * t.actions)
        row = t.first[s]
        while row >= 0:
            if t.cont[row] > 0:
                _queue(m, t, k, t.pair[row])
            row = t.after[row]


@compiled
def _queue(m, t, k, p):  # type: ignore[no-untyped-def]
    """Put a pair into the queue, or into another place there, if its value would change enough."""
    change = abs(target(m, t, k, p) - m.q[p])
    if change > k.theta:
        push(m, p, change)


@compiled
def begin(m, t, k, s):  # type: ignore[no-untyped-def]
    """An episode starts in s: an empty transient memory, and a first search from there."""
    if k.transient:
        m.transient[:] = 0.0
        if t.counters[KNOWN] > 0:
            plan(m, t, k, s)


@compiled
def learn(m, t, k, s, a, reward, s2, terminal, last):  # type: ignore[no-untyped-def]
    """One real step, then planning; the error of the pair's value before it. terminal: the future
    is worth nothing. last: the episode is over or cut off."""
    p = record(t, k.counts, s, a, reward, s2, terminal)
    future = 0.0
    if not terminal:
        future = m.q[s2 * t.actions]
        for i in range(1, t.actions):
            future = max(future, m.q[s2 * t.actions + i])
    error = reward + k.gamma * future - m.q[p]
    if k.direct:
        m.q[p] += k.alpha * error
    if k.select == PRIORITIZED:
        sweep(m, t, k, p)
    elif k.transient and last:
        m.transient[:] = 0.0  # what was found for this episode is of no use to the next one
    elif k.n > 0:
        plan(m, t, k, s if last else s2)
    return error


@compiled
def learn_all(m, t, k, s, a, reward, s2, first, terminal, last):  # type: ignore[no-untyped-def]
    """Rows in their order: where `first`, an episode starts in s2; elsewhere (s, a) led there. The
    sum of absolute errors."""
    total = 0.0
    for i in range(len(s)):
        if first[i]:
            begin(m, t, k, s2[i])
        else:
            error = learn(m, t, k, s[i], a[i], reward[i], s2[i], terminal[i], last[i])
            total += abs(error)
    return total


@compiled
def act_all(m, t, k, states, actions):  # type: ignore[no-untyped-def]
    """The policy's action in every state, into `actions`."""
    for i in range(len(states)):
        actions[i] = choose(m, t, k, states[i], True)


def acting_values(memory: Memory, tables: Tables) -> np.ndarray:
    """The values that the policy follows, [S, A]; the sum of both memories."""
    q = memory.q + memory.transient if len(memory.transient) else memory.q
    return q.reshape(-1, tables.actions).copy()
