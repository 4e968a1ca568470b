"""Where does the model not know what will happen? An ensemble of one-step predictors says so.

Several small networks learn the same thing, the next latent from the present state and the action,
from different first weights. Where there was data they come to agree; elsewhere they differ, and
the variance between them is a reward for going there:

    member k:   (s_t, a_{t+1}) -> mu_k, the expected stoch of s_{t+1}
    disagreement of that step:    the variance of mu_k over k, averaged over the entries of stoch

Unlike a large error, it ends where a thing is random rather than unknown: all members then learn
the same mean. Sekar et al., "Planning to Explore via Self-Supervised World Models" (ICML 2020);
the target here is the posterior's expected stoch instead of the encoder's features, which move
as the encoder learns.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.accel.ranks import Ranks
from worldmodel.nets import BlockLinear, init_weight


@dataclass
class EnsembleConfig:
    """members: predictors; 0 means no ensemble. layers, units: hidden layers of each and their
    width. scale: weight of their loss. rate: EMA rate of the disagreement on recorded steps, the
    unit in which `disagreement` counts."""

    members: int = 0
    layers: int = 2
    units: int = 64
    scale: float = 1.0
    rate: float = 0.01

    def __post_init__(self) -> None:
        if self.members < 0 or self.members == 1:
            raise ValueError(
                f"ensemble.members is {self.members}; it must be 2 or more (one member has nobody "
                "to disagree with), or 0 for no ensemble."
            )
        if self.layers < 1 or self.units < 1 or not 0 < self.rate <= 1 or self.scale < 0:
            raise ValueError(
                f"ensemble.layers={self.layers} and units={self.units} must be at least 1, "
                f"rate={self.rate} in (0, 1], scale={self.scale} not negative."
            )


class MemberLinear(BlockLinear):
    """One linear layer for each member, side by side: [..., M, in] -> [..., M, out]."""

    def __init__(self, members: int, features_in: int, features_out: int) -> None:
        super().__init__(members * features_in, members * features_out, members)
        init_weight(self.weight, features_in)  # a member's own width, not that of all of them


class Ensemble(nn.Module):
    """M predictors of the next stoch from features [..., F] and an action [..., A].

    typical: a running mean of the disagreement on recorded steps; it is the unit of
    `disagreement`, so that 1 means "as unsure as where we have been", however far learning is.
    ranks: of those that train together; the mean is that of all their steps.
    """

    typical: Tensor
    count: Tensor
    ranks: Ranks | None = None

    def __init__(self, feat: int, action: int, expected: int, config: EnsembleConfig) -> None:
        super().__init__()
        self.config = config
        widths = [feat + action] + [config.units] * config.layers + [expected]
        self.layers = nn.ModuleList(
            MemberLinear(config.members, a, b) for a, b in itertools.pairwise(widths)
        )
        self.register_buffer("typical", torch.ones(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, feat: Tensor, action: Tensor) -> Tensor:
        """What each member expects of the next stoch, [..., M, S * K]."""
        action = action / action.abs().clamp_min(1.0)  # as the core sees it
        x = torch.cat([feat, action.to(feat.dtype)], -1).unsqueeze(-2)
        x = x.expand(*x.shape[:-2], self.config.members, x.shape[-1])
        for layer in self.layers[:-1]:
            x = layer(x)
            # Without the learned scale of `NormSiLU`, which members would share.
            x = F.silu(F.rms_norm(x.float(), (x.shape[-1],), eps=1e-4)).to(x.dtype)
        out: Tensor = self.layers[-1](x)
        return out.float()

    def spread(self, feat: Tensor, action: Tensor) -> Tensor:
        """The variance between the members [...], averaged over the entries of stoch."""
        return self(feat, action).var(-2, correction=0).mean(-1)

    def disagreement(self, feat: Tensor, action: Tensor) -> Tensor:
        """How unsure the members are of what the action [..., A] leads to from a state with these
        features [..., F]: [...], in units of what is usual on recorded steps."""
        return self.spread(feat, action) / self.typical

    def loss(self, feat: Tensor, target: Tensor, action: Tensor, is_first: Tensor) -> Tensor:
        """The members' mean squared error [B, T] on a step's arrival, 0 where an episode begins.

        feat [B, T, F] and the expected stoch [B, T, S * K] of each row's posterior; action
        [B, T, A] led to that row. No gradient reaches any of them: the ensemble only watches.
        """
        inside = (~is_first[:, 1:]).float()
        guess = self(feat[:, :-1].detach(), action[:, 1:])  # [B, T-1, M, S * K]
        error = (guess - target[:, 1:].detach().unsqueeze(-2)).square().sum(-1).mean(-1)
        self._note(guess.detach().var(-2, correction=0).mean(-1), inside)
        return F.pad(inside * error, (1, 0))

    @torch.no_grad()
    def _note(self, spread: Tensor, inside: Tensor) -> None:
        """Move `typical` towards the mean over these steps [B, T-1]; the first batches count most,
        so that the start is forgotten."""
        if spread.numel() == 0:
            return
        sums = torch.stack([(inside * spread).sum(), inside.sum()])
        if self.ranks is not None:
            self.ranks.all_reduce_mean(sums)
            sums = sums * self.ranks.size
        mean = sums[0] / sums[1].clamp_min(1.0)
        some = sums[1] > 0
        self.count.add_(some)
        rate = (1.0 / self.count.clamp_min(1)).clamp_min(self.config.rate)
        self.typical.lerp_(mean.clamp_min(1e-12), torch.where(some, rate, 0.0))
