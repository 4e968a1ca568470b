"""Monte-Carlo tree search over discrete actions: UCB1 with rollouts, or the policy's prior (pUCT).

Kocsis and Szepesvari, "Bandit based Monte-Carlo planning" (2006); Schrittwieser et al., MuZero
(2020). All roots of a batch descend together; one call of the world serves all their leaves.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.planning import tree_search as search
from agents.planning.base import BoundsConfig, Evaluate, Meter, Plan, Planner, check_kind
from agents.planning.imagine import Imagination
from agents.planning.space import ActionSpace
from worldmodel import tree
from worldmodel.config import ConfigError, check_ranges, unknown
from worldmodel.types import ActionSpec

RULES = {"ucb1": search.UCB1, "puct": search.PUCT}
MOST_ACTIONS = 4096  # joint actions of several factors


@dataclass
class MCTSConfig:
    """simulations: leaves that are looked at. rule: ucb1 | puct (the agent's policy says where to
    look). c: weight of exploration, with returns scaled to [0, 1] by the tree's own range; null:
    sqrt(2) for ucb1, 1.25 for puct. c2: of puct, the visits at which exploration begins to weigh
    more. rollout: steps with random actions that value a leaf; 0: none. value: the agent's value
    counts where a rollout ends, where it has one. depth: of a leaf at most. outcomes: of an action
    in a world that draws them, at most. temperature: of acting; 0 takes the most visited action.
    """

    name: str = "mcts"
    simulations: int = 50
    rule: str = "ucb1"
    c: float | None = None
    c2: float = 19652.0
    rollout: int = 20
    value: bool = True
    depth: int = 100
    outcomes: int = 8
    temperature: float = 0.0
    bounds: BoundsConfig = field(default_factory=BoundsConfig)

    def __post_init__(self) -> None:
        check_ranges(self, {
            "simulations": (1, 1 << 20), "c": (0, 1e6), "c2": (1, 1e12), "rollout": (0, 10_000),
            "depth": (1, 1 << 20), "outcomes": (1, 256), "temperature": (0, 1e3),
        })  # fmt: skip
        if self.rule not in RULES:
            raise ConfigError(unknown("rule", self.rule, RULES))
        budget, one = self.bounds.budget, 1 + self.rollout
        if 0 < budget < one:
            raise ConfigError(
                f"bounds.budget is {budget} model steps; one simulation takes {one} (rollout="
                f"{self.rollout}, and 1). Allowed: {one} or more, or 0."
            )
        if self.bounds.uncertainty_limit is not None:
            raise ConfigError("bounds.uncertainty_limit belongs to planners of sequences; null it.")


class MCTS(Planner):
    """The most visited action of the root."""

    Config = MCTSConfig
    config: MCTSConfig

    def __init__(self, action: ActionSpec, *args: Any, **options: Any) -> None:
        check_kind("mcts", action, "discrete", "icem, cem, mppi or shooting")
        super().__init__(action, *args, **options)
        count = math.prod(action.sizes)
        if count > MOST_ACTIONS:
            raise ConfigError(
                f"mcts searches at most {MOST_ACTIONS:,} joint actions; this environment has "
                f"{count:,} (factors {list(action.sizes)}). Choose planner=icem, cem or mppi."
            )
        self.space = ActionSpace(action)
        joint = list(itertools.product(*(range(n) for n in action.sizes)))
        parts = [
            torch.nn.functional.one_hot(torch.tensor([row[i] for row in joint]), n)
            for i, n in enumerate(action.sizes)
        ]
        self.encoded = torch.cat(parts, -1).float().to(self.device)  # [joint, A]

    @torch.no_grad()
    def plan(
        self,
        world: Any,
        state: Any,
        evaluate: Evaluate | None = None,
        warm: Any = None,
        is_first: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Plan:
        """See `Planner.plan`; a tree does not outlive its step, so that `warm` is None."""
        meter = Meter(self.config.bounds, self.clock)
        dreams = Imagination(
            world,
            state,
            evaluate,
            self.space,
            self.config.bounds,
            meter,
            bootstrap=self.config.value,
        )
        with self.stream:
            found = Search(self, dreams, state, mask)
            while found.done < self.config.simulations and found.simulate():
                pass
            action, trees = found.act(), found.trees
        visits = np.maximum(trees.visits[:, 0].sum(-1), 1)
        stats = {
            "model_steps": meter.rows, "simulations": found.done, "ms": meter.milliseconds,
            "nonfinite": dreams.nonfinite, "depth": float(found.deepest.mean()),
            "return": float((trees.total[:, 0].sum(-1) / visits).mean()),
        }  # fmt: skip
        return Plan(action, None, stats)


class Search:
    """The trees of one decision, and what they know of the world."""

    def __init__(self, planner: MCTS, dreams: Imagination, state: Any, mask: Tensor | None) -> None:
        self.planner, self.dreams = planner, dreams
        c, batch = planner.config, tree.batch_size(state)
        self.outcomes = 1 if dreams.repeats else c.outcomes
        self.trees = search.make_trees(
            batch, c.simulations + 1, len(planner.encoded), self.outcomes,
            np.random.default_rng(int(torch.randint(1 << 62, ()))),
        )  # fmt: skip
        self.rows = torch.arange(batch, device=planner.device)
        # States of all nodes, [B, M, ...].
        self.states = tree.map(
            lambda x: x.unsqueeze(1).repeat_interleave(c.simulations + 1, 1), state
        )
        self.keys = np.zeros((batch, c.simulations + 1), np.uint64)
        self.done = 0
        self.deepest = np.zeros(batch, np.int32)
        self._leaf, self._edge, self._depth, self._new = np.zeros((4, batch), np.int32)
        self._open(np.zeros(batch, np.int32), state, mask)

    def simulate(self) -> bool:
        """Look at one leaf of every tree; False where a bound came first."""
        planner, trees, c = self.planner, self.trees, self.planner.config
        meter = self.dreams.meter
        if meter.affords(1 + c.rollout) < 1 or meter.late():
            return False
        rule = RULES[c.rule]
        c1 = c.c if c.c is not None else (math.sqrt(2.0) if rule == search.UCB1 else 1.25)
        search.descend(trees, rule, c1, c.c2, c.depth, self._leaf, self._edge, self._depth)
        np.maximum(self.deepest, self._depth + 1, out=self.deepest)
        leaf = torch.from_numpy(self._leaf.astype(np.int64)).to(planner.device)
        edge = torch.from_numpy(np.maximum(self._edge, 0).astype(np.int64)).to(planner.device)
        before = tree.map(lambda x: x[self.rows, leaf], self.states)
        state, reward, cont = self.dreams.advance(before, planner.encoded[edge], 1)
        self._attach(state, reward, cont)
        again = torch.from_numpy(self._edge == search.NONE).to(planner.device)
        state = tree.where(again, before, state)
        self._open(self._new, state, None)
        node = np.where(self._edge == search.NONE, self._leaf, self._new).astype(np.int32)
        value = self._value(state)
        if value is None:
            return False
        search.backup(trees, node, value.double().cpu().numpy())
        self.done += 1
        return True

    def _attach(self, state: Any, reward: Tensor, cont: Tensor) -> None:
        """New nodes for what the world answered."""
        discount = (cont * self.dreams.world.discount).double().cpu().numpy()
        rewards = reward.double().cpu().numpy()
        bad = ~(np.isfinite(rewards) & np.isfinite(discount))
        self.dreams.nonfinite += int(bad.sum())
        keys = (
            _keys((state, reward, cont)) if self.outcomes > 1 else np.zeros(len(rewards), np.uint64)
        )
        search.expand(
            self.trees, self._leaf, self._edge, self.keys, keys, np.where(bad, -1e30, rewards),
            np.where(bad, 0.0, discount), self._new,
        )  # fmt: skip

    def _open(self, node: np.ndarray, state: Any, mask: Tensor | None) -> None:
        """Store the states of nodes [B], with the actions that they allow and their priors."""
        planner = self.planner
        there = node != search.NONE
        where = torch.from_numpy(np.maximum(node, 0).astype(np.int64)).to(planner.device)
        keep = torch.from_numpy(there).to(planner.device)

        def put(store: Tensor, new: Tensor) -> Tensor:
            store[self.rows[keep], where[keep]] = new[keep]
            return store

        tree.map(put, self.states, state)
        roots = np.nonzero(there)[0]
        allowed = self.dreams.mask(state) if mask is None else mask
        if allowed is not None:
            # A joint action is allowed where each of its factors is.
            legal = (planner.encoded @ (allowed <= 0.5).float().T == 0).T.cpu().numpy()
            legal |= ~legal.any(-1, keepdims=True)
            self.trees.legal[roots, node[roots]] = legal[roots]
        if planner.config.rule == "puct":
            prior = None if self.dreams.evaluate is None else self.dreams.evaluate(state).prior
            if prior is None:
                raise ConfigError(
                    "rule=puct needs an agent with a policy over the states of its world; there is "
                    "none here. Set rule=ucb1."
                )
            log_p = torch.stack(
                [prior.log_prob(row.expand(len(node), -1)) for row in planner.encoded]
            )
            self.trees.prior[roots, node[roots]] = log_p.T.softmax(-1).double().cpu().numpy()[roots]

    def _value(self, state: Any) -> Tensor | None:
        """What states are worth: a rollout with random actions, and the agent's value after it."""
        c = self.planner.config
        if not c.rollout and not self.dreams.bootstrap:
            raise ConfigError(
                "mcts with rollout=0 needs an agent that gives states a value (value=true). "
                "Set rollout to a number of steps."
            )
        shape = (len(self.rows), 1, c.rollout, self.planner.action.size)
        if not c.rollout:
            return self.dreams.value(state)
        raw = self.planner.space.spread(torch.randn(shape, device=self.planner.device))
        scored = self.dreams.score(state, raw)
        if scored is None:
            return None
        returns = scored.returns[:, 0]
        return returns.masked_fill(~returns.isfinite(), -1e30)

    def act(self) -> Tensor:
        """The most visited action of each root, or one drawn by visits^(1/T)."""
        roots = (x[:, 0] for x in (self.trees.visits, self.trees.total, self.trees.legal))
        visits, total, legal = (torch.from_numpy(x).to(self.planner.device) for x in roots)
        if self.planner.config.temperature > 0:
            weights = visits.clamp_min(1e-9).log() / self.planner.config.temperature
            weights = weights.masked_fill(~legal, -torch.inf).softmax(-1)
            chosen = torch.multinomial(weights, 1).squeeze(-1)
        else:
            quality = torch.where(visits > 0, total / visits.clamp_min(1), -1e30)
            # Visits first; among equals the greater value.
            rank = visits + 0.5 * torch.sigmoid(quality - quality.amax(-1, keepdim=True))
            chosen = rank.masked_fill(~legal, -torch.inf).argmax(-1)
        return self.planner.encoded[chosen]


def _keys(outcomes: Any) -> np.ndarray:
    """A number [B] for each outcome, alike where state, reward and ending are."""
    parts = [x.double().reshape(len(x), -1) for x in tree.tensors(outcomes)]
    rows = torch.cat(parts, -1).cpu().numpy()
    return np.array([hash(row.tobytes()) & ((1 << 63) - 1) for row in rows], np.uint64)
