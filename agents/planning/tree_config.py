"""What a tree search is asked to do."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from agents.planning.base import BoundsConfig
from agents.planning.cache import CacheConfig
from agents.planning.tree_rules import GUMBEL, RULES, SCALES, Rule
from worldmodel.config import ConfigError, check_ranges, unknown

AUTO = "auto"


@dataclass
class MCTSConfig:
    """simulations: leaves that are looked at. depth: of a leaf at most. outcomes: of an action in a
    world that draws them, at most.

    rule: ucb1 | puct | gumbel | auto; puct and gumbel ask the agent's policy where to look. auto:
    puct where there is an agent with a policy and values, else ucb1. c: weight of
    exploration, with Q scaled to [0, 1]; null: sqrt(2) for ucb1, 1.25 for puct. c2: of puct, the
    visits at which exploration begins to weigh more. scale: how Q is scaled: tree | node |
    expanded | bounds (agents/planning/tree_rules.py); null: node for gumbel, else tree.
    value_range: [lowest, highest] return, for scale=bounds.
    rollout: steps with random actions that value a leaf; 0: none; null: 20 for ucb1, else none.
    value: the agent's value counts where a rollout ends, where it has one.

    dirichlet: alpha of the noise in the root's prior (puct); 0: none. noise: its share.
    considered: actions that gumbel begins its halving with, at most. gumbel: scale of its noise.
    value_scale, visit_scale: how far it trusts Q.
    samples: actions drawn at each node, for continuous actions or very many discrete ones; 0: all
    are looked at. root_samples: at the root; 0: as many. wide_samples: how many of those come from
    a policy of three times the deviation.
    temperature: of acting by visits; 0 takes the most visited action. gumbel has none.
    cache: of what the world predicted.
    """

    name: str = "mcts"
    simulations: int = 50
    depth: int = 100
    outcomes: int = 8
    rule: str = AUTO
    c: float | None = None
    c2: float = 19652.0
    scale: str | None = None
    value_range: list[float] = field(default_factory=lambda: [-1.0, 1.0])
    rollout: int | None = None
    value: bool = True
    dirichlet: float = 0.0
    noise: float = 0.25
    considered: int = 16
    gumbel: float = 1.0
    value_scale: float = 0.1
    visit_scale: float = 50.0
    samples: int = 0
    root_samples: int = 0
    wide_samples: int = 0
    temperature: float = 0.0
    bounds: BoundsConfig = field(default_factory=BoundsConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)

    def __post_init__(self) -> None:
        many, scale = (0, 1 << 16), (0, 1e6)
        check_ranges(self, {
            "simulations": (1, 1 << 20), "c": scale, "c2": (1, 1e12), "rollout": (0, 10_000),
            "depth": (1, 1 << 20), "outcomes": (1, 256), "temperature": (0, 1e3),
            "dirichlet": scale, "noise": (0, 1), "considered": (1, 1 << 16), "gumbel": scale,
            "value_scale": scale, "visit_scale": scale, "samples": many, "root_samples": many,
            "wide_samples": many,
        })  # fmt: skip
        if self.rule not in (*RULES, AUTO):
            raise ConfigError(unknown("rule", self.rule, (*RULES, AUTO)))
        if self.scale is not None and self.scale not in SCALES:
            raise ConfigError(unknown("scale", self.scale, SCALES))
        if len(self.value_range) != 2 or not self.value_range[0] < self.value_range[1]:
            raise ConfigError(
                f"value_range is {list(self.value_range)}; allowed: [low, high] with low < high."
            )
        if self.wide_samples > (self.root_samples or self.samples):
            raise ConfigError(
                f"wide_samples is {self.wide_samples}, of {self.root_samples or self.samples} "
                "actions drawn at the root; allowed: as many at most."
            )
        if 0 < self.root_samples < self.samples or (self.root_samples and not self.samples):
            raise ConfigError(
                f"root_samples is {self.root_samples} with samples={self.samples}; allowed: at "
                "least as many as samples, which must not be 0; or 0, for as many."
            )
        unsure = self.rule == AUTO and self.rollout is None  # asked again when the rule is known
        budget, one = self.bounds.budget, 1 if unsure else 1 + self.steps
        if 0 < budget < one:
            raise ConfigError(
                f"bounds.budget is {budget} model steps; one simulation takes {one} (rollout="
                f"{self.steps}, and 1). Allowed: {one} or more, or 0."
            )
        if self.bounds.uncertainty_limit is not None or self.bounds.least_horizon != 1:
            raise ConfigError(
                "bounds.uncertainty_limit and least_horizon belong to planners of sequences (icem, "
                "cem, mppi, shooting); leave them out."
            )

    @property
    def steps(self) -> int:
        """Of one rollout."""
        return (20 if self.rule in ("ucb1", AUTO) else 0) if self.rollout is None else self.rollout

    def table(self) -> Rule:
        """What the kernels are told."""
        kind = RULES[self.rule]
        c = self.c if self.c is not None else (math.sqrt(2.0) if self.rule == "ucb1" else 1.25)
        scale = self.scale or ("node" if kind == GUMBEL else "tree")
        low, high = map(float, self.value_range)
        trust = float(self.value_scale), float(self.visit_scale)
        return Rule(kind, SCALES[scale], float(c), float(self.c2), *trust, low, high)
