"""The Dyna family: equal to plain Python bit for bit, right in the limit, at home in the loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from agents.dyna import (
    Dyna2Config,
    DynaConfig,
    DynaQConfig,
    DynaQPlusConfig,
    PrioritizedSweepingConfig,
    QLearningConfig,
    exact,
)
from agents.dyna.experiment import (
    Experiment,
    cumulative_rewards,
    episode_steps,
    greedy_steps,
    until_greedy,
)
from agents.dyna.learner import Learner, SplitMix
from worldmodel.config import ConfigError
from worldmodel.envs.grid import GRIDS, Grid, GridWorld
from worldmodel.envs.table import WorldTable

MAZE = GridWorld(GRIDS["dyna_maze"]).table()
BRIDGE = GridWorld(GRIDS["slippery_grid"]).table()
BLOCKING = GridWorld(replace(GRIDS["blocking_maze"], change=(0, 150))).table()
SMALL = GridWorld(Grid((("S..", "...", "..G"),))).table()

VARIANTS: dict[str, tuple[DynaConfig, WorldTable]] = {
    "q_learning": (QLearningConfig(), MAZE),
    "dyna_q": (DynaQConfig(n=7), MAZE),
    "optimistic": (DynaQConfig(initial=1.0, alpha=0.5), MAZE),
    "softmax": (DynaQConfig(policy="softmax", temperature=0.05), MAZE),
    "forgetful": (DynaQConfig(), BRIDGE),
    "counts": (DynaQConfig(table="counts"), BRIDGE),
    "expected": (DynaQConfig(table="counts", backup="expected"), BRIDGE),
    "few_calls": (DynaQConfig(n=9, table="counts", backup="expected", max_calls=7), BRIDGE),
    "plus": (DynaQPlusConfig(n=10, alpha=1.0, kappa=1e-3), BLOCKING),
    "plus_trajectory": (DynaQPlusConfig(select="trajectory"), BLOCKING._replace(at_episode=True)),
    "trajectory": (DynaQConfig(select="trajectory"), MAZE),
    "trajectory_expected": (
        DynaQConfig(select="trajectory", backup="expected", table="counts"),
        BRIDGE,
    ),
    "dyna_2": (Dyna2Config(n=12), BLOCKING),
    "dyna_2_counts": (Dyna2Config(n=6, table="counts"), BRIDGE),
    "dyna_2_uniform": (Dyna2Config(n=6, select="uniform"), MAZE),
    "prioritized": (PrioritizedSweepingConfig(), MAZE),
    "prioritized_changing": (PrioritizedSweepingConfig(direct=True), BLOCKING),
    "prioritized_expected": (
        PrioritizedSweepingConfig(table="counts", backup="expected", max_calls=20),
        BRIDGE,
    ),
    "prioritized_sample": (PrioritizedSweepingConfig(table="counts", theta=1e-2), BRIDGE),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_plain_python_bit_for_bit(name: str) -> None:
    config, world = VARIANTS[name]
    steps, limit = 2000, 400
    run = Experiment(world, config, seed=5, time_limit=limit).advance(steps)
    plain, rewards, rng = live(world, config, 5, steps, limit)
    assert np.array_equal(run.q, plain.values())
    assert np.unique(run.q).size > 5  # something was learned
    assert np.array_equal(run.rewards, rewards)
    assert (run.updates, run.calls) == (plain.updates, plain.calls)
    assert (int(run.learner.memory.rng[0]), int(run._rng[0])) == (plain.rng.state, rng.state)
    for s, a in np.ndindex(plain.q.shape):
        found = plain.model.get((s, a), [])
        seen = sum(o.times for o in found)
        outcomes = [(o.times / seen, o.after, o.reward, o.terminal) for o in found]
        assert run.model.outcomes(s, a) == outcomes
    assert np.array_equal(run.model.tables.last, plain.last.ravel())


def live(
    world: WorldTable, config: DynaConfig, seed: int, steps: int, time_limit: int
) -> tuple[Learner, list[float], SplitMix]:
    """A plain learner after so many steps in a world, its rewards, and the world's generator."""
    learner = Learner(config, world.states, world.actions, [seed, 0])
    rng, rewards = SplitMix([seed, 1]), list[float]()
    state, length, phase = -1, 0, 0

    def pick(chances: np.ndarray) -> int:
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
            learner.learn(True, -1, -1, 0.0, state, False, False)
        action = learner.choose(state, list(learner.actions))
        place = (phase, state, action, pick(world.probability[phase, state, action]))
        after, reward = int(world.next[place]), float(world.reward[place])
        terminal = bool(world.terminal[place])
        rewards.append(reward)
        length += 1
        last = terminal or length == time_limit
        learner.learn(False, state, action, reward, after, terminal, last)
        state = -1 if last else after
        if len(rewards) == steps // 2:  # saved and loaded, it goes on as if nothing had happened
            saved = {name: array.copy() for name, array in learner.arrays().items()}
            learner = Learner(config, world.states, world.actions, 0)
            learner.load_arrays(saved)
    return learner, rewards, rng


