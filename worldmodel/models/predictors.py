"""Networks that predict a Gaussian and know how sure they are of it: four ways to doubt.

    ensemble     members that differ in their first weights and in the rows they saw
    dropout      one network, whose hidden units are left out at random in every pass
    priors       an ensemble, each member plus a random function of its own that never learns
    evidential   one network that predicts how much evidence there is for its prediction

All answer alike, `Outcome` [K, N, O]: K opinions (members, or passes) of N inputs, O outputs.

Ensembles: Chua et al., "Deep Reinforcement Learning in a Handful of Trials" (2018); dropout: Gal
and Ghahramani (2016); priors: Osband et al. (2018); evidential: Amini et al. (2020).
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KINDS = ("ensemble", "dropout", "priors", "evidential")
WIDEST, NARROWEST = 0.5, -10.0  # where the learned bounds of a log-variance begin
EVIDENCE_WEIGHT = 0.01  # of the penalty for evidence of what is wrong


class Outcome(NamedTuple):
    """mean, variance [K, N, O]: of each opinion; the variance is that of the noise (aleatoric).
    doubt [K, N, O]: variance of the mean that an opinion itself admits (epistemic); 0 where only
    differences between opinions show it. goes_on [K, N]: logit of the episode's going on."""

    mean: Tensor
    variance: Tensor
    doubt: Tensor
    goes_on: Tensor


