"""Hyperparameters of Dreamer; the defaults are the paper's."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from agents.dreamer.gradient import GRADIENTS
from worldmodel.accel.devices import PRECISIONS
from worldmodel.config import ConfigError, check_ranges, free, unknown
from worldmodel.optim import OptimConfig
from worldmodel.rssm import ModelConfig


@dataclass
class DreamerConfig:
    """batch_size, batch_length: sequences and steps of one update. horizon: imagined steps.
    lam: of the lambda-returns. actor_gradient: "reinforce" as published; "dynamics", the
    gradient of the imagined returns through the world model (continuous actions); "quieter": in
    every update the one of lower variance, see `agents.dreamer.gradient`. entropy: weight of
    the policy's entropy, nats. entropy_anneal: updates after which that has fallen to a tenth,
    linearly; it stays there; 0: it stays as it is. actor_layers, critic_layers: hidden layers.
    actor_unimix: share of uniform in discrete policies. slow_rate: EMA rate of the slow critic.
    slow_scale: weight of staying near it. replay_value_scale: weight of the critic's loss on
    recorded rewards. return_rate: EMA rate of the return range. imagination_starts: states of each
    sequence that start a rollout, drawn at random; 0 means all. store_latents: replay keeps the
    posterior states beside its rows, and sequences start from them. freeze_model: the world model
    learns nothing; actor and critic alone do, in its dreams. precision: of the networks on a GPU
    ("bfloat16" or "float32"); a CPU computes in float32. cuda_graph: on a GPU, an update is
    recorded once and then launched whole, while the host goes on (see
    `agents.dreamer.pipeline`)."""

    name: str = "dreamer"
    batch_size: int = 16
    batch_length: int = 64
    horizon: int = 15
    lam: float = 0.95
    actor_gradient: str = "reinforce"
    entropy: float = 3e-4
    entropy_anneal: int = 0
    actor_layers: int = 3
    critic_layers: int = 3
    actor_unimix: float = 0.01
    slow_rate: float = 0.02
    slow_scale: float = 1.0
    replay_value_scale: float = 0.3
    return_rate: float = 0.01
    imagination_starts: int = 0
    store_latents: bool = True
    freeze_model: bool = False
    precision: str = "bfloat16"
    cuda_graph: bool = free(True)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        share, weight, layers, rows = (0, 1), (0, 1e6), (0, 64), 1 << 16
        check_ranges(self, {
            "batch_size": (1, rows), "batch_length": (2, rows), "imagination_starts": (0, rows),
            "horizon": (1, 10_000), "actor_layers": layers, "critic_layers": layers,
            "lam": share, "actor_unimix": share, "slow_rate": share, "return_rate": share,
            **dict.fromkeys(("entropy", "slow_scale", "replay_value_scale"), weight),
            "entropy_anneal": (0, 1 << 40),
        })  # fmt: skip
        if self.freeze_model and not self.store_latents:
            raise ConfigError(
                "A frozen model dreams from the states in the replay: set agent.store_latents=true."
            )
        if self.actor_gradient not in GRADIENTS:
            raise ConfigError(unknown("actor_gradient", self.actor_gradient, GRADIENTS))
        if self.precision not in PRECISIONS:
            raise ConfigError(unknown("precision", self.precision, PRECISIONS))

    def entropy_weight(self, done: Tensor) -> float | Tensor:
        """What the policy's entropy counts after `done` updates []."""
        if not self.entropy_anneal:
            return self.entropy
        return self.entropy * (1.0 - 0.9 * (done / self.entropy_anneal).clamp_max(1.0))
