"""The Dyna family in plain Python and NumPy: the whole algorithm, top to bottom.

    real step (s, a, r, s')
      -> record it in the model
      -> learn from it:  Q(s, a) += alpha (r + gamma max Q(s', .) - Q(s, a))
      -> plan: n updates in the same way, with outcomes of the model instead of the world's, of
           uniform       a state acted from, then an action tried there (Dyna-Q)
           trajectory    steps of the policy, simulated from the present state
           prioritized   the pair whose value would change most, then its predecessors

Sections are those of Sutton and Barto, "Reinforcement Learning: An Introduction", 2nd edition. An
outcome that ends the episode never bootstraps. With a transient memory (Dyna-2: Silver, Sutton and
Mueller, 2008) values are the sum of both memories; real steps change the permanent one by its own
values alone, planning changes the transient one by the sum.

This is the definition: agents.dyna.kernels is the same in machine code, some hundred times as fast
and equal to the last bit. Hence one number is drawn for each question that has more than one
answer, and sums are taken one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agents.dyna.config import DynaConfig

Pair = tuple[int, int]  # a state and an action


class SplitMix:
    """SplitMix64 (Steele, Lea and Flood, 2014), a random generator whose state is one number."""

    def __init__(self, seed: int | Sequence[int]) -> None:
        self.state = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])

    def draw(self) -> int:
        """64 random bits."""
        self.state = (self.state + 0x9E3779B97F4A7C15) % 2**64
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    def uniform(self) -> float:
        """A number in [0, 1)."""
        return (self.draw() >> 11) / 2**53

    def below(self, n: int) -> int:
        """A whole number in [0, n)."""
        return ((self.draw() >> 32) * n) >> 32


@dataclass(eq=False)
class Outcome:
    """What a pair led to. first: number of the real step that showed it first, by which outcomes
    are in order. times: how often it was seen."""

    pair: Pair
    after: int
    reward: float
    terminal: bool
    first: int
    times: int = 0


class Learner:
    """One learner for S states and A actions; the settings choose the member of the family.

    q: float64 [S, A] values. transient: float64 [S, A], Dyna-2's second memory.
    updates, calls: planning updates, and outcomes looked up in the model, since the beginning.
    """

    def __init__(
        self, config: DynaConfig, states: int, actions: int, seed: int | Sequence[int]
    ) -> None:
        self.config, self.actions, self.rng = config, range(actions), SplitMix(seed)
        self.q = np.full((states, actions), float(config.initial))
        self.transient = np.zeros((states, actions))
        # The model: outcomes of pairs, when pairs were tried last (0: never), and, both in the
        # order of their first time, the states acted from with the actions tried there.
        self.model: dict[Pair, list[Outcome]] = {}
        self.last = np.zeros((states, actions), np.int64)
        self.tried: dict[int, list[int]] = {}
        # For prioritized sweeping: outcomes by the state that they lead to, the newest first; and
        # the queue, with the change that each pair awaits and when it was put there.
        self.leading: dict[int, list[Outcome]] = {}
        self.queue: dict[Pair, tuple[float, int]] = {}
        self.time = self.stamps = self.updates = self.calls = 0

    # The policy.

    def values(self) -> np.ndarray:
        """The values that the policy follows, float64 [S, A]."""
        return self.q + self.transient if self.config.transient else self.q.copy()

    def value(self, s: int, a: int) -> float:
        """What a pair is believed to be worth."""
        return float(self.q[s, a] + self.transient[s, a] if self.config.transient else self.q[s, a])

    def best(self, s: int) -> float:
        """The greatest value in a state."""
        return max(self.value(s, a) for a in self.actions)

    def act(self, states: np.ndarray) -> np.ndarray:
        """The policy's action [B] in each of the states [B]."""
        return np.array([self.choose(int(s), list(self.actions)) for s in states], np.int64)

    def choose(self, s: int, among: list[int]) -> int:
        """One of these actions, epsilon-greedy or softmax in their values; ties are drawn."""
        values = [self.value(s, a) for a in among]
        top = max(values)
        if self.config.policy == "softmax":
            return self._softmax([(v - top) / self.config.temperature for v in values], among)
        if self.config.epsilon > 0 and self.rng.uniform() < self.config.epsilon:
            return among[self.rng.below(len(among))]
        ties = [a for a, v in zip(among, values, strict=True) if v == top]
        return ties[self.rng.below(len(ties))] if len(ties) > 1 else ties[0]

    def _softmax(self, logits: list[float], among: list[int]) -> int:
        total = 0.0
        for logit in logits:
            total += math.exp(logit)
        left = self.rng.uniform() * total
        for a, logit in zip(among, logits, strict=True):
            left -= math.exp(logit)
            if left < 0:
                return a
        return among[-1]

    # The model.

    def record(self, s: int, a: int, reward: float, after: int, terminal: bool) -> None:
        """Note a real step: the newest outcome alone (table=deterministic), or all with their
        counts."""
        self.time += 1
        self.last[s, a] = self.time
        tried = self.tried.setdefault(s, [])
        if a not in tried:
            tried.append(a)
        found = self.model.setdefault((s, a), [])
        fresh = Outcome((s, a), after, reward, terminal, self.time)
        if self.config.table == "counts":
            key = (after, reward, terminal)
            same = [o for o in found if (o.after, o.reward, o.terminal) == key]
            outcome = same[0] if same else fresh
        elif found and found[0].after == after:
            outcome = found[0]
            outcome.reward, outcome.terminal = reward, terminal
        else:
            if found:
                old = found.pop()
                self.leading[old.after].remove(old)
                fresh.times = old.times
            outcome = fresh
        if outcome is fresh:
            self._add(fresh)
        outcome.times += 1

    def _add(self, outcome: Outcome) -> None:
        self.model.setdefault(outcome.pair, []).append(outcome)
        self.leading.setdefault(outcome.after, []).insert(0, outcome)

    def sample(self, pair: Pair) -> Outcome:
        """An outcome of a pair that was tried, as often as it was seen."""
        outcomes = self.model[pair]
        if len(outcomes) == 1:
            return outcomes[0]
        left = self.rng.below(sum(outcome.times for outcome in outcomes))
        for outcome in outcomes:
            left -= outcome.times
            if left < 0:
                break
        return outcome

    def one_return(self, outcome: Outcome) -> float:
        """The return of one outcome: its reward, and the present values after it."""
        goes_on = 0.0 if outcome.terminal else 1.0
        return outcome.reward + self.config.gamma * goes_on * self.best(outcome.after)

    def expected_return(self, pair: Pair) -> float:
        """The mean return of a pair that was tried, over all of its outcomes (8.5)."""
        outcomes = self.model[pair]
        self.calls += len(outcomes)
        if len(outcomes) == 1:
            return self.one_return(outcomes[0])
        total = 0.0
        for outcome in outcomes:
            total += outcome.times * self.one_return(outcome)
        return total / sum(outcome.times for outcome in outcomes)

    # Learning and planning.

    def learn(
        self, first: bool, s: int, a: int, reward: float, after: int, terminal: bool, last: bool
    ) -> float:
        """One row of experience, then planning; the error of the pair's value before it.

        first: an episode starts in `after`, and nothing led there; only Dyna-2 plans then.
        Otherwise (s, a) led to `after`. terminal: the future is worth nothing. last: the episode
        is over or cut off.
        """
        c, error = self.config, 0.0
        if not first:
            self.record(s, a, reward, after, terminal)
            future = 0.0 if terminal else float(self.q[after].max())
            error = float(reward + c.gamma * future - self.q[s, a])
            if c.direct:
                self.q[s, a] += c.alpha * error
            if c.select == "prioritized":
                self.enqueue((s, a))
        if c.transient and (first or last):
            self.transient[:] = 0.0  # what was found for one episode is of no use to the next
        searches = c.transient if first else not (c.transient and last)
        if searches and self.tried:
            self.plan(c.n, s if last else after)
        return error

    def learn_all(self, *columns: np.ndarray) -> float:
        """`learn` for rows in their order, one array [N] for each of its arguments; the sum of
        absolute errors."""
        total = 0.0
        for row in zip(*(column.tolist() for column in columns), strict=True):
            total += abs(self.learn(*row))
        return total

    def plan(self, n: int, root: int) -> None:
        """n planning updates (8.2); fewer where model calls are used up, the queue is empty, or
        nothing is known in `root`, where simulated trajectories start."""
        most, before, at = self.config.max_calls, self.calls, root
        for _ in range(n):
            pair = None if most and self.calls - before >= most else self.select(at, root)
            if pair is None:
                return
            self.queue.pop(pair, None)
            at = self.update(*pair)
            if self.config.select == "prioritized":
                for outcome in self.leading.get(pair[0], []):
                    if not outcome.terminal:
                        self.enqueue(outcome.pair)

    def select(self, at: int, root: int) -> Pair | None:
        """The pair to plan next. at: where the simulated trajectory stands, -1 where it ended."""
        c = self.config
        if c.select == "prioritized":
            return min(
                self.queue, key=lambda p: (-self.queue[p][0], self.queue[p][1]), default=None
            )
        if c.select == "trajectory":  # 8.6
            s = at if at in self.tried else root
            if s not in self.tried:
                return None
            tried = self.tried[s]
            every = c.untried or len(tried) == len(self.actions)
            return s, self.choose(s, list(self.actions) if every else tried)
        s = list(self.tried)[self.rng.below(len(self.tried))]
        among = list(self.actions) if c.untried else self.tried[s]
        return s, among[self.rng.below(len(among))]

    def update(self, s: int, a: int) -> int:
        """One planning update; the state that the simulated step leads to, -1 at an end."""
        c, after = self.config, s
        if (s, a) not in self.model:  # never tried: it leads back, with reward 0
            self.calls += 1
            goal = c.gamma * self.best(s)
        else:
            if c.backup == "sample" or c.select == "trajectory":
                outcome = self.sample((s, a))
                after = -1 if outcome.terminal else outcome.after
            if c.backup == "expected":
                goal = self.expected_return((s, a))
            else:
                self.calls += 1
                goal = self.one_return(outcome)
        if c.kappa > 0:  # Dyna-Q+ (8.3): what was not tried for long looks better
            goal += c.kappa * math.sqrt(self.time - self.last[s, a])
        if c.transient:
            self.transient[s, a] += c.transient_alpha * (goal - self.value(s, a))
        else:
            self.q[s, a] += c.alpha * (goal - self.q[s, a])
        self.updates += 1
        return after

    def enqueue(self, pair: Pair) -> None:
        """Put a pair into the queue of prioritized sweeping (8.4), or into another place there, if
        its value would change enough."""
        change = abs(self.expected_return(pair) - float(self.q[pair]))
        if change > self.config.theta:
            self.queue[pair] = (change, self.stamps)
            self.stamps += 1

    # Saving.

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything that decides what it does next; tables of so many rows as it knows, none
        before it knows anything."""
        found = [outcome for outcomes in self.model.values() for outcome in outcomes]
        rows = [
            (*o.pair, o.after, o.reward, o.terminal, o.first, o.times)
            for o in sorted(found, key=lambda outcome: outcome.first)
        ]
        tables = {
            "outcomes": np.array(rows, np.float64),
            "tried": np.array([(s, a) for s, actions in self.tried.items() for a in actions]),
            "queue": np.array([(*pair, *place) for pair, place in self.queue.items()]),
        }
        return {
            "q": self.q,
            "transient": self.transient,
            "last": self.last,
            "counters": np.array([self.time, self.stamps, self.updates, self.calls]),
            "rng": np.array([self.rng.state], np.uint64),
            **{name: table for name, table in tables.items() if len(table)},
        }

    def load_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `arrays`."""
        tables = {k: arrays[k].tolist() for k in ("outcomes", "tried", "queue") if k in arrays}
        self.q, self.transient, self.last = (arrays[k] for k in ("q", "transient", "last"))
        self.model, self.tried, self.leading, self.queue = {}, {}, {}, {}
        for s, a, after, reward, terminal, first, times in tables.get("outcomes", []):
            pair = int(s), int(a)
            self._add(Outcome(pair, int(after), reward, bool(terminal), int(first), int(times)))
        for s, a in tables.get("tried", []):
            self.tried.setdefault(s, []).append(a)
        for s, a, change, stamp in tables.get("queue", []):
            self.queue[int(s), int(a)] = (change, int(stamp))
        self.time, self.stamps, self.updates, self.calls = arrays["counters"].tolist()
        self.rng.state = int(arrays["rng"][0])
