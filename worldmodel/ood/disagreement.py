"""An ensemble of one-step predictors that do not agree has not been here before."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from worldmodel.models.ensemble import Ensemble
from worldmodel.ood.api import Memory
from worldmodel.ood.look import Look
from worldmodel.ood.part import Part, seen


class Disagreement(Part):
    """The variance between the members about the step that led here, from the state before it.

    ensemble: the world model's; its weights are not the part's own. feat: F, of its features.
    """

    name = "disagreement"
    needs: ClassVar = ("state", "action")

    def __init__(self, ensemble: Ensemble, feat: int) -> None:
        super().__init__()
        self._ensemble, self.feat = [ensemble], feat

    def memory(self, batch_size: int) -> Memory:
        return {"feat": torch.zeros(batch_size, self.feat), "begun": torch.zeros(batch_size)}

    def forward(self, look: Look, memory: Memory) -> tuple[Tensor, Memory]:
        assert look.state is not None
        spread = self._ensemble[0].disagreement(memory["feat"], seen(look.action))
        score = spread * memory["begun"]  # nothing led to the first row
        return score, {"feat": look.state.feat, "begun": torch.ones_like(score)}
