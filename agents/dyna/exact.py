"""What a world's true table tells: its optimum, a policy's worth, a model's error."""

from __future__ import annotations

import numpy as np

from worldmodel.envs.table import WorldTable
from worldmodel.models.tabular import TabularModel


def optimal_values(
    world: WorldTable, gamma: float, phase: int = 0, tolerance: float = 1e-12
) -> np.ndarray:
    """The optimal action values, float64 [S, A], by value iteration until nothing changes by more
    than `tolerance`.

    Raises ValueError where they do not settle within 100,000 sweeps (gamma = 1 and a loop that
    pays).
    """
    q = np.zeros((world.states, world.actions))
    for _ in range(100_000):
        fresh = _backup(world, q.max(-1), gamma, phase)
        if np.abs(fresh - q).max() <= tolerance:
            return fresh
        q = fresh
    raise ValueError(f"Value iteration with gamma={gamma} does not settle; choose a smaller gamma.")


def best_return(world: WorldTable, steps: int, phase: int = 0) -> float:
    """The greatest expected sum of rewards within so many steps of an episode's start."""
    values = np.zeros(world.states)
    for _ in range(steps):
        values = _backup(world, values, 1.0, phase).max(-1)
    return float(world.start[phase] @ values)


def policy_values(
    world: WorldTable, policy: np.ndarray, gamma: float, phase: int = 0
) -> np.ndarray:
    """The expected discounted return of a policy [S, A] (probabilities) from each state, [S].

    With gamma = 1 it is minus infinity or infinity where an episode need not end.
    """
    expected = (world.probability[phase] * world.reward[phase]).sum(-1)
    return _solve(world, policy, (policy * expected).sum(-1), gamma, phase)


def expected_steps(world: WorldTable, policy: np.ndarray, phase: int = 0) -> float:
    """The expected length of an episode under a policy [S, A] (probabilities); infinite where it
    need not end."""
    lengths = _solve(world, policy, np.ones(world.states), 1.0, phase)
    begins = world.start[phase] > 0
    return float(world.start[phase][begins] @ lengths[begins])


def greedy_policy(q: np.ndarray) -> np.ndarray:
    """The policy [S, A] that shares each state's probability among its best actions."""
    best = q == q.max(-1, keepdims=True)
    return best / best.sum(-1, keepdims=True)


def shortest_path(world: WorldTable, phase: int = 0) -> int:
    """The fewest steps from a start to an end that pays more than 0, if every outcome falls as
    wished; -1 where there is none."""
    possible = world.probability[phase] > 0
    ends, pays = world.terminal[phase], world.reward[phase] > 0
    reached = world.start[phase] > 0
    for step in range(1, world.states + 1):
        from_here = possible & reached[:, None, None]
        if (from_here & ends & pays).any():
            return step
        reached = reached.copy()
        reached[world.next[phase][from_here & ~ends]] = True
    return -1


def model_error(model: TabularModel, world: WorldTable, phase: int = 0) -> float:
    """How wrong a learned table is: the total variation distance (0 right, 1 all wrong) between
    what it and the world say of next state, reward and end, mean over the pairs that it knows."""
    errors = []
    for p in np.flatnonzero(model.tables.seen):
        s, a = divmod(int(p), model.actions)
        truth: dict[tuple[int, float, bool], float] = {}
        rows = (world.next, world.reward, world.terminal, world.probability)
        for after, reward, ends, chance in zip(*(x[phase, s, a] for x in rows), strict=True):
            outcome = (int(after), float(reward), bool(ends))
            truth[outcome] = truth.get(outcome, 0.0) + float(chance)
        for chance, after, reward, ends in model.outcomes(s, a):
            truth[after, reward, ends] = truth.get((after, reward, ends), 0.0) - chance
        errors.append(sum(map(abs, truth.values())) / 2)
    return float(np.mean(errors)) if errors else float("nan")


def _backup(world: WorldTable, values: np.ndarray, gamma: float, phase: int) -> np.ndarray:
    """[S, A] expected reward and discounted value after one step."""
    future = np.where(world.terminal[phase], 0.0, values[world.next[phase]])
    return (world.probability[phase] * (world.reward[phase] + gamma * future)).sum(-1)


def _solve(
    world: WorldTable, policy: np.ndarray, paid: np.ndarray, gamma: float, phase: int
) -> np.ndarray:
    """x = paid + gamma P x over the transitions P of a policy, [S]."""
    flow = policy[..., None] * np.where(world.terminal[phase], 0.0, world.probability[phase])
    matrix = np.zeros((world.states, world.states))
    rows = np.broadcast_to(np.arange(world.states)[:, None, None], flow.shape)
    np.add.at(matrix, (rows, world.next[phase]), flow)
    ends = np.ones(world.states, bool)
    if gamma == 1:
        ends = _surely_ends(matrix)
    values = np.where(paid == 0, 0.0, np.copysign(np.inf, paid))
    inside = matrix[np.ix_(ends, ends)]
    values[ends] = np.linalg.solve(np.eye(int(ends.sum())) - gamma * inside, paid[ends])
    return values


def _surely_ends(matrix: np.ndarray) -> np.ndarray:
    """[S] states from which an episode ends with probability 1."""
    may_end = matrix.sum(-1) < 1 - 1e-12
    for _ in range(len(matrix)):
        more = may_end | ((matrix > 0) & may_end).any(-1)
        if (more == may_end).all():
            break
        may_end = more
    surely = may_end
    for _ in range(len(matrix)):
        less = surely & ~((matrix > 0) & ~surely).any(-1)
        if (less == surely).all():
            break
        surely = less
    return surely
