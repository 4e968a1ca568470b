"""The batched tree: equal to a plain search, its tables by hand, masks, ends and two players."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.base import Evaluation
from agents.planning import planner_class
from agents.planning import tree_search as search
from agents.planning.base import BoundsConfig
from agents.planning.cache import CacheConfig
from agents.planning.mcts import MCTS
from agents.planning.tree_config import MCTSConfig
from agents.planning.tree_growth import Found
from agents.planning.tree_rules import considered_visits
from worldmodel.config import ConfigError
from worldmodel.distributions import OneHot, TanhNormal
from worldmodel.types import ActionSpec, Prediction

STATES, ACTIONS = 9, 3
SPEC = ActionSpec("discrete", (ACTIONS,))


class Number(NamedTuple):
    """x: [B], which state."""

    x: Tensor


class Graph:
    """A random deterministic world of a few states, and what an agent thinks of them."""

    discount, deterministic = 0.9, True

    def __init__(self, seed: int = 0, alternates: bool = False, ends: bool = True) -> None:
        rng = np.random.default_rng(seed)
        self.alternates = alternates
        self.next = rng.integers(STATES, size=(STATES, ACTIONS))
        self.reward = rng.normal(size=(STATES, ACTIONS)).astype(np.float32)
        self.cont = (rng.random((STATES, ACTIONS)) > (0.2 if ends else -1)).astype(np.float32)
        self.value = rng.normal(size=STATES).astype(np.float32)
        self.logits = rng.normal(size=(STATES, ACTIONS)).astype(np.float32)
        self.calls = 0

    def initial(self, batch_size: int) -> Number:
        return Number(torch.zeros(batch_size, dtype=torch.long))

    def observe(self, state: Number, obs: Any, action: Any, is_first: Any) -> Number:
        return state

    def step(self, state: Number, action: Tensor) -> Prediction[Number]:
        self.calls += 1
        s, a = state.x.numpy(), action.argmax(-1).numpy()
        after, reward, cont = (table[s, a] for table in (self.next, self.reward, self.cont))
        return Prediction(Number(torch.tensor(after)), torch.tensor(reward), torch.tensor(cont))

    def evaluate(self, state: Number) -> Evaluation:
        s = state.x.numpy()
        return Evaluation(OneHot(torch.tensor(self.logits[s])), torch.tensor(self.value[s]))


class Node:
    """Of the plain search: what a node was given, and its edges' counts and sums."""

    def __init__(self, world: Graph, state: int) -> None:
        self.state, self.raw = state, float(world.value[state])
        logits = world.logits[state].astype(float)
        self.logits = logits - math.log(np.exp(logits).sum())
        self.n, self.w = np.zeros(ACTIONS), np.zeros(ACTIONS)
        self.children: dict[int, tuple[Node, float, float]] = {}  # with reward and discount

    @property
    def q(self) -> np.ndarray:
        return self.w / np.maximum(self.n, 1)

    @property
    def value(self) -> float:
        return (self.raw + self.w.sum()) / (1 + self.n.sum())


