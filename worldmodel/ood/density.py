"""How likely a code is: a mixture of normals, or a normalising flow, over ordinary codes.

Both are fitted by a library and asked here with nothing but tensors.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from worldmodel import seeding
from worldmodel.ood.api import Memory
from worldmodel.ood.features import Standard, features
from worldmodel.ood.look import Look
from worldmodel.ood.part import Part

ROWS = 4096  # that a density is fitted on
COMPONENTS = 8  # of the mixture
RIDGE = 1e-3  # added to the variances, in units of the standardised features
FLOW_UPDATES, FLOW_BATCH, FLOW_RATE = 600, 256, 2e-3


class Mixture(Part):
    """Minus the log density of a Gaussian mixture with full covariances.

    size: N, of the code. Evaluated as a sum of squares after one product with the Cholesky
    factors of the precisions.
    """

    name = "density"
    needs: ClassVar = ("mean", "std", "error")
    log_weight: Tensor
    centres: Tensor
    factors: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size + 2
        self.standard = Standard(self.size)
        self.register_buffer("log_weight", torch.zeros(COMPONENTS))  # normalisation included
        self.register_buffer("centres", torch.zeros(COMPONENTS, self.size))  # times the factors
        self.register_buffer("factors", torch.zeros(COMPONENTS, self.size, self.size))

    def fit(self, known: Look, held: Look) -> None:
        from sklearn.mixture import GaussianMixture

        values = features(held)
        self.standard.fit(values)
        count = max(1, min(COMPONENTS, len(values) // (2 * self.size)))
        mixture = GaussianMixture(
            count, covariance_type="full", reg_covar=RIDGE, random_state=0, max_iter=100
        ).fit(self.standard(values)[:ROWS].double().numpy())
        factors = torch.as_tensor(mixture.precisions_cholesky_)  # [K, F, F]
        centres = torch.einsum("kf,kfg->kg", torch.as_tensor(mixture.means_), factors)
        logs = torch.as_tensor(mixture.weights_).log()
        logs = logs + factors.diagonal(dim1=1, dim2=2).log().sum(-1)
        logs = logs - 0.5 * self.size * math.log(2 * math.pi)
        # Fewer components than there is room for: the rest have no weight.
        self.log_weight.fill_(-1e9)[:count] = logs.float()
        self.centres.zero_()[:count] = centres.float()
        self.factors.zero_()[:count] = factors.float()

    def forward(self, look: Look, memory: Memory) -> tuple[Tensor, Memory]:
        values = self.standard(features(look))  # [B, F]
        flat = self.factors.permute(1, 0, 2).flatten(1)  # [F, K * F]
        away = (values @ flat).view(-1, COMPONENTS, self.size) - self.centres
        return -torch.logsumexp(self.log_weight - 0.5 * away.square().sum(-1), -1), {}


class Flow(Part):
    """Minus the log density of a masked autoregressive flow (zuko)."""

    name = "flow"
    needs: ClassVar = ("mean", "std", "error")

    def __init__(self, size: int) -> None:
        super().__init__()
        import zuko

        self.size = size + 2
        self.standard = Standard(self.size)
        self.flow: Any = zuko.flows.MAF(self.size, transforms=2, hidden_features=(64, 64))

    def fit(self, known: Look, held: Look) -> None:
        values = features(held)
        self.standard.fit(values)
        values = self.standard(values)
        self.flow.requires_grad_(True)
        optim = torch.optim.Adam(self.flow.parameters(), FLOW_RATE)
        with torch.enable_grad(), seeding.Stream(0):
            for _ in range(FLOW_UPDATES):
                batch = values[torch.randint(len(values), (FLOW_BATCH,))]
                loss = -self.flow().log_prob(batch).mean()
                optim.zero_grad()
                loss.backward()
                optim.step()
        self.flow.requires_grad_(False)

    def forward(self, look: Look, memory: Memory) -> tuple[Tensor, Memory]:
        values = self.standard(features(look))
        return -self.flow().log_prob(values), {}
