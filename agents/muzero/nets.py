"""What MuZero's agent thinks of hidden states: the prediction function f."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.muzero.config import MuZeroConfig
from worldmodel.config import ConfigError
from worldmodel.distributions import FactoredOneHot, OneHot, Support, TanhNormal
from worldmodel.models.muzero import MuZeroWorld, PlaneFeatures, dense
from worldmodel.types import PLAYER_KEY, ActionSpec, EnvSpec


class Prediction(nn.Module):
    """f: latents -> numbers of the policy [B, P] and logits of the value [B, bins]. Both begin at
    0: all actions alike, all states worth nothing."""

    def __init__(self, world: MuZeroWorld, action: ActionSpec, units: int) -> None:
        super().__init__()
        shape, bins = world.shape, world.config.bins
        self.size = action.size if action.kind == "discrete" else 2 * action.size
        flat = len(shape) == 1
        self.hidden = dense([shape[0], units]) if flat else PlaneFeatures(shape, units)
        self.out = nn.Linear(units, self.size + bins)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        out = self.out(self.hidden(latent))
        return out[..., : self.size], out[..., self.size :]


class Networks(nn.Module):
    """The world, and the prediction of its states."""

    def __init__(self, spec: EnvSpec, config: MuZeroConfig) -> None:
        super().__init__()
        self.action = spec.action
        alternates = PLAYER_KEY in spec.obs
        if alternates and spec.obs[PLAYER_KEY].sizes != (2,):
            found = spec.obs[PLAYER_KEY]
            raise ConfigError(
                f"'{PLAYER_KEY}' says whose turn it is, as gymnasium.spaces.Discrete(2); here it "
                f"is {found.kind} {found.sizes or found.shape}. Where it means something else, "
                "call it otherwise, or leave it out with env.keys=[...]."
            )
        self.model = MuZeroWorld(spec, config.model, config.discount, alternates)
        self.prediction = Prediction(self.model, spec.action, config.units)

    @property
    def support(self) -> Support:
        """Of values and rewards."""
        return self.model.support

    def policy(self, numbers: Tensor) -> Any:
        """Distribution over encoded actions. Continuous ones as in EfficientZero V2: tanh of a
        normal with mean 5 tanh(m / 5) and deviation softplus(s + 1) + 0.1."""
        if self.action.kind == "continuous":
            mean, raw = numbers.chunk(2, -1)
            return TanhNormal(5 * torch.tanh(mean / 5), (F.softplus(raw + 1) + 0.1).log())
        if len(self.action.sizes) == 1:
            return OneHot(numbers)
        return FactoredOneHot(numbers, self.action.sizes)

    def value(self, seen: Tensor) -> Tensor:
        """Of what was seen [B, ...], [B]."""
        _, logits = self.prediction(self.model.represent(seen).latent)
        return self.support.mean(logits)