class Plain:
    """One root, as the papers have it."""

    def __init__(self, world: Graph, state: int, config: MCTSConfig, gumbel: np.ndarray) -> None:
        self.world, self.config, self.gumbel = world, config, gumbel
        self.root = Node(world, state)
        self.nodes = [self.root]
        self.seen: list[float] = []  # every Q that a backup made
        self.visits = considered_visits(config.considered, config.simulations)
        self.scale = config.scale or ("node" if config.rule == "gumbel" else "tree")
        for i in range(config.simulations):
            self.simulate(i)

    def span(self) -> tuple[float, float]:
        if self.scale == "bounds":
            return self.config.value_range[0], self.config.value_range[1]
        values = self.seen
        if self.scale == "expanded":
            values = [node.q[a] for node in self.nodes for a in range(ACTIONS) if node.n[a]]
        if not values:
            return 0.0, 0.0
        low, high = min(values), max(values)
        return low, max(high, low + 0.01) if self.scale == "expanded" else high

    def scaled(self, node: Node, values: np.ndarray, low: float, high: float) -> np.ndarray:
        out = (values - low) / (high - low) if high > low else np.zeros(ACTIONS)
        clips = self.scale in ("expanded", "bounds") or self.config.rule == "gumbel"
        return np.clip(out, 0, 1) if clips else out

    def sigma(self, node: Node) -> np.ndarray:
        mixed, tried = node.raw, node.n > 0
        if tried.any():
            p = np.exp(node.logits)
            mean = (p * node.q)[tried].sum() / p[tried].sum()
            mixed = (node.raw + node.n.sum() * mean) / (1 + node.n.sum())
        q = np.where(tried, node.q, mixed)
        if self.scale == "node":
            q = (q - q.min()) / max(q.max() - q.min(), 1e-8)
        else:
            q = self.scaled(node, q, *self.span())
        return (self.config.visit_scale + node.n.max()) * self.config.value_scale * q

    def choose(self, node: Node, mean: float, number: int) -> int:
        c = self.config
        if c.rule == "gumbel":
            scores = node.logits + self.sigma(node)
            if node is self.root:
                scores = scores + self.gumbel
                considered = self.visits[min(c.considered, ACTIONS)][number]
                return int(np.where(node.n == considered, scores, -np.inf).argmax())
            p = np.exp(scores - scores.max())
            return int((p / p.sum() - node.n / (1 + node.n.sum())).argmax())
        if self.scale == "node":
            values = np.append(node.q[node.n > 0], node.value)
            low, high = values.min(), max(values.max(), values.min() + 1e-8)
        else:
            low, high = self.span()
        untried = mean if self.scale == "expanded" else low
        q = self.scaled(node, np.where(node.n > 0, node.q, untried), low, high)
        visits = 1 + node.n.sum()
        factor = 1.25 + math.log((visits + c.c2 + 1) / c.c2)
        return int((q + np.exp(node.logits) * math.sqrt(visits) / (1 + node.n) * factor).argmax())

    def simulate(self, number: int) -> None:
        node, path, mean, discount = self.root, [], 0.0, 1.0
        while True:
            if path and discount == 0:
                break
            tried = node.q[node.n > 0]
            root = node is self.root
            mean = (
                (tried.mean() if len(tried) else 0.0)
                if root
                else (mean + tried.sum()) / (1 + len(tried))
            )
            a = self.choose(node, mean, number)
            if a not in node.children:
                after = Node(self.world, int(self.world.next[node.state, a]))
                sign = -1 if self.world.alternates else 1
                d = sign * self.world.discount * float(self.world.cont[node.state, a])
                node.children[a] = (after, float(self.world.reward[node.state, a]), d)
                self.nodes.append(after)
                path.append((node, a))
                node = after
                break
            path.append((node, a))
            node, _, discount = node.children[a]
        g = node.raw
        for above, a in reversed(path):
            _, reward, d = above.children[a]
            g = reward + d * g
            above.n[a] += 1
            above.w[a] += g
            self.seen.append(above.q[a])


def searched(world: Any, states: list[int], mask: Tensor | None = None, **settings: Any) -> Found:
    planner = MCTS(SPEC, MCTSConfig(**{"rule": "puct", "simulations": 40, **settings}), 0)
    return planner.search(world, Number(torch.tensor(states)), world.evaluate, mask)


