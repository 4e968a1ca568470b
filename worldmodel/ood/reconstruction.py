"""The baseline, and its two-sided form: how badly the autoencoder draws what came."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from worldmodel.ood.api import Memory
from worldmodel.ood.look import Look
from worldmodel.ood.part import Part, seen

TINY = 1e-12  # of a mean squared error, before its logarithm


def mean_error(look: Look) -> Tensor:
    """Squared error [B], averaged over all pixels."""
    return seen(look.error).square().flatten(1).mean(-1)


class Reconstruction(Part):
    """The autoencoder's mean squared error."""

    name = "reconstruction"
    needs: ClassVar = ("error",)

    def forward(self, look: Look, memory: Memory) -> tuple[Tensor, Memory]:
        return mean_error(look), {}


class Typicality(Part):
    """How far the log error lies from its usual value, above or below: a frame in which there is
    less to draw than ever is strange because it is drawn too well.

    usual: median log error of held-out rows.
    """

    name = "typicality"
    needs: ClassVar = ("error",)
    usual: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("usual", torch.zeros(()))

    def fit(self, known: Look, held: Look) -> None:
        self.usual.copy_((mean_error(held) + TINY).log().median())

    def forward(self, look: Look, memory: Memory) -> tuple[Tensor, Memory]:
        return ((mean_error(look) + TINY).log() - self.usual).abs(), {}
