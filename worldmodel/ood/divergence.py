"""How much the autoencoder has to say: its KL, apart from its error, lest the two cancel."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from worldmodel.ood.api import Memory
from worldmodel.ood.look import Look
from worldmodel.ood.part import Part, seen


def code_length(look: Look) -> Tensor:
    """KL(q(z | x) || N(0, 1)) [B] in nats."""
    mean, std = seen(look.mean), seen(look.std)
    return 0.5 * (mean.square() + std.square() - 2 * std.log() - 1).sum(-1)


class Divergence(Part):
    """How far the autoencoder's KL lies from its usual value, above or below.

    usual: median of held-out rows, nats.
    """

    name = "kl"
    needs: ClassVar = ("mean", "std")
    usual: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("usual", torch.zeros(()))

    def fit(self, known: Look, held: Look) -> None:
        self.usual.copy_(code_length(held).median())

    def forward(self, look: Look, memory: Memory) -> tuple[Tensor, Memory]:
        return (code_length(look) - self.usual).abs(), {}
