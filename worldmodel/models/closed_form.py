"""Predictors for small data that are fitted at once: a Gaussian process, and a line.

Both come from scikit-learn, one regression for each output, and predict with tensors alone, the
process in float64: its doubt is what little two nearly equal numbers leave. They answer as the
networks of `worldmodel.models.predictors` do, as one opinion that knows its doubt.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel.models.predictors import Outcome

MOST = 300  # rows that a Gaussian process remembers: fitting it takes their number to the third
SURE = 20.0  # logit of an episode's going on
CLOSED = ("process", "linear")


class Process(nn.Module):
    """Gaussian processes with a squared-exponential kernel, a length for each input, and noise.
    Of more than MOST rows every n-th counts. Rasmussen and Williams (2006), algorithm 2.1."""

    networks, opinions = 1, 1
    seen: Tensor
    lengths: Tensor
    scale: Tensor
    noise: Tensor
    weights: Tensor
    whiten: Tensor  # the inverse of the kernel matrix's Cholesky factor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        for name, shape in {
            "seen": (MOST, inputs), "lengths": (outputs, inputs), "scale": (outputs,),
            "noise": (outputs,), "weights": (outputs, MOST), "whiten": (outputs, MOST, MOST),
        }.items():  # fmt: skip
            fill = torch.zeros if name in ("seen", "weights", "whiten") else torch.ones
            self.register_buffer(name, fill(shape, dtype=torch.float64))

    def forward(self, x: Tensor, chosen: None = None) -> Outcome:
        """x [1, N, in]."""
        lengths = self.lengths[:, None]
        apart = torch.cdist(x.double() / lengths, self.seen / lengths)  # [O, N, MOST]
        near = self.scale[:, None, None] * torch.exp(-0.5 * apart.square())
        mean = torch.einsum("onm, om -> no", near, self.weights)
        explained = torch.einsum("onm, okm -> onk", near, self.whiten).square().sum(-1).T
        doubt = (self.scale - explained).clamp_min(0.0)
        noise = self.noise.expand_as(mean)
        parts = mean, noise, doubt, torch.full_like(mean[:, 0], SURE)
        return Outcome(*(part.to(x.dtype).unsqueeze(0) for part in parts))

    def fit(self, x: Tensor, target: Tensor) -> dict[str, float]:
        """Remember rows [N, in], [N, O], and choose lengths and noise by the likelihood."""
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

        pick = np.unique(np.linspace(0, len(x) - 1, min(MOST, len(x))).round().astype(int))
        rows, said = (v[torch.from_numpy(pick)].double().cpu().numpy() for v in (x, target))
        count = len(rows)
        for buffer in self.buffers():
            buffer.zero_()
        self.seen[:count] = torch.from_numpy(rows)
        for o in range(said.shape[1]):
            kernel = ConstantKernel(1.0, (1e-3, 1e3)) * RBF(
                np.ones(rows.shape[1]), (1e-1, 1e3)
            ) + WhiteKernel(1e-2, (1e-6, 1e1))
            found: Any = GaussianProcessRegressor(kernel, alpha=1e-8)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a length at its bound: an input that says nothing
                found.fit(rows, said[:, o])
            k = found.kernel_
            self.scale[o], self.noise[o] = k.k1.k1.constant_value, k.k2.noise_level
            self.lengths[o] = torch.as_tensor(k.k1.k2.length_scale)
            self.weights[o, :count] = torch.from_numpy(found.alpha_)
            self.whiten[o, :count, :count] = torch.from_numpy(np.linalg.inv(found.L_))
        return {"model/points": float(count)}


class Linear(nn.Module):
    """Bayesian ridge regression: Tipping (2001), as scikit-learn has it."""

    networks, opinions = 1, 1
    slope: Tensor
    offset: Tensor
    covariance: Tensor
    noise: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("slope", torch.zeros(outputs, inputs))
        self.register_buffer("offset", torch.zeros(outputs))
        self.register_buffer("covariance", torch.eye(inputs).repeat(outputs, 1, 1))
        self.register_buffer("noise", torch.ones(outputs))

    def forward(self, x: Tensor, chosen: None = None) -> Outcome:
        """x [1, N, in]."""
        mean = x @ self.slope.T + self.offset
        doubt = torch.einsum("kni, oij, knj -> kno", x, self.covariance, x)
        return Outcome(mean, self.noise.expand_as(mean), doubt, torch.full_like(mean[..., 0], SURE))

    def fit(self, x: Tensor, target: Tensor) -> dict[str, float]:
        """Fit to rows [N, in], [N, O]."""
        from sklearn.linear_model import BayesianRidge

        rows, said = (v.double().cpu().numpy() for v in (x, target))
        for o in range(said.shape[1]):
            found: Any = BayesianRidge().fit(rows, said[:, o])
            self.slope[o] = torch.from_numpy(found.coef_)
            self.offset[o] = float(found.intercept_)
            self.covariance[o] = torch.from_numpy(found.sigma_)
            self.noise[o] = 1.0 / float(found.alpha_)
        return {}


def closed_form(kind: str, inputs: int, outputs: int) -> nn.Module:
    """The predictor of one of `CLOSED`."""
    return Process(inputs, outputs) if kind == "process" else Linear(inputs, outputs)
