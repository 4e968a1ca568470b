"""The learner of agents.dyna.learner in machine code, function by function and equal to the bit.

m: Memory. t: Tables, the model. k: Knobs, the settings. s, a, p: a state, an action, and their pair
p = s * A + a.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from agents.dyna.config import PRIORITIZED, TRAJECTORY, DynaConfig
from agents.dyna.memory import CALLS, SIZE, UPDATES, Memory, new_memory, pop, push
from worldmodel.models.tables import (
    KNOWN,
    TIME,
    below,
    compiled,
    get,
    record,
    sample,
    uniform,
)
from worldmodel.models.tabular import TabularModel


@compiled
def value(m, k, p):  # type: ignore[no-untyped-def]
    """What a pair is believed to be worth."""
    if k.transient:
        return get(m.q, p) + get(m.transient, p)
    return get(m.q, p)


@compiled
def best(m, t, k, s):  # type: ignore[no-untyped-def]
    """The greatest value in a state."""
    p = s * t.actions
    most = value(m, k, p)
    for i in range(1, t.actions):
        v = value(m, k, p + i)
        most = v if v > most else most
    return most


@compiled
def choose(m, t, k, s, count):  # type: ignore[no-untyped-def]
    """An action of the policy, equal values drawn from; among the first `count` actions tried in
    the state, or among all of them where count = A."""
    if k.temperature > 0:
        return _softmax(m, t, k, s, count)
    if k.epsilon > 0 and uniform(m.rng) < k.epsilon:
        return _candidate(t, s, below(m.rng, count), count)
    return _greedy(m, t, k, s, count)


@compiled
def _candidate(t, s, i, count):  # type: ignore[no-untyped-def]
    return np.int64(i) if count == t.actions else np.int64(t.tried[s * t.actions + i])


@compiled
def _greedy(m, t, k, s, count):  # type: ignore[no-untyped-def]
    most, ties = -np.inf, 0
    for i in range(count):
        v = value(m, k, s * t.actions + _candidate(t, s, i, count))
        if v > most:
            most, ties = v, 1
        elif v == most:
            ties += 1
    pick = below(m.rng, ties) if ties > 1 else 0
    for i in range(count):
        a = _candidate(t, s, i, count)
        if value(m, k, s * t.actions + a) == most:
            if pick == 0:
                return a
            pick -= 1
    return np.int64(0)  # values are not finite, which the caller finds by itself


@compiled
def _softmax(m, t, k, s, count):  # type: ignore[no-untyped-def]
    most = -np.inf
    for i in range(count):
        most = max(most, value(m, k, s * t.actions + _candidate(t, s, i, count)))
    total = 0.0
    for i in range(count):
        v = value(m, k, s * t.actions + _candidate(t, s, i, count))
        total += math.exp((v - most) / k.temperature)
    left = uniform(m.rng) * total
    for i in range(count):
        a = _candidate(t, s, i, count)
        left -= math.exp((value(m, k, s * t.actions + a) - most) / k.temperature)
        if left < 0:
            return a
    return _candidate(t, s, count - 1, count)


@compiled
def _one(m, t, k, row):  # type: ignore[no-untyped-def]
    """The return of one outcome: its reward, and the present values after it."""
    return get(t.reward, row) + k.gamma * get(t.cont, row) * best(
        m, t, k, np.int64(get(t.next, row))
    )


@compiled
def target(m, t, k, p):  # type: ignore[no-untyped-def]
    """The expected return of a tried pair by the model, and how many outcomes that took."""
    if get(t.chain, p) < 0:
        return _one(m, t, k, p), 1
    total, calls, row = 0.0, 0, np.int64(p)
    while row >= 0:
        calls += 1
        total += t.times[row] * _one(m, t, k, row)
        row = np.int64(t.chain[row])
    return total / t.seen[p], calls


@compiled
def update(m, t, k, s, a):  # type: ignore[no-untyped-def]
    """One planning update; the state that the outcome leads to, or -1 where the episode ends, and
    how many outcomes were looked up."""
    p = s * t.actions + a
    after, calls = s, 1
    if get(t.seen, p) == 0:
        goal = k.gamma * best(m, t, k, s)
    else:
        row = sample(t, m.rng, p) if not k.expected or k.select == TRAJECTORY else p
        after = np.int64(get(t.next, row)) if get(t.cont, row) > 0 else np.int64(-1)
        if k.expected:
            goal, calls = target(m, t, k, p)
        else:
            goal = _one(m, t, k, row)
    if k.kappa > 0:
        goal += k.kappa * math.sqrt(t.counters[TIME] - t.last[p])
    if k.transient:
        m.transient[p] += k.transient_alpha * (goal - value(m, k, p))
    else:
        m.q[p] += k.alpha * (goal - get(m.q, p))
    return after, calls


@compiled
def _select(m, t, k, s, root):  # type: ignore[no-untyped-def]
    """The pair to plan next, as state and action; (-1, -1) where there is none. s: where the
    simulated trajectory stands, or -1 where it has ended."""
    if k.select == PRIORITIZED:
        if m.counters[SIZE] == 0:
            return np.int64(-1), np.int64(-1)
        p = pop(m)
        return p // t.actions, p % t.actions
    if k.select == TRAJECTORY:
        if s < 0 or t.num_tried[s] == 0:
            s = root  # from the beginning, too, where nobody ever went on
        if t.num_tried[s] == 0:
            return np.int64(-1), np.int64(-1)
        count = t.actions if k.untried else np.int64(t.num_tried[s])
        return s, choose(m, t, k, s, count)
    s = np.int64(get(t.states, below(m.rng, t.counters[KNOWN])))
    if k.untried:
        return s, below(m.rng, t.actions)
    return s, np.int64(get(t.tried, s * t.actions + below(m.rng, get(t.num_tried, s))))


@compiled
def plan(m, t, k, root):  # type: ignore[no-untyped-def]
    """n planning updates; fewer where the model calls are used up, the queue is empty or nothing
    is known at root, where simulated trajectories start. Something must be known already."""
    at, done, calls = root, 0, 0
    while done < k.n and (k.max_calls == 0 or calls < k.max_calls):
        s, a = _select(m, t, k, at, root)
        if s < 0:
            break
        at, looked = update(m, t, k, s, a)
        done += 1
        calls += looked
        if k.select == PRIORITIZED:
            row = np.int64(t.first[s])
            while row >= 0:
                if t.cont[row] > 0:
                    calls += _queue(m, t, k, np.int64(t.pair[row]))
                row = np.int64(t.after[row])
    m.counters[UPDATES] += done
    m.counters[CALLS] += calls


@compiled
def _queue(m, t, k, p):  # type: ignore[no-untyped-def]
    """Put a pair into the queue, or into another place there, if its value would change enough; how
    many outcomes were looked up."""
    goal, calls = target(m, t, k, p)
    change = abs(goal - m.q[p])
    if change > k.theta:
        push(m, p, change)
    return calls


@compiled
def learn(m, t, k, first, s, a, reward, s2, terminal, last):  # type: ignore[no-untyped-def]
    """One row, then planning; the error of the pair's value before it.

    first: an episode starts in s2, and nothing led there; only Dyna-2 plans then. Otherwise (s, a)
    led to s2. terminal: the future is worth nothing. last: the episode is over or cut off.
    """
    error, root = 0.0, s2
    if not first:
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
            m.counters[CALLS] += _queue(m, t, k, p)
        if last:
            root = s
    if k.transient and (first or last):
        m.transient[:] = 0.0  # what was found for one episode is of no use to the next
    searches = not (k.transient and last) if not first else k.transient
    if searches and t.counters[KNOWN] > 0:
        plan(m, t, k, root)
    return error


@compiled
def learn_all(m, t, k, first, s, a, reward, s2, terminal, last):  # type: ignore[no-untyped-def]
    """`learn` for rows in their order; the sum of absolute errors."""
    total = 0.0
    for i in range(len(s)):
        error = learn(m, t, k, first[i], s[i], a[i], reward[i], s2[i], terminal[i], last[i])
        total += abs(error)
    return total


@compiled
def act_all(m, t, k, states, actions):  # type: ignore[no-untyped-def]
    """The policy's action in every state, into `actions`."""
    for i in range(len(states)):
        actions[i] = choose(m, t, k, states[i], t.actions)


