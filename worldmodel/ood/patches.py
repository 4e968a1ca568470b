"""Small things vanish in the mean of all pixels: the worst patch, each in its own unit.

A patch is a square of an eighth of the picture's height, half overlapping its neighbours. Where
the robot moves, the error of a patch is large on ordinary days too; so each place has its own
unit, the error that it seldom exceeds.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.ood.api import Memory
from worldmodel.ood.look import Look
from worldmodel.ood.part import Part, seen

SHARE = 8  # patches in the picture's height
SELDOM = 0.99  # the share of rows whose error at a place lies below that place's unit
LEAST = 0.25  # of the typical unit: no place is so still that nothing may ever happen there


def patch_errors(error: Tensor) -> Tensor:
    """Squared error [B, h, w] of each patch of an error image [B, C, H, W], averaged."""
    side = max(2, error.shape[-2] // SHARE)
    squared = error.square().mean(1, keepdim=True)
    return F.avg_pool2d(squared, side, max(1, side // 2)).squeeze(1)


class Patches(Part):
    """The worst patch of an error image; a subclass says of which. unit: [h, w]."""

    unit: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("unit", torch.zeros(0, 0))

    def image(self, look: Look) -> Tensor:
        """The error image [B, C, H, W]."""
        raise NotImplementedError

    def fit(self, known: Look, held: Look) -> None:
        errors = patch_errors(self.image(held))
        unit = torch.quantile(errors.flatten(1), SELDOM, dim=0).view(errors.shape[1:])
        self.unit = unit.clamp_min(LEAST * float(unit.median())).clamp_min(1e-9)

    def places(self, look: Look) -> Tensor:
        """How strange each place is [B, h, w], in its own unit."""
        return patch_errors(self.image(look)) / self.unit

    def forward(self, look: Look, memory: Memory) -> tuple[Tensor, Memory]:
        return self.places(look).flatten(1).amax(-1), {}


class WorstPatch(Patches):
    """Of the autoencoder's error."""

    name = "patch"
    needs: ClassVar = ("error",)

    def image(self, look: Look) -> Tensor:
        return seen(look.error)


class WorstForetold(Patches):
    """Of what the world model foretold: the picture it expected after the last action, against
    the one that came."""

    name = "forecast"
    needs: ClassVar = ("foretold",)

    def image(self, look: Look) -> Tensor:
        return seen(look.foretold)
