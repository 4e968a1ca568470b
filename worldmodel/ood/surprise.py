"""What the world model did not expect: normal frames of a world that moves otherwise."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from worldmodel.ood.api import Memory
from worldmodel.ood.look import Look
from worldmodel.ood.part import Part, seen
from worldmodel.rssm.core import RSSM


class Surprise(Part):
    """KL(posterior || prior) in nats: what the observation told beyond what state and action
    had. core: the world model's; its weights are not the part's own."""

    name = "surprise"
    needs: ClassVar = ("prior", "posterior")

    def __init__(self, core: RSSM) -> None:
        super().__init__()
        self._core = [core]  # in a list, so that it is not registered twice

    def forward(self, look: Look, memory: Memory) -> tuple[Tensor, Memory]:
        return self._core[0].kl(seen(look.posterior), seen(look.prior)), {}
