"""The trees of one decision: what they ask of a world and an agent, and what they find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents.planning import tree_search as search
from agents.planning.imagine import Imagination
from agents.planning.tree_config import MCTSConfig
from agents.planning.tree_rules import NONE, RULES, Rule, Trees
from worldmodel import tree
from worldmodel.config import ConfigError
from worldmodel.distributions import FactoredOneHot, Normal, OneHot, TanhNormal
from worldmodel.types import ActionSpec


class Found(NamedTuple):
    """What a search says of its roots. action: encoded [B, A]. policy [B, N]: what a policy
    should become, over all actions, or over those that were drawn, `options` [B, N, A]. value [B]:
    of the roots. chosen [B]: of the N."""

    action: Tensor
    chosen: np.ndarray
    policy: np.ndarray
    value: np.ndarray
    options: Tensor
    trees: Trees
    stats: dict[str, float]


# Many simulations in one call: (trees, rule, considered, simulations, depth, states of all nodes,
# signed discount, deepest [B]) -> answers that were not finite.
Simulations = Callable[[Trees, Rule, np.ndarray, int, int, Any, float, np.ndarray], int]


class Choices(NamedTuple):
    """What all searches of a planner share. encoded: all joint actions [joint, A], empty where
    actions are drawn. considered: of `tree_rules.considered_visits`."""

    config: MCTSConfig
    action: ActionSpec
    encoded: Tensor
    rule: Rule
    considered: np.ndarray


class Search:
    """The trees of one decision, and what they know of the world."""

    def __init__(
        self, choices: Choices, dreams: Imagination, state: Any, mask: Tensor | None
    ) -> None:
        self.choices, self.dreams = choices, dreams
        self.config = c = choices.config
        self.device, batch = choices.encoded.device, tree.batch_size(state)
        self.batch, self.most = batch, c.simulations + 1
        self.outcomes = 1 if dreams.repeats else c.outcomes
        self.root_count = c.root_samples or c.samples
        actions = max(self.root_count, c.samples) or len(choices.encoded)
        rng = np.random.default_rng(int(torch.randint(1 << 62, ())))
        self.trees = search.make_trees(batch, self.most, actions, self.outcomes, rng)
        # States of all nodes, [B M, ...]: node m of tree b at b M + m.
        self.states = tree.map(lambda x: x.new_zeros((batch * self.most, *x.shape[1:])), state)
        if c.samples:
            shape = (batch * self.most, actions, choices.action.size)
            self.options = torch.zeros(shape, device=self.device)
        self.base = np.arange(batch) * self.most
        self.keys = np.zeros((batch, self.most), np.uint64)
        self.key = np.zeros(batch, np.uint64)
        self.done = 0
        self.deepest = np.zeros(batch, np.int64)
        self._leaf, self._edge, self._depth, self._new = np.zeros((4, batch), np.int64)
        value = self._open(self._new, state, mask, root=True)
        if value is not None:
            self.trees.raw[:, 0] = value
        self.trees.known[:] = choices.rule.kind != RULES["ucb1"]
        self._add_noise(rng)

    def run(self, compiled: Simulations) -> None:
        """All simulations, by code that knows this world and agent."""
        c = self.config
        self.dreams.nonfinite += compiled(
            self.trees, self.choices.rule, self.choices.considered, c.simulations, c.depth,
            self.states, self.dreams.discount, self.deepest,
        )  # fmt: skip
        self.dreams.meter.spend(c.simulations)
        self.done = c.simulations

    def simulate(self) -> bool:
        """Look at one leaf of every tree; False where a bound came first."""
        choices, trees, c, meter = self.choices, self.trees, self.config, self.dreams.meter
        if meter.affords(1 + c.steps) < 1 or meter.late():
            return False
        leaf, edge = self._leaf, self._edge
        again = search.descend(
            trees, choices.rule, choices.considered, self.done, c.depth, leaf, edge, self._depth
        )
        np.maximum(self.deepest, self._depth + 1, out=self.deepest)
        where, which = self._index(self.base + leaf), self._index(np.maximum(edge, 0))
        before = tree.map(lambda x: x.index_select(0, where), self.states)
        action = self.options[where, which] if c.samples else choices.encoded[which]
        answer = self.dreams.advance(before, action, 1)
        if self.outcomes > 1:
            self.key = _keys(answer)
        state, reward, cont = answer
        wrong = search.expand(
            trees, leaf, edge, self.keys, self.key, reward.float().cpu().numpy(),
            cont.float().cpu().numpy(), self.dreams.discount, self._new,
        )  # fmt: skip
        self.dreams.nonfinite += wrong
        if again or wrong:
            state = tree.where(self._index(edge == NONE), before, state)
        value = self._open(self._new, state, None)
        if c.steps:
            value = self._roll(state)
            if value is None:
                return False
        wrong = search.backup(trees, choices.rule, self._new, value, c.steps > 0)
        self.dreams.nonfinite += 0 if c.steps else wrong  # a rollout counts its own
        self.done += 1
        return True

    def _index(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    def _open(
        self, node: np.ndarray, state: Any, mask: Tensor | None, root: bool = False
    ) -> np.ndarray | None:
        """Store the states of nodes [B], with the actions that they allow and their priors; what
        the agent takes them to be worth, [B]."""
        c, trees = self.config, self.trees
        where = self._index(self.base + node)
        tree.map(lambda store, new: store.index_copy_(0, where, new), self.states, state)
        prior = value = None
        asked = root or not c.steps or c.rule != "ucb1"
        if self.dreams.evaluate is not None and asked:
            prior, value = self.dreams.evaluate(state)
        if root:
            self.dreams.bootstrap = c.value and value is not None
            self._check(prior, value)
        options = None
        rows = np.arange(self.batch)
        allowed = self.dreams.mask(state) if mask is None else mask
        if c.samples:
            options = self._draw(prior, root, allowed)
            self.options[where, : options.shape[1]] = options
            trees.legal[rows, node] = np.arange(trees.legal.shape[2]) < options.shape[1]
        elif c.rule != "ucb1":
            logits = self._logits(prior)
            trees.logits[rows, node] = logits.cpu().numpy()
            if c.rule == "puct":
                trees.prior[rows, node] = logits.exp().cpu().numpy()
        if allowed is not None:
            self._forbid(node, allowed, options)
        if value is None or (c.steps and not root):
            return None
        return value.float().cpu().numpy()

    def _forbid(self, node: np.ndarray, allowed: Tensor, options: Tensor | None) -> None:
        """A joint action is allowed where each of its factors is; where none is, all are."""
        shut = (allowed <= 0.5).float()
        if options is None:
            legal = (shut @ self.choices.encoded.T == 0).cpu().numpy()
        else:
            legal = ((options * shut.unsqueeze(1)).sum(-1) == 0).cpu().numpy()
        legal |= ~legal.any(-1, keepdims=True)
        rows = np.arange(self.batch)
        self.trees.legal[rows, node, : legal.shape[1]] = legal
        prior = np.where(self.trees.legal[rows, node], self.trees.prior[rows, node], 0.0)
        total = prior.sum(-1, keepdims=True)
        self.trees.prior[rows, node] = prior / np.where(total > 0, total, 1.0)

    def _check(self, prior: Any, value: Any) -> None:
        """ConfigError where this search needs what the agent does not have."""
        c = self.config
        if c.rule != "ucb1" and not c.samples and prior is None:
            raise ConfigError(
                f"rule={c.rule} needs an agent with a policy over the states of its world; there "
                "is none here. Set rule=ucb1."
            )
        if not c.steps and not self.dreams.bootstrap:
            raise ConfigError(
                "mcts with rollout=0 needs an agent that gives states a value (value=true). "
                "Set rollout to a number of steps."
            )

    def _logits(self, prior: Any) -> Tensor:
        """Log probabilities [B, joint] of all joint actions."""
        encoded = self.choices.encoded
        if isinstance(prior, OneHot):
            return prior.log_probs
        if isinstance(prior, FactoredOneHot):
            parts = torch.cat([part.log_probs for part in prior.parts], -1)
            return parts if len(prior.parts) == 1 else parts @ encoded.T
        rows = [prior.log_prob(row.expand(self.batch, -1)) for row in encoded]
        return torch.stack(rows, -1)

    def _draw(self, prior: Any, root: bool, mask: Tensor | None) -> Tensor:
        """Actions [B, N, A] to look at, of those allowed: the policy's, or without one any."""
        c, action = self.config, self.choices.action
        count, wide = (self.root_count, c.wide_samples) if root else (c.samples, 0)
        if prior is None:
            shape = (self.batch, count, action.size)
            raw = self.dreams.space.spread(torch.randn(shape, device=self.device))
            return self.dreams.space.resolve(raw, None if mask is None else mask[:, None])
        if not isinstance(prior, Normal | TanhNormal):
            if mask is not None:
                parts = [prior] if isinstance(prior, OneHot) else prior.parts
                logits = torch.cat([part.log_probs for part in parts], -1)
                prior = FactoredOneHot(logits, action.sizes, mask=mask)
            return torch.stack([prior.sample() for _ in range(count)], 1)
        drawn: Tensor = action.clip(prior.repeated(count - wide).sample())
        if wide:
            more = prior.repeated(wide, 3.0).sample().clamp(-0.999, 0.999)
            drawn = torch.cat([drawn, more], 1)
        return drawn

    def _add_noise(self, rng: np.random.Generator) -> None:
        """Dirichlet noise in the roots' prior, or that of Gumbel search."""
        c, trees = self.config, self.trees
        legal = trees.legal[:, 0]
        if c.rule == "gumbel" and c.gumbel > 0:
            trees.gumbel[:] = c.gumbel * rng.gumbel(size=legal.shape)
        if c.samples:
            trees.prior[:] = 1.0 / c.samples
            trees.prior[:, 0] = legal / legal.sum(-1, keepdims=True)
        if c.rule == "puct" and c.dirichlet > 0:
            draws = np.where(legal, rng.gamma(c.dirichlet, size=legal.shape) + 1e-30, 0.0)
            noise = draws / draws.sum(-1, keepdims=True)
            trees.prior[:, 0] = (1 - c.noise) * trees.prior[:, 0] + c.noise * noise

    def _roll(self, state: Any) -> np.ndarray | None:
        """What states are worth: a rollout with random actions, and the agent's value after it."""
        shape = (self.batch, 1, self.config.steps, self.choices.action.size)
        raw = self.dreams.space.spread(torch.randn(shape, device=self.device))
        scored = self.dreams.score(state, raw)
        return None if scored is None else scored.returns[:, 0].float().cpu().numpy()

    def result(self, temperature: float) -> Found:
        """What was found so far."""
        trees, choices, c = self.trees, self.choices, self.config
        visits, legal = trees.visits[:, 0], trees.legal[:, 0]
        count = np.maximum(visits.sum(-1), 1)
        if c.rule == "gumbel":
            policy, chosen = search.improved_policies(trees, choices.rule)
        else:
            policy = visits / count[:, None]
            chosen = self._by_visits(visits, legal, temperature)
        index = self._index(chosen)
        rows = self._index(self.base)
        if c.samples:
            options = self.options[rows]
            action = self.options[rows, index]
        else:
            options = choices.encoded.expand(self.batch, -1, -1)
            action = choices.encoded[index]
        meter = self.dreams.meter
        stats = {
            "model_steps": meter.rows, "simulations": self.done, "ms": meter.end(),
            "nonfinite": self.dreams.nonfinite, "depth": float(self.deepest.mean()),
            "return": float((trees.total[:, 0].sum(-1) / count).mean()),
        }  # fmt: skip
        value = search.root_values(trees)
        return Found(action, chosen, policy, value, options, trees, stats)

    def _by_visits(self, visits: np.ndarray, legal: np.ndarray, temperature: float) -> np.ndarray:
        """The most visited action [B] of each root, or one drawn by visits^(1/T)."""
        if temperature > 0:
            weights = np.log(np.maximum(visits, 1e-9)) / temperature
            weights = np.where(legal, weights, -np.inf)
            weights = np.exp(weights - weights.max(-1, keepdims=True))
            return torch.multinomial(torch.from_numpy(weights), 1).squeeze(-1).numpy()
        total = self.trees.total[:, 0]
        quality = np.where(visits > 0, total / np.maximum(visits, 1), -1e30)
        gap = np.minimum(quality.max(-1, keepdims=True) - quality, 700.0)
        # Visits first; among equals the greater value.
        rank = np.where(legal, visits + 0.5 / (1 + np.exp(gap)), -np.inf)
        return rank.argmax(-1)


def _keys(outcomes: Any) -> np.ndarray:
    """A number [B] for each outcome, alike where state, reward and ending are."""
    parts = [x.double().reshape(len(x), -1) for x in tree.tensors(outcomes)]
    rows = torch.cat(parts, -1).cpu().numpy()
    return np.array([hash(row.tobytes()) & ((1 << 63) - 1) for row in rows], np.uint64)
