"""Monte-Carlo tree search: UCB1 with rollouts, the policy's prior (pUCT), or Gumbel search.

Kocsis and Szepesvari, "Bandit based Monte-Carlo planning" (2006); Schrittwieser et al., MuZero
(2020); Hubert et al., Sampled MuZero (2021); Danihelka et al., Gumbel MuZero (2022). All roots of a
batch descend together; one call of the world serves all their leaves.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from agents.planning.base import BoundsConfig, Evaluate, Meter, Plan, Planner, check_kind
from agents.planning.imagine import Imagination
from agents.planning.space import ActionSpace
from agents.planning.tree_config import AUTO, MCTSConfig
from agents.planning.tree_growth import Choices, Found, Search, Simulations
from agents.planning.tree_rules import considered_visits
from worldmodel.config import ConfigError
from worldmodel.types import ActionSpec

MOST_ACTIONS = 4096  # joint actions of several factors


class MCTS(Planner):
    """The most visited action of the root, or the best of those that Gumbel search visited most."""

    Config = MCTSConfig
    config: MCTSConfig

    def __init__(self, action: ActionSpec, *args: Any, **options: Any) -> None:
        super().__init__(action, *args, **options)
        self.space = ActionSpace(action)
        if self.config.rule == AUTO:  # who knows an agent has chosen before: `make_planner`
            self.config = replace(self.config, rule="ucb1")
        c = self.config
        if c.dirichlet and c.rule != "puct":
            raise ConfigError(
                f"dirichlet is {c.dirichlet:g}, noise in the prior of rule=puct, and rule={c.rule} "
                "has none. Leave it out, or set rule=puct."
            )
        encoded = torch.zeros(0, action.size)
        if c.samples == 0:
            instead = "icem, cem, mppi or shooting, or draw actions with planner.samples=20"
            check_kind("mcts", action, "discrete", instead)
            encoded = _joint_actions(action)
        table = considered_visits(c.considered, c.simulations)
        self.choices = Choices(c, action, encoded.to(self.device), c.table(), table)

    def plan(
        self,
        world: Any,
        state: Any,
        evaluate: Evaluate | None = None,
        warm: Any = None,
        is_first: Tensor | None = None,
        mask: Tensor | None = None,
        began: float | None = None,
    ) -> Plan:
        """See `Planner.plan`; a tree does not outlive its step, so that `warm` is None."""
        found = self.search(world, state, evaluate, mask, began=began)
        return Plan(found.action, None, found.stats | self.cache_stats, searched=found.trees)

    @torch.no_grad()
    def search(
        self,
        world: Any,
        state: Any,
        evaluate: Evaluate | None = None,
        mask: Tensor | None = None,
        temperature: float | None = None,
        compiled: Simulations | None = None,
        began: float | None = None,
    ) -> Found:
        """All that a search finds in states [B, ...]; for the arguments see `Planner.plan`.
        temperature: another than in the settings. compiled: the same world and agent as machine
        code, used where no bound is set."""
        c = self.config
        meter = Meter(c.bounds, self.clock, began, self.pace)
        world = self.cached(world, c.cache)
        with self.stream:
            # Whether the agent's value counts is known when it has been asked for the roots.
            dreams = Imagination(
                world, state, evaluate, self.space, c.bounds, meter, bootstrap=False
            )
            found = Search(self.choices, dreams, state, mask)
            if compiled is not None and c.bounds == BoundsConfig():
                found.run(compiled)
            while found.done < c.simulations and found.simulate():
                pass
            return found.result(c.temperature if temperature is None else temperature)


def _joint_actions(action: ActionSpec) -> Tensor:
    """All joint actions, encoded [joint, A]; ConfigError where there are too many."""
    count = math.prod(action.sizes)
    if count > MOST_ACTIONS:
        raise ConfigError(
            f"mcts searches at most {MOST_ACTIONS:,} joint actions; this environment has "
            f"{count:,} (factors {list(action.sizes)}). Draw some at each node with "
            "planner.samples=20, or choose planner=icem, cem or mppi."
        )
    joint = torch.tensor(list(itertools.product(*(range(n) for n in action.sizes))))
    columns = [torch.nn.functional.one_hot(joint[:, i], n) for i, n in enumerate(action.sizes)]
    return torch.cat(columns, -1).float()
