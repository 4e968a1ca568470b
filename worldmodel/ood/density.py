"""How far from everything ordinary: a mixture of normals, a normalising flow, nearest neighbours.

All three look at the same features: the autoencoder's code and how well it did where there are
images, and the vectors as they are, standardised. Mixture and flow are fitted by a library and
asked here with nothing but tensors.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from worldmodel import progress, seeding
from worldmodel.distributions import symlog
from worldmodel.ood.api import Memory
from worldmodel.ood.pictures import TINY, code_length, mean_error
from worldmodel.ood.scorer import Look, Part

ROWS = 4096  # that a density is fitted on
COMPONENTS = 8  # of the mixture
RIDGE = 1e-3  # added to the variances, in units of the standardised features
FLOW_UPDATES, FLOW_BATCH, FLOW_RATE = 600, 256, 2e-3
BANK = 2048  # rows that the neighbours are looked for in
NEAREST = 5


def features(look: Look) -> Tensor:
    """[B, F]: the code [N], its log error and its log KL where there are images; then vectors."""
    parts = []
    if look.mean is not None:
        error = (mean_error(look) + TINY).log()
        length = code_length(look).clamp_min(TINY).log()
        parts += [look.mean, error.unsqueeze(-1), length.unsqueeze(-1)]
    return torch.cat([*parts, *([] if look.vector is None else [look.vector])], -1)


class _OfFeatures(Part):
    """size: F. centre, spread: mean and standard deviation of the held-out features."""

    centre: Tensor
    spread: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))

    def standard(self, look: Look) -> Tensor:
        """Features [B, F] with mean 0 and standard deviation 1 on the rows of fitting."""
        return (features(look) - self.centre) / self.spread

    def fit(self, held: Look) -> None:
        values = features(held)  # errors of rows that were trained on would be smaller
        self.centre.copy_(values.mean(0))
        self.spread.copy_(values.std(0).clamp_min(1e-6))


class Mixture(_OfFeatures):
    """Minus the log density of a Gaussian mixture with full covariances.

    Evaluated as a sum of squares after one product with the Cholesky factors of the precisions.
    """

    name = "density"
    log_weight: Tensor
    centres: Tensor
    factors: Tensor

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.register_buffer("log_weight", torch.zeros(COMPONENTS))  # normalisation included
        self.register_buffer("centres", torch.zeros(COMPONENTS, self.size))  # times the factors
        self.register_buffer("factors", torch.zeros(COMPONENTS, self.size, self.size))

    def fit(self, held: Look) -> None:
        from sklearn.mixture import GaussianMixture

        super().fit(held)
        values = self.standard(held)
        count = max(1, min(COMPONENTS, len(values) // (2 * self.size)))
        mixture = GaussianMixture(
            count, covariance_type="full", reg_covar=RIDGE, random_state=0, max_iter=100
        ).fit(values[:ROWS].double().numpy())
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
        values = self.standard(look)  # [B, F]
        flat = self.factors.permute(1, 0, 2).flatten(1)  # [F, K * F]
        away = (values @ flat).view(-1, COMPONENTS, self.size) - self.centres
        return -torch.logsumexp(self.log_weight - 0.5 * away.square().sum(-1), -1), {}


class Flow(_OfFeatures):
    """Minus the log density of a masked autoregressive flow (zuko).

    Of rows that repeat (a world in which every episode is alike) there is no density; so each is
    blurred as the mixture's are, by a variance of RIDGE. What lies far away comes nearer (symlog):
    the flow's scales, exponentials of what it sees, would leave the range of numbers.
    """

    name = "flow"

    def __init__(self, size: int) -> None:
        super().__init__(size)
        import zuko

        self.flow: Any = zuko.flows.MAF(self.size, transforms=2, hidden_features=(64, 64))

    def standard(self, look: Look) -> Tensor:
        return symlog(super().standard(look))

    def fit(self, held: Look) -> None:
        super().fit(held)
        values = self.standard(held)
        self.flow.requires_grad_(True)
        optim = torch.optim.Adam(self.flow.parameters(), FLOW_RATE)
        with torch.enable_grad(), seeding.Stream(0):
            for _ in progress.each(range(FLOW_UPDATES), "fitting the flow, update"):
                batch = values[torch.randint(len(values), (FLOW_BATCH,))]
                batch = batch + RIDGE**0.5 * torch.randn_like(batch)
                loss = -self.flow().log_prob(batch).mean()
                optim.zero_grad()
                loss.backward()
                optim.step()
        self.flow.requires_grad_(False)

    def forward(self, look: Look, memory: Memory) -> tuple[Tensor, Memory]:
        return -self.flow().log_prob(self.standard(look)), {}


class Neighbours(_OfFeatures):
    """Distance to the fifth nearest of the remembered rows.

    Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors" (ICML 2022).
    """

    name = "neighbours"
    bank: Tensor
    squares: Tensor

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.register_buffer("bank", torch.zeros(size, 0))  # [F, R]
        self.register_buffer("squares", torch.zeros(0))

    def fit(self, held: Look) -> None:
        super().fit(held)
        bank = self.standard(held)
        if len(bank) > BANK:
            bank = bank[
                torch.randperm(len(bank), generator=torch.Generator().manual_seed(0))[:BANK]
            ]
        self.bank, self.squares = bank.T.contiguous(), bank.square().sum(-1)

    def forward(self, look: Look, memory: Memory) -> tuple[Tensor, Memory]:
        values = self.standard(look)
        squared = values.square().sum(-1, keepdim=True) - 2 * values @ self.bank + self.squares
        nearest = min(NEAREST, self.bank.shape[1])
        far = squared.topk(nearest, dim=-1, largest=False).values.amax(-1)
        return far.clamp_min(0).sqrt(), {}
