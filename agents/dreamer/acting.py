"""How Dreamer acts: the actor, the state that acting carries, and a step that can be exported."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.distributions import FactoredOneHot, Normal
from worldmodel.nets import MLP, Linear
from worldmodel.rssm.model import WorldModel
from worldmodel.rssm.state import LatentState
from worldmodel.types import MASK_KEY, ActionSpec


class Actor(nn.Module):
    """feat [..., F] -> a distribution over encoded actions [..., A].

    Continuous: Normal(tanh(mean), 0.9 sigmoid(raw + 2) + 0.1), not squashed; the environment
    clips. Mean and deviation have a layer each, as in the official code, whose adaptive clipping
    goes by layers. Discrete: one categorical for each factor with `unimix` of uniform, masked on
    request.
    """

    def __init__(
        self,
        spec: ActionSpec,
        feat: int,
        units: int,
        layers: int = 3,
        unimix: float = 0.01,
        min_std: float = 0.1,
        max_std: float = 1.0,
        outscale: float = 0.01,
    ) -> None:
        super().__init__()
        self.spec, self.unimix = spec, unimix
        self.min_std, self.max_std = min_std, max_std
        self.mlp = MLP(feat, units, layers)
        self.out = Linear(self.mlp.out_features, spec.size, outscale)  # logits, or the mean
        if spec.kind == "continuous":
            self.spread = Linear(self.mlp.out_features, spec.size, outscale)

    def forward(self, feat: Tensor, mask: Tensor | None = None) -> Normal | FactoredOneHot:
        hidden = self.mlp(feat)
        out = self.out(hidden).float()
        if self.spec.kind == "discrete":
            return FactoredOneHot(out, self.spec.sizes, self.unimix, mask)
        raw = self.spread(hidden).float()
        std = (self.max_std - self.min_std) * torch.sigmoid(raw + 2.0) + self.min_std
        return Normal(torch.tanh(out), std)


class ActState(NamedTuple):
    """What acting carries from step to step: the latent state and the last action [B, A]."""

    latent: LatentState
    action: Tensor


class Tick(nn.Module):
    """One deployable step: the likeliest latents, the actor's likeliest action, clipped."""

    def __init__(self, model: WorldModel, actor: Actor) -> None:
        super().__init__()
        self.model, self.actor = model, actor

    def forward(
        self, obs: dict[str, Tensor], state: ActState, is_first: Tensor
    ) -> tuple[Tensor, ActState]:
        latent = self.model.observe_mode(state.latent, obs, state.action, is_first)
        dist = self.actor(latent.feat, obs.get(MASK_KEY))
        action = self.actor.spec.clip(dist.mode())
        return action, ActState(latent, action)
