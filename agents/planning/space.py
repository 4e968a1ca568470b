"""Distributions over action sequences [B, H, A], continuous and discrete, and noise along time."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel.types import ActionSpec


class Sequences(NamedTuple):
    """Independent distributions of the steps of a plan.

    Continuous actions: mean and std [B, H, A] of normal distributions, whose draws are clipped.
    Discrete ones: mean [B, H, A] holds the probabilities of each factor's classes; std is unused.
    """

    mean: Tensor
    std: Tensor


class ActionSpace:
    """How sequences of one kind of action are drawn, resolved and fitted."""

    def __init__(self, action: ActionSpec) -> None:
        self.action = action
        self.discrete = action.kind == "discrete"

    def start(self, batch: int, horizon: int, std: float, device: torch.device) -> Sequences:
        """Zero mean with this std; discrete: uniform."""
        shape = (batch, horizon, self.action.size)
        mean = torch.zeros(shape, device=device)
        if self.discrete:
            mean = mean + self.uniform(device)
        return Sequences(mean, torch.full(shape, std, device=device))

    def uniform(self, device: torch.device) -> Tensor:
        """Probabilities [A] of classes that are all alike."""
        return torch.cat([torch.full((n,), 1.0 / n, device=device) for n in self.action.sizes])

    def draw(self, sequences: Sequences, noise: Tensor) -> Tensor:
        """Raw candidates [B, N, H, A] from standard normal noise of this shape. `resolve` makes
        actions of them, one step at a time, because a mask may depend on the steps before."""
        mean, std = sequences.mean.unsqueeze(1), sequences.std.unsqueeze(1)
        if not self.discrete:
            return mean + std * noise
        # A normal number made uniform, made Gumbel: the argmax below is a draw (Gumbel-max), and
        # noise that is correlated in time gives actions that are.
        uniform = torch.special.ndtr(noise).clamp(1e-7, 1 - 1e-7)
        return mean.log() - torch.log(-torch.log(uniform))

    def spread(self, noise: Tensor) -> Tensor:
        """Raw candidates of every action alike: continuous ones uniform within their bounds."""
        if self.discrete:
            return -torch.log(-torch.log(torch.special.ndtr(noise).clamp(1e-7, 1 - 1e-7)))
        return 2 * torch.special.ndtr(noise) - 1

    def resolve(self, raw: Tensor, mask: Tensor | None) -> Tensor:
        """Actions [..., A] that are executed: clipped; discrete: the largest class of each factor
        that mask [..., A] allows, one-hot. A factor that allows none counts as free."""
        if not self.discrete:
            return self.action.clip(raw)
        parts = []
        masks = (
            [None] * len(self.action.sizes) if mask is None else mask.split(self.action.sizes, -1)
        )
        for part, allowed in zip(raw.split(self.action.sizes, -1), masks, strict=True):
            if allowed is not None:
                free = (allowed > 0.5) | ~(allowed > 0.5).any(-1, keepdim=True)
                part = part.masked_fill(~free, -torch.inf)
            hot = torch.zeros_like(part)
            parts.append(hot.scatter_(-1, part.argmax(-1, keepdim=True), 1.0))
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def fit(
        self,
        before: Sequences,
        actions: Tensor,
        weights: Tensor,
        momentum: float,
        smoothing: float,
        std: tuple[float, float],
    ) -> Sequences:
        """Fitted to actions [B, N, H, A] with weights [B, N] that sum to 1; where they are all 0,
        as before. momentum: share of what was before. smoothing: share of uniform, without which
        a class that no elite took never returns. std: bounds of a continuous one.
        """
        usable = weights.sum(1) > 0  # [B]
        w = weights[:, :, None, None]
        mean = (w * actions).sum(1)
        deviation = (w * (actions - mean.unsqueeze(1)).square()).sum(1).sqrt()
        if self.discrete:
            mean = (1 - smoothing) * mean + smoothing * self.uniform(mean.device)
        mean = momentum * before.mean + (1 - momentum) * mean
        deviation = (momentum * before.std + (1 - momentum) * deviation).clamp(*std)
        keep = usable[:, None, None]
        return Sequences(
            torch.where(keep, mean, before.mean), torch.where(keep, deviation, before.std)
        )


def shifted(x: Tensor) -> Tensor:
    """[..., H, A] one step later, the last entry repeated."""
    return torch.cat([x[..., 1:, :], x[..., -1:, :]], -2)


def white(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Standard normal noise from torch's generator."""
    return torch.randn(shape, device=device)


def coloured(shape: tuple[int, int, int, int], beta: float, device: torch.device) -> Tensor:
    """Normal noise [B, N, H, A] whose power along time falls with frequency^-beta; each entry has
    (nearly) unit variance. beta=0 is white.

    Timmer and Koenig, "On generating power law noise" (1995), as in Pinneri et al., iCEM (2020):
    amplitudes f^(-beta/2) with f_0 := f_1, complex normal coefficients, real at DC and Nyquist,
    divided by 2 sqrt(sum_{k>=1} w_k^2) / H with the Nyquist weight halved where H is even.
    """
    batch, count, horizon, size = shape
    if beta == 0 or horizon < 2 or 0 in shape:  # MKL transforms no empty array
        return white(shape, device)
    frequency = torch.fft.rfftfreq(horizon, device=device)
    frequency[0] = frequency[1]
    amplitude = frequency ** (-beta / 2)
    weights = amplitude[1:].clone()
    if horizon % 2 == 0:
        weights[-1] *= 0.5
    sigma = 2 * math.sqrt(float(weights.square().sum())) / horizon
    bins = len(frequency)
    real, imaginary = torch.randn(2, batch, count, size, bins, device=device)
    imaginary[..., 0] = 0.0
    real[..., 0] *= math.sqrt(2.0)
    if horizon % 2 == 0:
        imaginary[..., -1] = 0.0
        real[..., -1] *= math.sqrt(2.0)
    series = torch.fft.irfft(torch.complex(real, imaginary) * amplitude, n=horizon, dim=-1)
    return (series / sigma).transpose(-1, -2)