def test_going_on_is_as_if_never_stopped() -> None:
    whole = Experiment(BRIDGE, Dyna2Config(n=5), 3, time_limit=40).advance(500)
    parts = Experiment(BRIDGE, Dyna2Config(n=5), 3, time_limit=40)
    for _ in range(4):
        parts.advance(100)
    parts.advance(episodes=1)
    parts.advance(500 - parts.steps)
    assert np.array_equal(whole.q, parts.q)
    assert np.array_equal(whole.episode_steps, parts.episode_steps)
    assert np.array_equal(whole.rewards, parts.rewards)


def test_the_first_episode_is_a_random_walk() -> None:
    """Until the goal is found, all values are 0 and ties are broken at random."""
    uniform = np.full((54, 4), 0.25)
    expected = exact.expected_steps(MAZE, uniform)
    assert expected == pytest.approx(868.7, abs=0.05)
    first = episode_steps(MAZE, DynaQConfig(n=5), range(400), 1)[:, 0]
    error = first.std(ddof=1) / len(first) ** 0.5
    assert abs(first.mean() - expected) < 3.5 * error
    assert error < 60


def test_expected_planning_is_value_iteration() -> None:
    config = DynaQConfig(
        n=1, epsilon=1.0, alpha=1.0, direct=False, table="counts", backup="expected"
    )
    run = Experiment(BRIDGE, config, 0).advance(300_000)
    run.learner.plan(200_000, 0)
    learned = _as_world(run)
    assert exact.model_error(run.model, learned) == pytest.approx(0, abs=1e-12)
    assert 0 < exact.model_error(run.model, BRIDGE) < 0.2
    assert np.allclose(run.q, exact.optimal_values(learned, config.gamma), atol=1e-9)
    truth = exact.optimal_values(BRIDGE, config.gamma)
    often = run.model.tables.seen.reshape(63, 4) > 1000
    assert often.sum() > 60
    assert np.abs(run.q - truth)[often].max() < 0.05


def _as_world(run: Experiment) -> WorldTable:
    """The learned table as a world; what was never tried leads nowhere, for ever worth 0."""
    from worldmodel.envs.table import from_outcomes

    def outcomes(s: int, a: int) -> list[Any]:
        return run.model.outcomes(s, a) or [(1.0, s, 0.0, True)]

    return from_outcomes(run.world.states, run.world.actions, outcomes, run.world.start[0])


@pytest.mark.parametrize("config", [
    DynaQConfig(n=50), DynaQConfig(n=50, select="trajectory"), PrioritizedSweepingConfig(n=50),
    Dyna2Config(n=50, alpha=0.5), DynaQPlusConfig(n=50, kappa=1e-6),
], ids=lambda c: f"{c.name}-{c.select}")  # fmt: skip
def test_finds_the_shortest_way(config: DynaConfig) -> None:
    run = Experiment(MAZE, replace(config, epsilon=0.5), 1).advance(episodes=150)
    assert greedy_steps(MAZE, run.learner.q, 100) == exact.shortest_path(MAZE) == 14


def test_deterministic_values_are_the_discounted_distances() -> None:
    """3 x 3 cells: the start is four steps from the goal, so worth gamma to the third."""
    run = Experiment(SMALL, DynaQConfig(n=30, alpha=1.0, gamma=0.5, epsilon=1.0), 0).advance(2000)
    distance = np.add.outer(np.arange(2, -1, -1), np.arange(2, -1, -1)).ravel()
    best = 0.5 ** (distance[:-1] - 1.0)
    assert np.allclose(run.q.max(-1)[:-1], best, atol=1e-12)
    assert (run.q[-1] == 0).all()  # nobody acts in the goal


def test_a_cut_off_bootstraps_and_an_end_does_not() -> None:
    """Two cells, each step worth 1: cut off after one step, it is worth 1 / (1 - gamma) all the
    same; ended there, 1."""
    loop = GridWorld(Grid((("S.G",),), step=1.0)).table()
    config = QLearningConfig(alpha=0.5, gamma=0.5, epsilon=1.0)
    cut = Experiment(loop, config, 0, time_limit=1).advance(400)
    assert cut.episodes == 400
    assert cut.q[0, 0] == pytest.approx(1 + 0.5 * max(cut.q[0]), abs=1e-6)
    ended = Experiment(loop, config, 0).advance(2000)
    assert ended.q[1, 1] == pytest.approx(1.0, abs=1e-9)