class SideBySide(nn.Module):
    """M MLPs with SiLU after each hidden layer, one batched product a layer: [M, N, in] -> [M, N,
    out]. dropout: share of the inputs of every layer that is left out, always."""

    def __init__(
        self, members: int, inputs: int, units: int, layers: int, outputs: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for a, b in itertools.pairwise([inputs] + [units] * layers + [outputs]):
            std = 1 / (2 * math.sqrt(a))
            weight = torch.empty(members, a, b)
            self.weights.append(nn.init.trunc_normal_(weight, 0.0, std, -2 * std, 2 * std))
            self.biases.append(torch.zeros(members, 1, b))

    def forward(self, x: Tensor, chosen: Tensor | None = None) -> Tensor:
        """chosen [E]: these members alone, for x [E, N, in]."""
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if chosen is not None:
                weight, bias = weight[chosen], bias[chosen]
            if self.dropout and i:
                x = F.dropout(x, self.dropout)
            x = torch.baddbmm(bias, x, weight)
            if i < last:
                x = F.silu(x) if x.requires_grad else F.silu(x, inplace=True)
        return x


class Predictor(nn.Module):
    """inputs [K, N, in] -> `Outcome`, in the scale of the targets that it learns.

    kind: of `KINDS`. members: networks, or passes of the one with dropout. probabilistic: whether
    the noise is learned; else every prediction has variance 0. prior_scale: of the functions that
    never learn. Raises ValueError for an unknown kind.
    """

    def __init__(
        self, kind: str, members: int, inputs: int, outputs: int, units: int, layers: int,
        probabilistic: bool = True, dropout: float = 0.0, prior_scale: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"Unknown kind of predictor '{kind}'. Known: {', '.join(KINDS)}.")
        self.kind, self.outputs, self.probabilistic = kind, outputs, probabilistic
        self.opinions = 1 if kind == "evidential" else members
        self.networks = members if kind in ("ensemble", "priors") else 1
        widths = outputs * (4 if kind == "evidential" else 2) + 1
        shape = (inputs, units, layers)
        drop = dropout if kind == "dropout" else 0.0
        self.body = SideBySide(self.networks, *shape, widths, drop)
        self.prior_scale = prior_scale
        self.prior: SideBySide | None = None
        if kind == "priors":
            self.prior = SideBySide(members, *shape, outputs).requires_grad_(False)
        self.widest = nn.Parameter(torch.full((outputs,), WIDEST))
        self.narrowest = nn.Parameter(torch.full((outputs,), NARROWEST))

    def forward(self, x: Tensor, chosen: Tensor | None = None) -> Outcome:
        """chosen [K]: networks that answer, one for each of the K; None: all."""
        raw = self._raw(x, chosen)
        if self.kind == "evidential":
            gamma, nu, alpha, beta, goes_on = self._evidence(raw)
            noise = beta / (alpha - 1)
            return Outcome(gamma, noise, noise / nu, goes_on)
        mean, log_variance, goes_on = self._gaussian(raw, x, chosen)
        nothing = mean.new_zeros(()).expand_as(mean)
        return Outcome(
            mean, log_variance.exp() if self.probabilistic else nothing, nothing, goes_on
        )

    def loss(self, x: Tensor, target: Tensor, goes_on: Tensor | None = None) -> Tensor:
        """Summed over the networks, each averaged over its rows: x [M, N, in], target [M, N, O],
        goes_on [M, N] 0 or 1 where that is learned."""
        raw = self._raw(x, None)
        if self.kind == "evidential":
            gamma, nu, alpha, beta, logit = self._evidence(raw)
            each = evidential_loss(gamma, nu, alpha, beta, target)
        else:
            mean, log_variance, logit = self._gaussian(raw, x, None)
            each = (mean - target).square()
            if self.probabilistic:
                each = each * torch.exp(-log_variance) + log_variance
        loss = each.mean((1, 2)).sum() + 0.01 * (self.widest.sum() - self.narrowest.sum())
        if goes_on is not None:
            ends = F.binary_cross_entropy_with_logits(logit, goes_on, reduction="none")
            loss = loss + ends.mean(1).sum()
        return loss

    def decay(self, rates: list[float]) -> Tensor:
        """Sum over layers of rate / 2 times the squares of its weights."""
        terms = [0.5 * r * w.square().sum() for r, w in zip(rates, self.body.weights, strict=True)]
        return torch.stack(terms).sum()

    def _raw(self, x: Tensor, chosen: Tensor | None) -> Tensor:
        if self.networks == 1:  # passes of one network are rows of it
            out: Tensor = self.body(x.flatten(0, 1).unsqueeze(0))
            return out.view(*x.shape[:2], -1)
        raw: Tensor = self.body(x, chosen)
        return raw

    def _gaussian(
        self, raw: Tensor, x: Tensor, chosen: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and bounded log-variance [K, N, O], and the logit [K, N]."""
        mean, free, goes_on = raw.split([self.outputs, self.outputs, 1], -1)
        if self.prior is not None:
            mean = mean + self.prior_scale * self.prior(x, chosen)
        below = self.widest - F.softplus(self.widest - free)
        return mean, self.narrowest + F.softplus(below - self.narrowest), goes_on.squeeze(-1)

    def _evidence(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """gamma, nu, alpha, beta of the normal-inverse-gamma [K, N, O], and the logit."""
        parts = raw.split([self.outputs] * 4 + [1], -1)
        gamma, goes_on = parts[0], parts[4].squeeze(-1)
        nu, alpha, beta = (F.softplus(part) + 1e-6 for part in parts[1:4])
        return gamma, nu, alpha + 1, beta, goes_on


def evidential_loss(gamma: Tensor, nu: Tensor, alpha: Tensor, beta: Tensor, y: Tensor) -> Tensor:
    """Negative log likelihood of the Student t that the evidence stands for, plus a penalty for
    evidence where the prediction is wrong. Amini et al., equations 8 and 9."""
    omega = 2 * beta * (1 + nu)
    error = y - gamma
    nll = 0.5 * torch.log(math.pi / nu) - alpha * torch.log(omega)
    nll = nll + (alpha + 0.5) * torch.log(nu * error.square() + omega)
    nll = nll + torch.lgamma(alpha) - torch.lgamma(alpha + 0.5)
    return nll + EVIDENCE_WEIGHT * error.abs() * (2 * nu + alpha)
