"""TD-MPC2's values and policy over the latents of its world."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.tdmpc2.config import TDMPC2Config
from worldmodel.accel.mish import norm_mish
from worldmodel.distributions import FactoredOneHot, TanhNormal
from worldmodel.models.latent import Latent, LatentWorld
from worldmodel.models.latent_nets import MLP
from worldmodel.nets import EMACopy
from worldmodel.types import MASK_KEY, ActionSpec, EnvSpec


class TDMPC2State(NamedTuple):
    """What the last observation means, and the mean of the last plan [B, H, A], one step later."""

    latent: Latent
    mean: Tensor


class Heads(nn.Module):
    """E Q functions side by side: z [..., F] and actions [..., A] -> logits [E, ..., bins].

    Each is two layers of M units (linear, LayerNorm, mish; dropout on the first linear one) and a
    linear layer that begins at 0.
    """

    def __init__(self, features: int, units: int, bins: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self.scales, self.shifts = nn.ParameterList(), nn.ParameterList()
        for a, b in itertools.pairwise([features, units, units, bins]):
            weight = torch.empty(heads, a, b)
            self.weights.append(nn.init.trunc_normal_(weight, std=0.02))
            self.biases.append(torch.zeros(heads, 1, b))
        nn.init.zeros_(self.weights[-1])
        for _ in range(2):
            self.scales.append(torch.ones(heads, 1, units))
            self.shifts.append(torch.zeros(heads, 1, units))

    def forward(
        self,
        z: Tensor,
        action: Tensor,
        which: Tensor | None = None,
        drops: bool = False,
        frozen: bool = False,
    ) -> Tensor:
        """which: indices of the heads that are asked, all by default. drops: dropout is on.
        frozen: no gradient reaches the weights, as if they were constants."""

        def of(parameters: nn.ParameterList, layer: int) -> Tensor:
            found: Tensor = parameters[layer]
            found = found.detach() if frozen else found
            return found if which is None else found[which]

        x = torch.cat([z, action.to(z.dtype)], -1)
        lead = x.shape[:-1]
        x = x.reshape(1, -1, x.shape[-1])
        for layer in range(3):
            weight, bias = of(self.weights, layer), of(self.biases, layer)
            x = torch.baddbmm(bias, x.expand(len(weight), -1, -1), weight)
            if layer == 0:
                x = F.dropout(x, self.dropout, drops)
            if layer < 2:
                x = norm_mish(x, of(self.scales, layer), of(self.shifts, layer))
        return x.unflatten(1, lead)


class Networks(nn.Module):
    """The world, Q functions and their slow copy, the policy, and the scale of values."""

    scale: Tensor

    def __init__(self, spec: EnvSpec, config: TDMPC2Config) -> None:
        super().__init__()
        m, self.action, self.bounds = config.model, spec.action, config.log_std
        self.model = LatentWorld(spec, m)
        discrete = spec.action.kind == "discrete"
        self.policy = MLP(m.latent, m.units, spec.action.size * (1 if discrete else 2))
        both = m.latent + spec.action.size
        self.q = Heads(both, m.units, m.bins, config.heads, config.dropout)
        self.target_q = EMACopy(self.q, config.target_rate)
        self.register_buffer("scale", torch.ones(()))

    def two(self) -> Tensor | None:
        """Indices of two different heads at random, [2]; None, for all, where there are two."""
        weight = self.q.weights[0]
        return torch.randperm(len(weight), device=weight.device)[:2] if len(weight) > 2 else None

    def actions(self, z: Tensor, mask: Tensor | None = None) -> TanhNormal | FactoredOneHot:
        """The policy's distribution [..., A] at z [..., F]; mask [..., A]: discrete actions that
        are allowed."""
        return distribution(self.policy(z), self.action, self.bounds, mask)

    def value(self, z: Tensor, action: Tensor, which: Tensor | None = None) -> Tensor:
        """The mean of the heads' values [...]."""
        return self.model.bins.mean(self.q(z, action, which)).mean(0)


def distribution(
    raw: Tensor, action: ActionSpec, bounds: Sequence[float], mask: Tensor | None = None
) -> TanhNormal | FactoredOneHot:
    """Of actions, from what the policy says of it [..., 2 A], or [..., A] where it is discrete.
    bounds: of the log deviation."""
    if action.kind == "discrete":
        return FactoredOneHot(raw, action.sizes, mask=mask)
    mean, log_std = raw.float().chunk(2, -1)
    low, high = bounds
    return TanhNormal(mean, low + 0.5 * (high - low) * (torch.tanh(log_std) + 1))


class Tick(nn.Module):
    """The policy's mode, without a plan, as `Agent.tick` returns it."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.networks = networks

    def forward(
        self, obs: dict[str, Tensor], state: TDMPC2State, is_first: Tensor
    ) -> tuple[Tensor, TDMPC2State]:
        model = self.networks.model
        nothing = torch.zeros_like(state.latent.z)  # no action counts
        latent = model.observe(state.latent, obs, nothing, is_first)
        action = self.networks.actions(latent.z, obs.get(MASK_KEY)).mode()
        return action, TDMPC2State(latent, state.mean)