@pytest.mark.parametrize("alternates", [False, True])
@pytest.mark.parametrize(
    ("rule", "scale"),
    [
        ("puct", "tree"), ("puct", "node"), ("puct", "expanded"), ("puct", "bounds"),
        ("gumbel", None), ("gumbel", "expanded"), ("gumbel", "bounds"),
    ],
)  # fmt: skip
def test_a_batch_of_trees_is_as_many_plain_searches(
    rule: str, scale: str | None, alternates: bool
) -> None:
    """Visits, values and policies, of nine roots at once; some ways end."""
    world, states = Graph(3, alternates), list(range(STATES))
    settings = {"rule": rule, "scale": scale, "value_range": [-4.0, 4.0], "considered": 2}
    found = searched(world, states, **settings)
    config = MCTSConfig(rule=rule, simulations=40, considered=2, scale=scale, value_range=[-4, 4])
    assert world.calls == 40  # one of the world for all nine leaves
    for b, state in enumerate(states):
        plain = Plain(world, state, config, found.trees.gumbel[b])
        assert found.trees.visits[b, 0].tolist() == plain.root.n.tolist()
        assert found.value[b] == pytest.approx(plain.root.value, abs=1e-5)
        if rule == "gumbel":
            scores = plain.root.logits + plain.sigma(plain.root)
            target = np.exp(scores - scores.max())
            np.testing.assert_allclose(found.policy[b], target / target.sum(), atol=1e-5)
            most = plain.root.n == plain.root.n.max()
            best = np.where(most, scores + found.trees.gumbel[b], -np.inf).argmax()
        else:
            np.testing.assert_allclose(found.policy[b], plain.root.n / 40)
            best = plain.root.n.argmax()
        assert plain.root.n[found.chosen[b]] == plain.root.n[best]


def test_sequential_halving_by_hand() -> None:
    """Each row: the visits that the action taken at simulation i had before."""
    assert considered_visits(1, 4)[1].tolist() == [0, 1, 2, 3]
    assert considered_visits(2, 5)[2].tolist() == [0, 0, 1, 1, 2]
    assert considered_visits(3, 6)[3].tolist() == [0, 0, 0, 1, 1, 2]
    assert considered_visits(4, 8)[4].tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    halving = considered_visits(16, 32)[16]  # floor(32 / (4 k)) rounds: 1 of 16, 1 of 8, 2 of 4
    assert halving.tolist() == [0] * 16 + [1] * 8 + [2] * 4 + [3] * 4
    for m in range(1, 20):  # no visit is asked for that was not made
        counts = [0] * m
        for wanted in considered_visits(19, 50)[m]:
            counts[counts.index(wanted)] += 1


def test_completed_values_by_hand() -> None:
    """raw 1, P = (1/2, 1/4, 1/4); 3 visits of Q 2, 1 of Q -1: the mean of the tried is 1, the mixed
    value (1 + 4) / 5 = 1. In [0, 1]: 1, 0, 2/3; sigma = (50 + 3) / 10 of that."""
    trees = search.make_trees(1, 2, 3, 1, np.random.default_rng(0))
    trees.logits[0, 0] = np.log([0.5, 0.25, 0.25])
    trees.raw[0, 0], trees.known[0] = 1.0, 1
    trees.visits[0, 0], trees.total[0, 0] = [3, 1, 0], [6.0, -1.0, 0.0]
    policy, chosen = search.improved_policies(trees, MCTSConfig(rule="gumbel").table())
    scores = np.log([0.5, 0.25, 0.25]) + 5.3 * np.array([1, 0, 2 / 3])
    np.testing.assert_allclose(policy[0], np.exp(scores) / np.exp(scores).sum(), rtol=1e-12)
    assert chosen.tolist() == [0]
    assert search.root_values(trees)[0] == pytest.approx((1 + 6 - 1) / 5)