class CompiledLearner:
    """`agents.dyna.learner.Learner` in machine code; its model is the table that it is given."""

    def __init__(self, config: DynaConfig, model: TabularModel, seed: int | Sequence[int]) -> None:
        self.knobs, self.model = config.knobs(), model
        self.memory: Memory = new_memory(model.states, model.actions, config, seed)

    @property
    def q(self) -> np.ndarray:
        """float64 [S, A] values."""
        return self.memory.q.reshape(-1, self.model.actions)

    @property
    def transient(self) -> np.ndarray:
        """float64 [S, A], Dyna-2's second memory; [0, A] where there is none."""
        return self.memory.transient.reshape(-1, self.model.actions)

    @property
    def updates(self) -> int:
        """Planning updates since the beginning."""
        return int(self.memory.counters[UPDATES])

    @property
    def calls(self) -> int:
        """Outcomes looked up in the model since the beginning."""
        return int(self.memory.counters[CALLS])

    def values(self) -> np.ndarray:
        """The values that the policy follows, float64 [S, A]."""
        return self.q + self.transient if self.knobs.transient else self.q.copy()

    def act(self, states: np.ndarray) -> np.ndarray:
        """The policy's action [B] in each of the states [B]."""
        actions = np.empty(len(states), np.int64)
        act_all(self.memory, self.model.tables, self.knobs, states, actions)
        return actions

    def learn_all(self, first: np.ndarray, *columns: np.ndarray) -> float:
        """`learn` for rows in their order, one array [N] for each of its arguments; the sum of
        absolute errors."""
        self.model.reserve(int((~first).sum()))
        return float(learn_all(self.memory, self.model.tables, self.knobs, first, *columns))

    def plan(self, n: int, root: int) -> None:
        """n planning updates, simulated trajectories from `root`."""
        plan(self.memory, self.model.tables, self.knobs._replace(n=n), root)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything that decides what it does next, beside its model."""
        return self.memory._asdict()

    def load_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `arrays`."""
        self.memory = Memory(**arrays)