def test_the_transient_memory_is_forgotten() -> None:
    config = Dyna2Config(n=20, alpha=1e-9, transient_alpha=1.0)
    run = Experiment(SMALL, config, 2)
    run.advance(episodes=1)
    assert not run.learner.transient.any()
    run.advance(1)
    assert run.learner.transient.any()  # the next episode is searched before its first step
    assert np.allclose(run.learner.q, 0, atol=1e-6)


def test_a_bound_on_model_calls_holds() -> None:
    config = DynaQConfig(n=1000, table="counts", backup="expected", max_calls=30)
    run = Experiment(BRIDGE, config, 0).advance(500)
    assert 500 * 30 <= run.calls <= 500 * (30 + 2)  # an update under way is finished


def test_changing_worlds_change_when_they_should() -> None:
    """Blocked at step 150, the right end of the wall is closed, and the left one open."""
    run = Experiment(BLOCKING, QLearningConfig(epsilon=1.0), 0)
    assert run.advance(150).phase == 0
    assert run.advance(1).phase == 1
    late = Experiment(BLOCKING._replace(at_episode=True), QLearningConfig(epsilon=1.0), 0)
    late.advance(151)
    assert late.phase == 0
    late.advance(episodes=2)
    assert late.phase == 1


def test_the_book_in_short() -> None:
    """Planning pays; a change for the better is found with the bonus alone."""
    steps = {n: episode_steps(MAZE, DynaQConfig(n=n), range(12), 30) for n in (0, 5, 50)}
    later = {n: found[:, 4:].sum(1).mean() for n, found in steps.items()}
    assert later[0] > 1.5 * later[5] > 1.5 * later[50]
    shortcut = GridWorld(GRIDS["shortcut_maze"]).table()
    q = DynaQConfig(n=50, alpha=1.0)
    plus = DynaQPlusConfig(n=50, alpha=1.0, kappa=1e-3)
    ends = [cumulative_rewards(shortcut, c, range(5), 6000)[:, -1].mean() for c in (q, plus)]
    assert ends[1] > ends[0] + 30
    assert until_greedy(MAZE, PrioritizedSweepingConfig(), 0, 16)[0].value_updates < 3000


def test_exact_answers() -> None:
    assert exact.shortest_path(BRIDGE) == 8
    assert [exact.shortest_path(BLOCKING, phase) for phase in (0, 1)] == [10, 16]
    q = exact.optimal_values(MAZE, 0.95)
    assert q[18].max() == pytest.approx(0.95**13)
    policy = exact.greedy_policy(q)
    assert np.allclose(policy.sum(-1), 1)
    assert exact.expected_steps(MAZE, policy) == pytest.approx(14)
    assert exact.policy_values(MAZE, policy, 0.95)[18] == pytest.approx(0.95**13)
    assert exact.best_return(MAZE, 14) == 1
    assert exact.best_return(MAZE, 13) == 0
    stuck = np.zeros((54, 4))
    stuck[:, 0] = 1
    assert exact.expected_steps(MAZE, stuck) == np.inf
    assert greedy_steps(MAZE, stuck, 1000) == -1
    with pytest.raises(ValueError, match="deterministic world"):
        greedy_steps(BRIDGE, np.zeros((63, 4)), 10)


@pytest.mark.parametrize(("wrong", "message"), [
    ({"n": -1}, r"agent.n is -1; it must be at least 0"),
    ({"alpha": 0.0}, r"agent.alpha is 0.0; it must lie in \(0, 1\]"),
    ({"alpha": 1.5}, r"agent.alpha is 1.5"),
    ({"transient_alpha": float("nan")}, r"agent.transient_alpha is nan"),
    ({"gamma": 1.01}, r"agent.gamma is 1.01; it must lie in \[0, 1\]"),
    ({"epsilon": -0.1}, r"agent.epsilon is -0.1"),
    ({"kappa": -1.0}, r"agent.kappa is -1.0"),
    ({"temperature": 0.0}, r"agent.temperature is 0.0"),
    ({"initial": float("inf")}, r"agent.initial is inf"),
    ({"select": "prioritised"}, r"Unknown agent.select 'prioritised'. .*mean 'prioritized'"),
    ({"n": 0, "direct": False}, r"learn nothing"),
    ({"select": "prioritized", "kappa": 0.1}, r"never enter its queue"),
])  # fmt: skip
def test_impossible_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DynaConfig(**wrong)


def test_an_experiment_needs_an_end() -> None:
    with pytest.raises(ValueError, match="steps, episodes or both"):
        Experiment(MAZE, DynaQConfig(), 0).advance()
    stuck = QLearningConfig(epsilon=0.0, initial=0.0, alpha=1.0)
    walled = GridWorld(Grid((("S#G",),))).table()
    with pytest.raises(RuntimeError, match="ended 0 of 1 episodes in 100 steps"):
        episode_steps(walled, stuck, [0], 1, max_steps=100)
