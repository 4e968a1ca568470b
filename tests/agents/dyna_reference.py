"""The Dyna family in plain Python, with dictionaries and lists, to compare the compiled one with.

It draws the same random numbers in the same order: SplitMix64, one number for each question that
has more than one answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.dyna import DynaConfig
from worldmodel.envs.table import WorldTable

MASK = 2**64 - 1


class SplitMix:
    """SplitMix64 with Python's whole numbers."""

    def __init__(self, state: int) -> None:
        self.state = state

    def draw(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def uniform(self) -> float:
        return (self.draw() >> 11) / 2**53

    def below(self, n: int) -> int:
        return ((self.draw() >> 32) * n) >> 32


def seeded(entropy: list[int]) -> SplitMix:
    return SplitMix(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))


@dataclass
class Outcome:
    """What a pair once led to."""

    pair: tuple[int, int]
    after: int
    reward: float
    terminal: bool
    times: int = 0


class Reference:
    """One learner; the settings choose the member of the family."""

    def __init__(self, config: DynaConfig, actions: int, rng: SplitMix) -> None:
        self.c, self.actions, self.rng = config, range(actions), rng
        self.q: dict[tuple[int, int], float] = {}
        self.transient: dict[tuple[int, int], float] = {}
        self.model: dict[tuple[int, int], list[Outcome]] = {}
        self.seen: dict[tuple[int, int], int] = {}
        self.last: dict[tuple[int, int], int] = {}
        self.tried: dict[int, list[int]] = {}  # dictionaries remember the order of their keys
        self.leading: dict[int, list[Outcome]] = {}
        self.queue: dict[tuple[int, int], tuple[float, int]] = {}
        self.time = self.stamps = self.updates = self.calls = 0

    def permanent(self, s: int, a: int) -> float:
        return self.q.get((s, a), self.c.initial)

    def value(self, s: int, a: int) -> float:
        extra = self.transient.get((s, a), 0.0)
        return self.permanent(s, a) + extra if self.c.transient else self.permanent(s, a)

    def best(self, s: int) -> float:
        return max(self.value(s, a) for a in self.actions)

    def choose(self, s: int, among: list[int]) -> int:
        values = [self.value(s, a) for a in among]
        top = max(values)
        if self.c.policy == "softmax":
            weights = [math.exp((v - top) / self.c.temperature) for v in values]
            left = self.rng.uniform() * sum(weights)
            for a, weight in zip(among, weights, strict=True):
                left -= weight
                if left < 0:
                    return a
            return among[-1]
        if self.c.epsilon > 0 and self.rng.uniform() < self.c.epsilon:
            return among[self.rng.below(len(among))]
        ties = [a for a, v in zip(among, values, strict=True) if v == top]
        return ties[self.rng.below(len(ties))] if len(ties) > 1 else ties[0]

    def known(self, s: int) -> list[int]:
        """Actions tried in a state: in the order of their first time, or of their numbers where
        that is all of them."""
        tried = self.tried.get(s, [])
        return sorted(tried) if len(tried) == len(self.actions) else tried

    def record(self, s: int, a: int, reward: float, after: int, terminal: bool) -> None:
        pair = (s, a)
        self.time += 1
        self.last[pair] = self.time
        self.seen[pair] = self.seen.get(pair, 0) + 1
        self.tried.setdefault(s, [])
        if a not in self.tried[s]:
            self.tried[s].append(a)
        found = self.model.setdefault(pair, [])
        fresh = Outcome(pair, after, reward, terminal)
        if self.c.table == "counts":
            same = [
                o for o in found if (o.after, o.reward, o.terminal) == (after, reward, terminal)
            ]
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
            found.append(outcome)
            self.leading.setdefault(after, []).insert(0, outcome)
        outcome.times += 1

    def one(self, outcome: Outcome) -> float:
        future = 0.0 if outcome.terminal else 1.0
        return outcome.reward + self.c.gamma * future * self.best(outcome.after)

    def target(self, pair: tuple[int, int]) -> float:
        outcomes = self.model[pair]
        self.calls += len(outcomes)
        if len(outcomes) == 1:
            return self.one(outcomes[0])
        total = 0.0
        for outcome in outcomes:
            total += outcome.times * self.one(outcome)
        return total / self.seen[pair]

    def sample(self, pair: tuple[int, int]) -> Outcome:
        outcomes = self.model[pair]
        if len(outcomes) == 1:
            return outcomes[0]
        left = self.rng.below(self.seen[pair])
        for outcome in outcomes:
            if left < outcome.times:
                return outcome
            left -= outcome.times
        raise AssertionError

    def update(self, s: int, a: int) -> int | None:
        """The state that a simulated step leads to; None at an end."""
        pair, after = (s, a), s
        if pair not in self.model:
            self.calls += 1
            goal = self.c.gamma * self.best(s)
        else:
            if self.c.backup == "sample" or self.c.select == "trajectory":
                outcome = self.sample(pair)
                after = None if outcome.terminal else outcome.after  # type: ignore[assignment]
            if self.c.backup == "expected":
                goal = self.target(pair)
            else:
                self.calls += 1
                goal = self.one(outcome)
        if self.c.kappa > 0:
            goal += self.c.kappa * math.sqrt(self.time - self.last.get(pair, 0))
        if self.c.transient:
            change = self.c.transient_alpha * (goal - self.value(s, a))
            self.transient[pair] = self.transient.get(pair, 0.0) + change
        else:
            self.q[pair] = self.permanent(s, a) + self.c.alpha * (goal - self.permanent(s, a))
        self.updates += 1
        return after

    def plan(self, root: int) -> None:
        before, at = self.calls, root
        for _ in range(self.c.n):
            if self.c.max_calls and self.calls - before >= self.c.max_calls:
                return
            if self.c.select == "prioritized":
                if not self.queue:
                    return
                s, a = min(self.queue, key=lambda p: (-self.queue[p][0], self.queue[p][1]))
                del self.queue[s, a]
            elif self.c.select == "trajectory":
                s = at if at is not None and at in self.tried else root
                if s not in self.tried:
                    return
                a = self.choose(s, list(self.actions) if self.c.untried else self.known(s))
            else:
                s = list(self.tried)[self.rng.below(len(self.tried))]
                among = list(self.actions) if self.c.untried else self.tried[s]
                a = among[self.rng.below(len(among))]
            at = self.update(s, a)  # type: ignore[assignment]
            if self.c.select == "prioritized":
                for outcome in self.leading.get(s, []):
                    if not outcome.terminal:
                        self.enqueue(outcome.pair)

    def enqueue(self, pair: tuple[int, int]) -> None:
        change = abs(self.target(pair) - self.permanent(*pair))
        if change > self.c.theta:
            self.queue[pair] = (change, self.stamps)
            self.stamps += 1

    def learn(self, s: int, a: int, reward: float, after: int, terminal: bool, last: bool) -> None:
        self.record(s, a, reward, after, terminal)
        future = 0.0 if terminal else max(self.permanent(after, b) for b in self.actions)
        old = self.permanent(s, a)
        if self.c.direct:
            self.q[s, a] = old + self.c.alpha * (reward + self.c.gamma * future - old)
        if self.c.select == "prioritized":
            self.enqueue((s, a))
        if self.c.transient and last:
            self.transient.clear()
        else:
            self.plan(s if last else after)

    def begin(self, s: int) -> None:
        if self.c.transient:
            self.transient.clear()
            if self.tried:
                self.plan(s)


def live(
    world: WorldTable, config: DynaConfig, seed: int, steps: int, time_limit: int
) -> tuple[Reference, list[float], SplitMix]:
    """A learner after so many steps in a world, its rewards, and the world's generator."""
    learner, rng = Reference(config, world.actions, seeded([seed, 0])), seeded([seed, 1])
    rewards: list[float] = []
    state, length, phase = -1, 0, 0

    def pick(chances: Any) -> int:
        total = np.cumsum(chances)
        if total[0] >= 1:
            return 0
        draw = rng.uniform()
        return int(min((total <= draw).sum(), len(total) - 1))

    while len(rewards) < steps:
        if state < 0 or not world.at_episode:
            phase = int((world.change <= len(rewards)).sum()) - 1
        if state < 0:
            state, length = pick(world.start[phase]), 0
            learner.begin(state)
        action = learner.choose(state, list(learner.actions))
        place = (phase, state, action, pick(world.probability[phase, state, action]))
        after, reward = int(world.next[place]), float(world.reward[place])
        terminal = bool(world.terminal[place])
        rewards.append(reward)
        length += 1
        last = terminal or length == time_limit
        learner.learn(state, action, reward, after, terminal, last)
        state = -1 if last else after
    return learner, rewards, rng
