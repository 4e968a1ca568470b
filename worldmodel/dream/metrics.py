"""How far a dream is from what happened, and whether what it promises comes true."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.plots import Curve

WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian


def mse(truth: Tensor, predicted: Tensor, keep: int = 2) -> Tensor:
    """Mean squared difference over all but the first `keep` axes."""
    error = (truth.float() - predicted.float()).square()
    return error.flatten(keep).mean(-1) if error.dim() > keep else error


def ssim(truth: Tensor, predicted: Tensor) -> Tensor:
    """Structural similarity [...] of images [..., H, W, C] in [0, 1]; 1 where they are equal.

    The mean over channels and over every place where the Gaussian window (11 x 11, standard
    deviation 1.5) lies wholly inside. Raises ValueError for smaller images. Wang, Bovik, Sheikh
    and Simoncelli, "Image quality assessment" (2004), eq. 13, with C1 = 0.01^2, C2 = 0.03^2.
    """
    lead, (height, width, channels) = truth.shape[:-3], truth.shape[-3:]
    if min(height, width) < WINDOW:
        raise ValueError(f"SSIM needs images of at least {WINDOW} pixels, got {height}x{width}.")

    def blurred(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))

    def planes(x: Tensor) -> Tensor:
        """[N * C, 1, H, W]; double, because the variances are differences of near equals."""
        flat = x.reshape(-1, height, width, channels).double()
        return flat.permute(0, 3, 1, 2).reshape(-1, 1, height, width)

    a, b = planes(truth), planes(predicted)
    offset = torch.arange(WINDOW, dtype=a.dtype, device=a.device) - WINDOW // 2
    kernel = torch.softmax(-offset.square() / (2 * SIGMA**2), 0)
    mean_a, mean_b = blurred(a), blurred(b)
    var_a = blurred(a * a) - mean_a.square()
    var_b = blurred(b * b) - mean_b.square()
    both = blurred(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    value = value / ((mean_a.square() + mean_b.square() + c1) * (var_a + var_b + c2))
    return value.reshape(*lead, -1).mean(-1).float()


def band(name: str, values: np.ndarray) -> Curve:
    """Median over starts [N, H] against the horizon 1 ... H, with the 10 to 90% band."""
    low, middle, high = np.percentile(values, (10, 50, 90), axis=0)
    return Curve(name, np.arange(1, values.shape[1] + 1), middle, low, high)


def discounted(reward: Tensor, cont: Tensor) -> Tensor:
    """Return [N] of rewards [N, H]: r_1 + c_1 r_2 + c_1 c_2 r_3 + ..., with cont [N, H] the
    discounted probabilities of going on after each."""
    weight = torch.cumprod(torch.cat([torch.ones_like(cont[:, :1]), cont[:, :-1]], 1), 1)
    return (weight * reward).sum(1)


class Calibration(NamedTuple):
    """Least-squares line real = slope * imagined + intercept, and Pearson's correlation; NaN
    where one side does not vary. bias: mean of imagined minus real."""

    correlation: float
    slope: float
    intercept: float
    bias: float


def calibration(imagined: np.ndarray, real: np.ndarray) -> Calibration:
    """Whether what was promised, [N], is what came, [N]: slope 1 and intercept 0 are honest."""
    x, y = imagined - imagined.mean(), real - real.mean()
    bias = float(imagined.mean() - real.mean())
    # A spread that is rounding alone says nothing.
    least = 1e-6 * max(1.0, float(np.abs(real).max()))
    if x.std() < least or y.std() < least:
        return Calibration(np.nan, np.nan, np.nan, bias)
    slope = float((x * y).sum() / (x * x).sum())
    correlation = float((x * y).mean() / (x.std() * y.std()))
    return Calibration(correlation, slope, float(real.mean() - slope * imagined.mean()), bias)