def test_backup_by_hand() -> None:
    """Two steps of rewards 1 and 2 with discount 1/2, a leaf of value 4: G = 1 + (2 + 4 / 2) / 2;
    from the side of another player at each step, 1 - (2 - 4 / 2) / 2."""
    for sign, expected in ((1.0, 3.0), (-1.0, 1.0)):
        trees = search.make_trees(1, 3, 2, 1, np.random.default_rng(0))
        leaf, edge, new = np.zeros((3, 1), np.int64)
        keys, key = np.zeros((1, 3), np.uint64), np.zeros(1, np.uint64)
        rule = MCTSConfig(rule="puct").table()
        for reward in (1.0, 2.0):
            given = np.array([reward], np.float32), np.ones(1, np.float32), sign * 0.5
            assert search.expand(trees, leaf, edge, keys, key, *given, new) == 0
            leaf[0] = new[0]
        search.backup(trees, rule, new, np.array([4.0], np.float32), False)
        assert trees.total[0, 0].tolist() == [expected, 0.0]
        assert trees.total[0, 1].tolist() == [2.0 + sign * 2.0, 0.0]
        assert trees.visits[0, :2].tolist() == [[1, 0], [1, 0]]


class Nim:
    """Sticks, of which each player takes one or two in turn; who takes the last one has won."""

    discount, deterministic, alternates = 1.0, True, True

    def step(self, state: Number, action: Tensor) -> Prediction[Number]:
        left = (state.x - action.argmax(-1) - 1).clamp_min(0)
        return Prediction(Number(left), (left == 0).float(), (left > 0).float())


@pytest.mark.parametrize("cached", [False, True])
def test_rollouts_know_that_the_other_player_earns_for_himself(cached: bool) -> None:
    sticks = torch.tensor([2, 4, 5, 7, 8])  # one can leave three or six, and win
    settings = MCTSConfig(simulations=200, rollout=10, cache=CacheConfig(size=1000 * cached))
    taken = torch.zeros(len(sticks), 2)
    for seed in range(5):
        planner = MCTS(ActionSpec("discrete", (2,)), settings, seed)
        taken += planner.plan(Nim(), Number(sticks)).action
    assert taken.argmax(-1).tolist() == [int(n % 3) - 1 for n in sticks]
    assert taken.amax(-1).min() >= 4


def test_a_sequence_is_no_plan_for_two_players() -> None:
    for name in ("icem", "cem", "mppi", "shooting"):
        planner = planner_class(name)(ActionSpec("discrete", (2,)), planner_class(name).Config(), 0)
        with pytest.raises(ConfigError, match=f"planner={name} .* the other player's. Use .*mcts"):
            planner.plan(Nim(), Number(torch.tensor([4])))


@pytest.mark.parametrize("rule", ["puct", "gumbel", "ucb1"])
def test_what_a_mask_forbids_is_never_tried(rule: str) -> None:
    mask = torch.tensor([[1.0, 0, 1], [0, 1, 0], [0, 0, 0]])  # the last: nothing is said
    settings = {"dirichlet": 0.3 if rule == "puct" else 0.0, "temperature": 1.0}
    found = searched(Graph(), [0, 1, 2], mask, rule=rule, **settings)
    visits = found.trees.visits[:, 0]
    assert (visits[:2][mask[:2].numpy() == 0] == 0).all()
    assert (found.policy[:2][mask[:2].numpy() == 0] == 0).all()
    assert visits.sum(-1).tolist() == [40, 40, 40]
    assert found.policy.sum(-1) == pytest.approx(1.0)
    assert mask[0, found.chosen[0]] == mask[1, found.chosen[1]] == 1
    assert visits[2].min() > 0 or rule != "ucb1"


def test_noise_at_the_root_is_a_quarter_of_its_prior() -> None:
    world = Graph()
    plain = searched(world, [0, 1]).trees.prior[:, 0]
    noisy = searched(world, [0, 1], dirichlet=0.3).trees
    share = (noisy.prior[:, 0] - 0.75 * plain) / 0.25
    assert share.min() >= 0
    assert share.sum(-1) == pytest.approx(1.0)
    assert not np.allclose(share[0], share[1])
    inside = noisy.prior[:, 1]  # below the root there is none
    assert np.allclose(inside, np.exp(noisy.logits[:, 1]), atol=1e-6)


