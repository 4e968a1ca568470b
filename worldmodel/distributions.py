"""Distributions of latents, rewards, continues and actions; logits are cast to float32 first."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.accel import fused

Scale = Callable[[Tensor], Tensor]


def symlog(x: Tensor) -> Tensor:
    """sign(x) * log(1 + |x|)."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """The inverse of symlog."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


def exponential_(x: Tensor) -> Tensor:
    """Fill x with draws of the exponential distribution of rate 1 and return it.

    As minus the logarithm of uniform numbers: on a CPU five times as fast as torch's own.
    """
    return x.uniform_().log_().neg_()


def sample_one_hot(probs: Tensor) -> Tensor:
    """One-hot draw [..., K] from probabilities [..., K], by the race of exponential clocks."""
    index = (probs / exponential_(torch.empty_like(probs))).argmax(-1, keepdim=True)
    return torch.zeros_like(probs).scatter_(-1, index, 1.0)


class OneHot:
    """Categorical over one-hot vectors [..., K] with a share `unimix` of uniform mixed in.

    The same mixed probabilities serve sampling, KL and the straight-through gradient.
    `mask` [..., K] rules classes out (zero = forbidden); a row with none allowed counts as free.
    """

    def __init__(self, logits: Tensor, unimix: float = 0.0, mask: Tensor | None = None) -> None:
        logits = logits.float()
        if mask is not None:
            allowed = (mask > 0.5) | ~(mask > 0.5).any(-1, keepdim=True)
            logits = logits.masked_fill(~allowed, -1e9)
            uniform = allowed.float() / allowed.sum(-1, keepdim=True)
        else:
            uniform = 1.0 / logits.shape[-1]  # type: ignore[assignment]
        if unimix:
            self.probs = (1.0 - unimix) * torch.softmax(logits, -1) + unimix * uniform
            # Forbidden classes have probability 0; the clamp keeps their log finite.
            self.log_probs = torch.log(
                self.probs.clamp_min(1e-30) if mask is not None else self.probs
            )
        else:
            self.log_probs = torch.log_softmax(logits, -1)
            self.probs = self.log_probs.exp()

    def detach(self) -> OneHot:
        """The same distribution, through which no gradient flows."""
        other = copy.copy(self)
        other.probs, other.log_probs = self.probs.detach(), self.log_probs.detach()
        return other

    def sample(self) -> Tensor:
        """One-hot draw [..., K] with straight-through gradient to the probabilities."""
        hot = sample_one_hot(self.probs.detach())
        if self.probs.requires_grad:
            hot = hot + (self.probs - self.probs.detach())
        return hot

    def mode(self) -> Tensor:
        """The most probable class as a one-hot [..., K]."""
        index = self.probs.argmax(-1, keepdim=True)
        return torch.zeros_like(self.probs).scatter_(-1, index, 1.0)

    def log_prob(self, hot: Tensor) -> Tensor:
        """Log probability [...] of one-hot [..., K]."""
        return (self.log_probs * hot).sum(-1)

    def entropy(self) -> Tensor:
        """In nats, [...]."""
        return -(self.probs * self.log_probs).sum(-1)

    def kl(self, other: OneHot) -> Tensor:
        """KL(self || other) in nats, [...]."""
        return (self.probs * (self.log_probs - other.log_probs)).sum(-1)


