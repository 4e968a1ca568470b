"""The scale of returns, so that one entropy weight suits every reward."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldmodel.accel.ranks import Ranks


class ReturnScale(nn.Module):
    """Running range between two percentiles of returns: S = max(limit, high - low).

    Both ends follow an exponential average from 0, without debiasing (DreamerV3, eq. 10).
    ranks: of those that train together; the percentiles are those of all their returns.
    """

    ranks: Ranks | None = None

    low: Tensor
    high: Tensor
    quantiles: Tensor

    def __init__(
        self, rate: float = 0.01, low: float = 0.05, high: float = 0.95, limit: float = 1.0
    ) -> None:
        super().__init__()
        self.rate, self.limit = rate, limit
        self.register_buffer("quantiles", torch.tensor([low, high]))
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    @torch.no_grad()
    def update(self, returns: Tensor) -> Tensor:
        """Take in a batch of returns of any shape; give the scale, a scalar tensor."""
        returns = returns.flatten().float()
        if self.ranks is not None:
            returns = self.ranks.all_gather(returns)
        low, high = torch.quantile(returns, self.quantiles)
        self.low.lerp_(low, self.rate)
        self.high.lerp_(high, self.rate)
        return self.scale

    @property
    def scale(self) -> Tensor:
        """S, a scalar tensor."""
        return (self.high - self.low).clamp_min(self.limit)