def test_temperature_flattens_what_is_done() -> None:
    """100 equal roots: at T = 0 all do the same, at T = 1 as often as it was visited."""
    same = searched(Graph(), [4] * 100)
    assert len(set(same.chosen)) == 1
    drawn = searched(Graph(), [4] * 100, temperature=1.0)
    share = np.bincount(drawn.chosen, minlength=3) / 100
    np.testing.assert_allclose(share, drawn.policy[0], atol=0.17)


class Square:
    """One step worth 1 - (a - 0.4)^2, after which all ends."""

    discount, deterministic = 1.0, True

    def initial(self, batch_size: int) -> Number:
        return Number(torch.zeros(batch_size))

    def observe(self, state: Number, obs: Any, action: Any, is_first: Any) -> Number:
        return state

    def step(self, state: Number, action: Tensor) -> Prediction[Number]:
        reward = 1 - (action[:, 0] - 0.4).square()
        return Prediction(state, reward, torch.zeros_like(reward))

    def evaluate(self, state: Number) -> Evaluation:
        mean = torch.zeros(len(state.x), 1)
        return Evaluation(TanhNormal(mean, mean), torch.zeros(len(state.x)))


def test_drawn_actions_of_a_continuous_world() -> None:
    one, state = ActionSpec("continuous", (1,)), Number(torch.zeros(6))
    world = Square()
    # puct explores little where a prior is spread over many actions, unless c is large.
    for rule in ("puct", "gumbel"):
        drawn: dict[str, int] = {"samples": 4, "root_samples": 16, "wide_samples": 12}
        config = MCTSConfig(rule=rule, simulations=64, c=10.0, gumbel=0.0, **drawn)
        found = MCTS(one, config, 0).search(world, state, world.evaluate)
        assert found.options.shape == (6, 16, 1)
        assert found.options.abs().max() <= 1
        taken = found.options[torch.arange(6), torch.from_numpy(found.chosen)]
        assert torch.equal(found.action, taken)
        far, taken_far = (found.options - 0.4).abs(), (found.action - 0.4).abs()
        assert (taken_far - far.amin(1)).max() < 0.2  # near the best that was drawn
    # Without a policy they are uniform, and rollouts say what they are worth.
    config = MCTSConfig(simulations=64, samples=16, rollout=1)
    assert (MCTS(one, config, 0).search(world, state).action - 0.4).abs().mean() < 0.35
    with pytest.raises(ConfigError, match=r"planner.samples=20"):
        MCTS(one, MCTSConfig(), 0)
    with pytest.raises(ConfigError, match="wide_samples is 5, of 4"):
        MCTSConfig(samples=4, wide_samples=5)
    for rule in ("ucb1", "gumbel"):
        with pytest.raises(ConfigError, match=f"rule={rule} has none. Leave it out"):
            MCTS(ActionSpec("discrete", (3,)), MCTSConfig(rule=rule, dirichlet=0.3), 0)
    for wrong in ({"root_samples": 4}, {"samples": 4, "root_samples": 2}):
        with pytest.raises(ConfigError, match=r"root_samples is . with samples=.; allowed"):
            MCTSConfig(**wrong)
    with pytest.raises(ConfigError, match="one simulation takes 21"):
        MCTSConfig(rule="ucb1", bounds=BoundsConfig(budget=4))
    assert MCTSConfig(bounds=BoundsConfig(budget=4)).rule == "auto"  # with a policy, 4 simulations


def test_an_action_is_closed_where_the_world_breaks() -> None:
    class Broken(Graph):
        def step(self, state: Number, action: Tensor) -> Prediction[Number]:
            found = super().step(state, action)
            return found._replace(reward=found.reward.masked_fill(action[:, 1] > 0, torch.nan))

    for rule in ("puct", "gumbel", "ucb1"):
        found = searched(Broken(), [0, 1, 2], rule=rule)
        assert found.stats["nonfinite"] > 0
        assert (found.chosen != 1).all()
        assert np.isfinite(found.value).all()
