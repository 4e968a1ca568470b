"""Settings of MuZero."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from agents.planning.mcts import MOST_ACTIONS
from agents.planning.tree_config import MCTSConfig
from worldmodel.adam import AdamConfig
from worldmodel.config import ConfigError, check_ranges
from worldmodel.models.muzero import MuZeroModelConfig
from worldmodel.types import ActionSpec

VALUES = ("target", "search")


@dataclass
class MuZeroConfig:
    """batch_size: positions of one update. unroll: steps that the model is unrolled from each, K.
    n_step: rewards that are counted before a value is asked. discount: of one step.

    values: whose values targets ask: those of a copy of the network, "target", or of the search
    that is stored with the row, "search". target_every: updates between two copies. aging:
    transitions of age for each of which n is one less, but at least 1 (EfficientZero's off-policy
    correction); 0: n stays as it is.
    reanalyse: rows that are searched again at each update, with the weights of now.
    priority_exponent, beta, beta_updates: of prioritised replay, as of agent=dqn.

    value_weight, policy_weight, reward_weight, consistency_weight: in the loss. entropy: weight of
    the policy's. best_only: drawn actions teach the policy by the best one alone, not by their
    shares.

    search: the tree search. temperature, temperature_end, temperature_updates: of acting by visits
    while training: the first until half of those updates, the mean of both until three quarters,
    then the last.
    simulations_evaluated: of an evaluation; 0: as in training. units: of the policy and value net.
    """

    name: str = "muzero"
    batch_size: int = 128
    unroll: int = 5
    n_step: int = 10
    discount: float = 0.997
    values: str = "target"
    target_every: int = 100
    aging: int = 0
    reanalyse: int = 0
    priority_exponent: float = 0.0
    beta: float = 0.4
    beta_updates: int = 25_000
    value_weight: float = 0.25
    policy_weight: float = 1.0
    reward_weight: float = 1.0
    consistency_weight: float = 2.0
    entropy: float = 0.0
    best_only: bool = False
    temperature: float = 1.0
    temperature_end: float = 0.25
    temperature_updates: int = 10_000
    simulations_evaluated: int = 0
    units: int = 128
    search: MCTSConfig = field(default_factory=lambda: MCTSConfig(rule="puct", dirichlet=0.25))
    model: MuZeroModelConfig = field(default_factory=MuZeroModelConfig)
    optim: AdamConfig = field(default_factory=lambda: AdamConfig(lr=1e-3, clip=5.0))

    def __post_init__(self) -> None:
        rows, share, weight, steps = (1, 1 << 16), (0, 1), (0, 1e6), (1, 1 << 40)
        check_ranges(self, {
            "batch_size": rows, "unroll": (1, 1000), "n_step": (1, 1000), "discount": (1e-3, 1),
            "target_every": steps, "aging": (0, 1 << 40), "reanalyse": (0, 1 << 16),
            "priority_exponent": share, "beta": share, "beta_updates": steps,
            "value_weight": weight, "policy_weight": weight, "reward_weight": weight,
            "consistency_weight": weight, "entropy": weight, "temperature": (0, 100),
            "temperature_end": (0, 100), "temperature_updates": steps, "units": rows,
            "simulations_evaluated": (0, 1 << 20),
        })  # fmt: skip
        if self.values not in VALUES:
            raise ConfigError(f"values is '{self.values}'; allowed: {', '.join(VALUES)}.")
        if self.search.rule not in ("puct", "gumbel"):
            raise ConfigError(
                f"search.rule is {self.search.rule}; allowed where the search teaches a policy: "
                "puct, gumbel."
            )
        if self.search.temperature:
            raise ConfigError(
                f"search.temperature is {self.search.temperature:g}; agent=muzero acts by "
                "agent.temperature and agent.temperature_end while it learns. Set those."
            )


def check_searchable(action: ActionSpec, search: MCTSConfig) -> None:
    """ConfigError for actions that can only be searched where some are drawn, and none are."""
    many = action.kind == "discrete" and math.prod(action.sizes) > MOST_ACTIONS
    if search.samples or (action.kind == "discrete" and not many):
        return
    what = f"{math.prod(action.sizes):,} joint" if many else "continuous"
    raise ConfigError(
        f"agent=muzero looks at every action, and these are {what} ones. Set agent.search.samples, "
        "the number that is drawn at each node (experiment=efficientzero_v2 does)."
    )