class FactoredOneHot:
    """Independent categoricals whose one-hot vectors stand side by side in [..., A]."""

    def __init__(
        self,
        logits: Tensor,
        sizes: Sequence[int],
        unimix: float = 0.0,
        mask: Tensor | None = None,
    ) -> None:
        self.sizes = list(sizes)
        masks = [None] * len(sizes) if mask is None else mask.split(self.sizes, -1)
        self.parts = [
            OneHot(part, unimix, m)
            for part, m in zip(logits.split(self.sizes, -1), masks, strict=True)
        ]

    def sample(self) -> Tensor:
        """[..., A]."""
        return torch.cat([part.sample() for part in self.parts], -1)

    def mode(self) -> Tensor:
        """[..., A]."""
        return torch.cat([part.mode() for part in self.parts], -1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Summed over factors, [...]."""
        pairs = zip(self.parts, action.split(self.sizes, -1), strict=True)
        return torch.stack([part.log_prob(a) for part, a in pairs]).sum(0)

    def entropy(self) -> Tensor:
        """Summed over factors, [...]."""
        return torch.stack([part.entropy() for part in self.parts]).sum(0)


class Normal:
    """Independent normals over the last axis of mean [..., N] and std (broadcast)."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.mean, self.std = mean.float(), std.float()

    def detach(self) -> Normal:
        """The same distribution, through which no gradient flows."""
        return Normal(self.mean.detach(), self.std.detach())

    def repeated(self, count: int, wider: float = 1.0) -> Normal:
        """[..., count, N]: as often, with `wider` times the deviation."""
        std = wider * self.std.expand_as(self.mean)
        return Normal(_repeated(self.mean, count), _repeated(std, count))

    def sample(self) -> Tensor:
        """Reparameterised draw [..., N]."""
        return self.mean + self.std * torch.randn_like(self.mean)

    def mode(self) -> Tensor:
        """The mean [..., N]."""
        return self.mean

    def log_prob(self, value: Tensor) -> Tensor:
        """Summed over the last axis, [...]."""
        z = (value - self.mean) / self.std
        return (-0.5 * z.square() - self.std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """In nats, summed over the last axis, [...]."""
        return (self.std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def kl(self, other: Normal) -> Tensor:
        """KL(self || other) in nats, summed over the last axis, [...]."""
        ratio = (self.std / other.std).square()
        shift = ((other.mean - self.mean) / other.std).square()
        return 0.5 * (ratio + shift - ratio.log() - 1.0).sum(-1)


def _repeated(x: Tensor, count: int) -> Tensor:
    """[..., N] -> [..., count, N]."""
    return x.unsqueeze(-2).expand(*x.shape[:-1], count, x.shape[-1])


class TanhNormal:
    """tanh(u) of u ~ N(mean, std) [..., N], with values in (-1, 1).

    mode: tanh(mean), the value at the most likely u.
    """

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean, self.log_std = mean.float(), log_std.float()

    def repeated(self, count: int, wider: float = 1.0) -> TanhNormal:
        """[..., count, N]: as often, with `wider` times the deviation."""
        log_std = self.log_std + math.log(wider)
        return TanhNormal(_repeated(self.mean, count), _repeated(log_std, count))

    def draw(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The reparameterised value [..., N] that standard normal noise [..., N] makes, and its
        log density [...]. Haarnoja et al., "Soft Actor-Critic" (2018), appendix C."""
        u = torch.addcmul(self.mean, self.log_std.exp(), noise)
        normal = -0.5 * noise.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        # log(1 - tanh(u)^2), exact for large u too.
        slope = 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))
        return torch.tanh(u), (normal - slope).sum(-1)

    def sample(self) -> Tensor:
        """Reparameterised draw [..., N]."""
        return torch.tanh(self.mean + self.log_std.exp() * torch.randn_like(self.mean))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density [...] of values [..., N]; beyond tanh(+-4) they count as there."""
        u = torch.atanh(value.clamp(-0.9993, 0.9993))
        z = (u - self.mean) * (-self.log_std).exp()
        normal = -0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        slope = 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))
        return (normal - slope).sum(-1)

    def entropy(self) -> Tensor:
        """In nats [...], of u: that of the value has no closed form."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def mode(self) -> Tensor:
        """tanh(mean) [..., N]."""
        return torch.tanh(self.mean)


@functools.lru_cache
def _bins(count: int, device: torch.device) -> Tensor:
    """`count` (odd) points symexp(linspace(-20, 20)), symmetric to the last bit."""
    # The cache outlives the mode of its first caller, and training needs ordinary tensors.
    with torch.inference_mode(False):
        half = symexp(torch.linspace(-20.0, 0.0, (count - 1) // 2 + 1, dtype=torch.float32))
        return torch.cat([half, -half[:-1].flip(0)]).to(device)


class TwoHot:
    """A scalar as a categorical over exponentially spaced bins; targets are linear in raw space.

    logits: [..., bins], an odd number.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits.float()
        if self.logits.shape[-1] % 2 == 0:
            raise ValueError(f"TwoHot needs an odd number of bins, got {self.logits.shape[-1]}.")
        self.bins = _bins(self.logits.shape[-1], logits.device)

    @property
    def mean(self) -> Tensor:
        """[...]; equal logits give exactly 0."""
        return fused.two_hot_mean(self.logits, self.bins)

    def mode(self) -> Tensor:
        """The mean [...]: what a head predicts."""
        return self.mean

    def log_prob(self, target: Tensor) -> Tensor:
        """Negative cross-entropy [...] to the two-hot encoding of target [...]."""
        return self.log_probs(target.unsqueeze(0)).squeeze(0)

    def log_probs(self, targets: Tensor) -> Tensor:
        """The same [R, ...] for R targets [R, ...] of each distribution, at the cost of one."""
        target = targets.float().contiguous()
        last = self.bins.shape[0] - 1
        above = torch.searchsorted(self.bins, target, right=True).clamp_(1, last)
        low, high = self.bins[above - 1], self.bins[above]
        weight = ((target - low) / (high - low)).clamp_(0.0, 1.0)  # of the bin above
        return fused.two_hot_log_prob(self.logits, above, weight)


class Bernoulli:
    """Independent coins with logits [...] (or [..., N]: log_prob is then summed by the head)."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits.float()

    @property
    def mean(self) -> Tensor:
        """P(1)."""
        return torch.sigmoid(self.logits)

    def mode(self) -> Tensor:
        """P(1): what a head predicts."""
        return self.mean

    def log_prob(self, target: Tensor) -> Tensor:
        """Log likelihood of targets in [0, 1] (soft ones too)."""
        return -F.binary_cross_entropy_with_logits(self.logits, target.float(), reduction="none")


class Point:
    """A prediction without spread: log_prob is minus the squared error, no half, no constant.

    mean: [..., N]. symlog_target: the target passes symlog before it is compared (vectors).
    """

    def __init__(self, mean: Tensor, symlog_target: bool = False) -> None:
        self.raw = mean.float()
        self.symlog_target = symlog_target

    @property
    def mean(self) -> Tensor:
        """In the target's own units."""
        return symexp(self.raw) if self.symlog_target else self.raw

    def mode(self) -> Tensor:
        """The mean."""
        return self.mean

    def log_prob(self, target: Tensor) -> Tensor:
        """Minus the squared error summed over the last axis, [...]."""
        target = symlog(target.float()) if self.symlog_target else target.float()
        return -(self.raw - target).square().sum(-1)


def squash(x: Tensor) -> Tensor:
    """sign(x) (sqrt(|x| + 1) - 1) + 0.001 x: Pohlen et al., "Observe and look further" (2018)."""
    return torch.sign(x) * (torch.sqrt(x.abs() + 1.0) - 1.0) + 0.001 * x


def unsquash(y: Tensor) -> Tensor:
    """The inverse of `squash`."""
    root = torch.sqrt(1.0 + 0.004 * (y.double().abs() + 1.001))  # float32 is wrong by 1e-4 here
    return torch.sign(y) * (((root - 1.0) / 0.002).square() - 1.0).to(y.dtype)


class Support(torch.nn.Module):
    """Scalars as categories: the two bins beside each, by its distance to them, of evenly spaced
    ones from -limit to limit in `squash` (MuZero) or symlog (symlog, symexp: TD-MPC2)."""

    points: Tensor

    def __init__(
        self, limit: float, bins: int, scale: Scale = squash, back: Scale = unsquash
    ) -> None:
        super().__init__()
        self.limit, self.bins, self.scale, self.back = limit, bins, scale, back
        self.register_buffer("points", torch.linspace(-limit, limit, bins), persistent=False)

    def mean(self, logits: Tensor) -> Tensor:
        """What logits [..., bins] say: the mean of the bins, on the scalars' scale, [...]."""
        return self.back(torch.softmax(logits.float(), -1) @ self.points)

    def encode(self, x: Tensor) -> Tensor:
        """Probabilities [..., bins] whose mean is x [...]; what lies outside counts as the end."""
        y = self.scale(x.float()).clamp(-self.limit, self.limit)
        place = (y + self.limit) * ((self.bins - 1) / (2 * self.limit))
        low = place.floor().clamp(max=self.bins - 2).long()
        share = (place - low).unsqueeze(-1)
        low, hot = low.unsqueeze(-1), torch.zeros(*x.shape, self.bins, device=x.device)
        return hot.scatter_(-1, low, 1 - share).scatter_(-1, low + 1, share)

    def loss(self, logits: Tensor, x: Tensor) -> Tensor:
        """Cross entropy [...] of logits [..., bins] to scalars x [...] (leading axes may lack)."""
        return -(self.encode(x) * torch.log_softmax(logits.float(), -1)).sum(-1)
