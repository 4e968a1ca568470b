"""What agents without a world share: features of observations, and the action of highest value."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from worldmodel.config import ConfigError, check_ranges
from worldmodel.rssm.codec import Encoder
from worldmodel.types import MASK_KEY, EnvSpec


@dataclass
class EncoderConfig:
    """How images become features; without images it has no effect.

    depth, mults: channels of the stages are depth times the entries of mults. kernel, convolution:
    as in `worldmodel.rssm.ModelConfig`. units, layers: of the MLP for vectors beside images."""

    depth: int = 16
    mults: list[int] = field(default_factory=lambda: [1, 2, 4])
    kernel: int = 5
    convolution: str = "patch"
    units: int = 64
    layers: int = 1

    def __post_init__(self) -> None:
        ranges = {"depth": (1, 4096), "mults": (1, 4096), "kernel": (1, 31)}
        check_ranges(self, {**ranges, "units": (1, 1 << 16), "layers": (0, 64)})
        if not 1 <= len(self.mults) <= 8:
            raise ConfigError(f"mults is {self.mults}; allowed: 1 to 8 numbers.")


class Torso(nn.Module):
    """Observations by key, [..., *shape] -> features [..., F], for agents without a world.

    Without images: vectors and one-hots side by side, as they are. With images: what
    `worldmodel.rssm.codec.Encoder` makes of all keys. Raises ConfigError where there is neither.
    """

    def __init__(self, spec: EnvSpec, config: EncoderConfig) -> None:
        super().__init__()
        self.flat = spec.keys("vector") + spec.keys("discrete")
        self.encoder: Encoder | None = None
        if spec.keys("image"):
            c = config
            self.encoder = Encoder(
                spec, c.depth, c.units, c.mults, c.kernel, c.layers, c.convolution
            )
            self.out_features = self.encoder.out_features
        elif self.flat:
            self.out_features = sum(spec.obs[key].shape[0] for key in self.flat)
        else:
            raise ConfigError(
                "The observation has no image and no vector to learn from; keys: "
                f"{sorted(spec.obs) or 'none'}. Give the environment one, or set env.pixels=true."
            )

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        if self.encoder is not None:
            features: Tensor = self.encoder(obs)
            return features
        parts = [obs[key].float() for key in self.flat]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def greedy(q: Tensor, mask: Tensor | None) -> Tensor:
    """The action of the highest value [B] of q [B, A], among those whose mask [B, A] is not 0; a
    row that allows none counts as free."""
    if mask is None:
        return q.argmax(-1)
    allowed = mask > 0.5
    allowed = allowed | ~allowed.any(-1, keepdim=True)
    return q.masked_fill(~allowed, -torch.inf).argmax(-1)


class Greedy(nn.Module):
    """The action of the highest value, as what `Agent.tick` returns. q: a module from observations
    by key to values [B, A]."""

    def __init__(self, q: nn.Module) -> None:
        super().__init__()
        self.q = q

    def forward(self, obs: dict[str, Tensor], state: None, is_first: Tensor) -> tuple[Tensor, None]:
        q = self.q(obs)
        best = greedy(q, obs.get(MASK_KEY)).unsqueeze(-1)
        return torch.zeros_like(q).scatter_(-1, best, 1.0), None
