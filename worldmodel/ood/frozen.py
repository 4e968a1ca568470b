"""A frozen camera shows normal pictures: only that they do not change gives it away."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from worldmodel.ood.api import Memory
from worldmodel.ood.look import Look
from worldmodel.ood.part import Part, seen

SAME = 0.5 / 255  # less than one level of one pixel


class Frozen(Part):
    """How many ticks in a row the picture has been the same, to the last pixel."""

    name = "frozen"
    needs: ClassVar = ("image",)
    grain: ClassVar = 2.0  # one or two repetitions happen

    def __init__(self, shape: tuple[int, int, int]) -> None:
        """shape: (C, H, W)."""
        super().__init__()
        self.shape = shape

    def memory(self, batch_size: int) -> Memory:
        return {
            "last": torch.zeros(batch_size, *self.shape),
            "begun": torch.zeros(batch_size),
            "run": torch.zeros(batch_size),
        }

    def forward(self, look: Look, memory: Memory) -> tuple[Tensor, Memory]:
        image = seen(look.image)
        change = (image - memory["last"]).abs().flatten(1).amax(-1)
        same = (change < SAME).to(image.dtype) * memory["begun"]
        run = same * (memory["run"] + 1)
        return run, {"last": image, "begun": torch.ones_like(run), "run": run}
