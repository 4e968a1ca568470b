"""How far the nearest ordinary codes are."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from worldmodel.ood.api import Memory
from worldmodel.ood.features import Standard, features
from worldmodel.ood.look import Look
from worldmodel.ood.part import Part, rows_of

BANK = 2048  # rows that are remembered
NEAREST = 5


class Neighbours(Part):
    """Distance to the fifth nearest of the remembered rows, in standardised features.

    size: N, of the code. Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors"
    (ICML 2022).
    """

    name = "neighbours"
    needs: ClassVar = ("mean", "std", "error")
    bank: Tensor
    squares: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.standard = Standard(size + 2)
        self.register_buffer("bank", torch.zeros(size + 2, 0))  # [F, R]
        self.register_buffer("squares", torch.zeros(0))

    def fit(self, known: Look, held: Look) -> None:
        self.standard.fit(features(held))  # errors of rows that were not trained on are larger
        bank = self.standard(features(rows_of(held, BANK)))
        self.bank, self.squares = bank.T.contiguous(), bank.square().sum(-1)

    def forward(self, look: Look, memory: Memory) -> tuple[Tensor, Memory]:
        values = self.standard(features(look))
        squared = values.square().sum(-1, keepdim=True) - 2 * values @ self.bank + self.squares
        nearest = min(NEAREST, self.bank.shape[1])
        far = squared.topk(nearest, dim=-1, largest=False).values.amax(-1)
        return far.clamp_min(0).sqrt(), {}
