"""Whole experiments in compiled code: the world's table, an agent's settings and a seed go in, what
the agent did comes out. The learner is the compiled one of training (agents.dyna.kernels).

    world = world_table(EnvConfig("dyna_maze", suite="grid", pixels=False))
    run = Experiment(world, DynaQConfig(n=50), seed=3)
    run.advance(episodes=50)
    run.episode_steps, run.q

An experiment can go on: `advance` again, and look at its values and its model in between.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agents.dyna.config import DynaConfig
from agents.dyna.kernels import CompiledLearner, choose, learn
from worldmodel.envs.table import WorldTable
from worldmodel.models.tables import compiled, random_state, uniform
from worldmodel.models.tabular import TabularConfig, TabularModel
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec

STEPS, EPISODES, STATE, LENGTH, PHASE = range(5)  # of `progress`; STATE is -1 before a reset
BUFFER = 1 << 14


@compiled
def pick(rng, cumulative):  # type: ignore[no-untyped-def]
    """An index drawn from cumulative probabilities; nothing is drawn where the first is certain."""
    if cumulative[0] >= 1.0:
        return 0
    draw, i = uniform(rng), 0
    while i < len(cumulative) - 1 and draw >= cumulative[i]:
        i += 1
    return i


@compiled
def _settle(progress, change):  # type: ignore[no-untyped-def]
    """The phase that belongs to the number of steps done."""
    while progress[PHASE] + 1 < len(change) and progress[STEPS] >= change[progress[PHASE] + 1]:
        progress[PHASE] += 1


@compiled
def live(w, chances, starts, m, t, k, rng, limit, until, progress, out):  # type: ignore[no-untyped-def]
    """Act and learn until so many steps or episodes are done (until[0], until[1]).

    w: the world; chances, starts: its cumulative probabilities. limit: steps after which an episode
    is cut off; 0 for none. progress: int64 [5]. out: rewards per step, steps per episode; written
    where they end.
    """
    rewards, lengths = out
    while progress[STEPS] < until[0] and progress[EPISODES] < until[1]:
        s, a = progress[STATE], np.int64(-1)
        first, reward, terminal, last = s < 0, 0.0, False, False
        if first or not w.at_episode:
            _settle(progress, w.change)
        phase = progress[PHASE]
        if first:
            s2 = np.int64(pick(rng, starts[phase]))
            progress[LENGTH] = 0
        else:
            a = choose(m, t, k, s, t.actions)
            i = pick(rng, chances[phase, s, a])
            s2, reward = np.int64(w.next[phase, s, a, i]), w.reward[phase, s, a, i]
            terminal = w.terminal[phase, s, a, i]
            rewards[progress[STEPS]] = reward
            progress[STEPS] += 1
            progress[LENGTH] += 1
            last = terminal or progress[LENGTH] == limit
        learn(m, t, k, first, s, a, reward, s2, terminal, last)
        progress[STATE] = s2
        if last:
            lengths[progress[EPISODES]] = progress[LENGTH]
            progress[EPISODES] += 1
            progress[STATE] = -1


class Experiment:
    """One agent in one world, from the first step on.

    time_limit: steps after which an episode is cut off (its value still bootstraps); 0 for none.
    The agent and the world draw from generators of their own, both made from `seed`.
    """

    def __init__(
        self, world: WorldTable, config: DynaConfig, seed: int, time_limit: int = 0
    ) -> None:
        self.world, self.config, self.time_limit = world, config, int(time_limit)
        spec = EnvSpec(
            {"state": ObsSpec("discrete", (world.states,), (world.states,))},
            ActionSpec("discrete", (world.actions,)),
        )
        unknown = "stay" if config.untried else "error"
        self.model = TabularModel(spec, TabularConfig(config.table, unknown))
        self.model.reserve(world.next.size)  # all that can ever be seen
        self.learner = CompiledLearner(config, self.model, [seed, 0])
        self._rng = random_state([seed, 1])
        self._chances = np.cumsum(world.probability, -1)
        self._starts = np.cumsum(world.start, -1)
        self._progress = np.zeros(5, np.int64)
        self._progress[STATE] = -1
        self._out = (np.zeros(BUFFER), np.zeros(BUFFER, np.int64))

    def advance(self, steps: int | None = None, episodes: int | None = None) -> Experiment:
        """Go on for so many more real steps or episodes, whichever ends first; the experiment.

        Raises ValueError where neither is given: a run by episodes alone ends only if every
        episode does.
        """
        if (steps is None and episodes is None) or min(steps or 0, episodes or 0) < 0:
            raise ValueError(
                f"advance takes steps, episodes or both, not negative; given steps={steps}, "
                f"episodes={episodes}."
            )
        endless = np.iinfo(np.int64).max
        stop_steps = endless if steps is None else self.steps + steps
        stop_episodes = endless if episodes is None else self.episodes + episodes
        while self.steps < stop_steps and self.episodes < stop_episodes:
            self._reserve()
            until = np.array([stop_steps, stop_episodes])
            until = np.minimum(until, [len(self._out[0]), len(self._out[1])])
            live(
                self.world, self._chances, self._starts, self.learner.memory, self.model.tables,
                self.learner.knobs, self._rng, self.time_limit, until, self._progress, self._out,
            )  # fmt: skip
        return self

    def _reserve(self) -> None:
        """Let what is written down grow, doubling where it is full."""
        done = (self.steps, self.episodes)
        self._out = tuple(  # type: ignore[assignment]
            np.concatenate([x, np.zeros_like(x)]) if n == len(x) else x
            for x, n in zip(self._out, done, strict=True)
        )

    @property
    def steps(self) -> int:
        """Real steps so far."""
        return int(self._progress[STEPS])

    @property
    def episodes(self) -> int:
        """Episodes that ended or were cut off."""
        return int(self._progress[EPISODES])

    @property
    def updates(self) -> int:
        """Planning updates so far."""
        return self.learner.updates

    @property
    def value_updates(self) -> int:
        """All changes of values so far: the planning updates, and one for each real step where
        the agent learns from it directly."""
        return self.updates + (self.steps if self.config.direct else 0)

    @property
    def calls(self) -> int:
        """Outcomes looked up in the model so far."""
        return self.learner.calls

    @property
    def phase(self) -> int:
        """Which of the world's phases it was in last."""
        return int(self._progress[PHASE])

    @property
    def rewards(self) -> np.ndarray:
        """Reward of every step, float64 [steps]."""
        return self._out[0][: self.steps].copy()

    @property
    def episode_steps(self) -> np.ndarray:
        """Length of every ended episode, int64 [episodes]."""
        return self._out[1][: self.episodes].copy()

    @property
    def q(self) -> np.ndarray:
        """The values that the policy follows, float64 [S, A]."""
        return self.learner.values()


