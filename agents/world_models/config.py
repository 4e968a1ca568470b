"""Hyperparameters of World Models."""

from __future__ import annotations

from dataclasses import dataclass, field

from worldmodel.adam import AdamConfig
from worldmodel.config import ConfigError, check_ranges
from worldmodel.models.mdnrnn import MDNRNNConfig
from worldmodel.models.vae import VAEConfig

EVOLVE_IN = ("dream", "real")
ENDS = ("likely", "expected")


@dataclass
class SearchConfig:
    """CMA-ES. population: candidates of a generation, four or more. trials: dreams, or real
    episodes, of each; its fitness is their mean return. generations: of one iteration. sigma:
    deviation of the first candidates; later_sigma: of those of later iterations, which begin at C;
    0: the same. diagonal: adapt the variances alone, which is faster and, with hundreds of weights,
    learns sooner. evolve_in: "dream", without a step in the environment, or "real". dream_steps:
    after which a dream is cut off. ends: "likely", a dream ends where the model finds that likelier
    than not, as published; "expected", it counts as far as the model expects it to go on, so that
    no end is hidden below one half."""

    population: int = 64
    trials: int = 16
    generations: int = 300
    sigma: float = 0.1
    later_sigma: float = 0.0
    diagonal: bool = True
    evolve_in: str = "dream"
    dream_steps: int = 100
    ends: str = "likely"

    def __post_init__(self) -> None:
        many = (1, 1 << 24)
        check_ranges(self, {
            "population": (4, 1 << 16), "trials": (1, 1 << 16), "generations": many,
            "sigma": (1e-9, 1e3), "later_sigma": (0, 1e3), "dream_steps": many,
        })  # fmt: skip
        if self.evolve_in not in EVOLVE_IN:
            raise ConfigError(f"evolve_in is '{self.evolve_in}'; allowed: {', '.join(EVOLVE_IN)}.")
        if self.ends not in ENDS:
            raise ConfigError(f"ends is '{self.ends}'; allowed: {', '.join(ENDS)}.")


@dataclass
class WorldModelsConfig:
    """Each of the `iterations` collects, trains V, trains M and evolves C.

    collect: agent steps of one iteration. random_scale: greatest scale of the weights of random
    policies, which play the first iteration: Cauchy times uniform in [0, random_scale], anew in
    each episode. explore: share of episodes that they play in later ones; the others are played by
    neighbours of C, of the search's deviation. vae_updates, vae_batch: of V, in images.
    encode_rows: rows that V encodes in one update, once it is trained. rnn_updates: of M.
    batch_size, batch_length: of M's sequences [B, T]; no dream may be longer.
    one_sided: entries of a continuous action whose lowest value stands for every output of C below
    0, as published for CarRacing's brake."""

    name: str = "world_models"
    iterations: int = 1
    collect: int = 10_000
    random_scale: float = 1.0
    explore: float = 0.25
    vae: VAEConfig = field(default_factory=VAEConfig)
    vae_updates: int = 2000
    vae_batch: int = 100
    vae_optim: AdamConfig = field(default_factory=lambda: AdamConfig(lr=1e-3))
    encode_rows: int = 1000
    rnn: MDNRNNConfig = field(default_factory=MDNRNNConfig)
    rnn_updates: int = 2000
    batch_size: int = 32
    batch_length: int = 101
    rnn_optim: AdamConfig = field(default_factory=lambda: AdamConfig(lr=1e-3))
    search: SearchConfig = field(default_factory=SearchConfig)
    one_sided: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        many = (1, 1 << 40)
        check_ranges(self, {
            "iterations": many, "collect": many, "random_scale": (0, 1e6), "explore": (0, 1),
            "vae_updates": many, "vae_batch": (1, 1 << 16), "encode_rows": (1, 1 << 20),
            "rnn_updates": many, "batch_size": (1, 1 << 16), "batch_length": (2, 1 << 20),
            "one_sided": (0, 1 << 20),
        })  # fmt: skip
        search = self.search
        if search.evolve_in == "dream" and search.dream_steps >= self.batch_length:
            raise ConfigError(
                f"search.dream_steps={search.dream_steps}: M is trained on sequences of "
                f"batch_length={self.batch_length} rows, and nobody knows what it does after "
                f"{self.batch_length - 1} steps. Raise batch_length, or shorten the dreams."
            )
        if search.evolve_in == "dream" and not self.rnn.reward:
            raise ConfigError(
                "A controller cannot evolve in dreams without rewards, which would all be 0: set "
                "agent.rnn.reward=true, or agent.search.evolve_in=real."
            )
        if self.collect < self.batch_length:
            raise ConfigError(
                f"collect={self.collect} steps are fewer than the batch_length="
                f"{self.batch_length} rows of a sequence that M learns from: raise agent.collect, "
                "or lower agent.batch_length."
            )
