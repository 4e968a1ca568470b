"""What density and neighbours measure distances in: a code and how well it did, standardised."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldmodel.ood.divergence import code_length
from worldmodel.ood.look import Look
from worldmodel.ood.part import seen
from worldmodel.ood.reconstruction import TINY, mean_error


def features(look: Look) -> Tensor:
    """The autoencoder's code, its log error and its log KL, [B, N + 2]."""
    error = (mean_error(look) + TINY).log()
    length = code_length(look).clamp_min(TINY).log()
    return torch.cat([seen(look.mean), error.unsqueeze(-1), length.unsqueeze(-1)], -1)


class Standard(nn.Module):
    """Features with mean 0 and standard deviation 1 on the rows that it was fitted on."""

    centre: Tensor
    spread: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))

    def fit(self, values: Tensor) -> None:
        """values: [N, F]."""
        self.centre.copy_(values.mean(0))
        self.spread.copy_(values.std(0).clamp_min(1e-6))

    def forward(self, values: Tensor) -> Tensor:
        return (values - self.centre) / self.spread