@compiled
def _walk(after, reward, terminal, s, q, limit):  # type: ignore[no-untyped-def]
    for step in range(1, limit + 1):
        a = 0
        for i in range(1, q.shape[1]):
            if q[s, i] > q[s, a]:
                a = i
        if terminal[s, a]:
            return step if reward[s, a] > 0 else -1
        s = after[s, a]
    return -1


def greedy_steps(world: WorldTable, q: np.ndarray, limit: int, phase: int = 0) -> int:
    """Steps that the greedy policy of values [S, A] takes from the start to an end with a reward
    above 0; -1 where it needs more than `limit` or ends otherwise. Of equal values the first
    counts.

    Raises ValueError for a world that is not deterministic with one start.
    """
    start = world.start[phase]
    if (world.probability[phase, ..., 0] < 1 - 1e-12).any() or start.max() < 1:
        raise ValueError("Greedy steps can be counted only in a deterministic world with one start")
    after, reward, ends = (
        np.ascontiguousarray(x[phase, ..., 0]) for x in (world.next, world.reward, world.terminal)
    )
    values = np.ascontiguousarray(q, np.float64)
    return int(_walk(after, reward, ends, int(start.argmax()), values, int(limit)))


def episode_steps(
    world: WorldTable,
    config: DynaConfig,
    seeds: Sequence[int],
    episodes: int,
    max_steps: int = 10_000_000,
    time_limit: int = 0,
) -> np.ndarray:
    """Steps of every episode, int64 [R, episodes]; one run for each seed.

    Raises RuntimeError where a run does not end its episodes within max_steps.
    """
    runs = []
    for seed in seeds:
        run = Experiment(world, config, seed, time_limit).advance(max_steps, episodes)
        if run.episodes < episodes:
            raise RuntimeError(
                f"Seed {seed} ended {run.episodes} of {episodes} episodes in {max_steps:,} steps. "
                "Give a time_limit, or a policy that explores."
            )
        runs.append(run.episode_steps)
    return np.array(runs)


def cumulative_rewards(
    world: WorldTable, config: DynaConfig, seeds: Sequence[int], steps: int, time_limit: int = 0
) -> np.ndarray:
    """Sum of rewards up to and with every step, float64 [R, steps]; one run for each seed."""
    runs = [Experiment(world, config, seed, time_limit).advance(steps).rewards for seed in seeds]
    return np.cumsum(runs, -1)


def until_greedy(
    world: WorldTable,
    config: DynaConfig,
    seed: int,
    limit: int,
    every: int = 0,
    max_steps: int = 10_000_000,
    time_limit: int = 0,
) -> tuple[Experiment, bool]:
    """Learn until the greedy policy arrives within `limit` steps; the experiment, and whether it
    got there within max_steps.

    every: real steps between two looks; 0 looks at the end of each episode.
    """
    run = Experiment(world, config, seed, time_limit)
    while run.steps < max_steps:
        if every:
            run.advance(min(every, max_steps - run.steps))
        else:
            run.advance(max_steps - run.steps, 1)
        if greedy_steps(world, run.q, limit, run.phase) > 0:
            return run, True
    return run, False
