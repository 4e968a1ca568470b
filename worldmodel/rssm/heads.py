"""Heads that read the latent state: reward, continue, and whatever a user adds by name."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldmodel.config import check_ranges
from worldmodel.distributions import Bernoulli, Point, TwoHot
from worldmodel.nets import MLP, Linear
from worldmodel.types import Batch, EnvSpec

KINDS = ("twohot", "bernoulli", "mse", "symlog_mse")


@dataclass
class HeadConfig:
    """target: the batch key that the head learns ("reward", "cont", or an observation key); ""
    for a head whose weights come from elsewhere and stay as they are (docs/REWARDS.md).
    kind: twohot, bernoulli, mse or symlog_mse. layers: hidden layers. scale: weight of its loss.
    outscale: size of the last layer's initial weights. trains_latent: whether its gradient
    reaches the world model."""

    target: str = "reward"
    kind: str = "twohot"
    layers: int = 1
    scale: float = 1.0
    outscale: float = 1.0
    trains_latent: bool = True

    def __post_init__(self) -> None:
        check_ranges(self, {"layers": (0, 64), "scale": (0, 1e6), "outscale": (0, 1e3)})


class Head(nn.Module):
    """feat [..., F] -> a distribution over a scalar [...], or over `size` numbers [..., size]."""

    def __init__(
        self, config: HeadConfig, feat: int, units: int, bins: int = 255, size: int | None = None
    ) -> None:
        super().__init__()
        if config.kind not in KINDS:
            raise ValueError(f"Unknown head kind '{config.kind}'. Known: {', '.join(KINDS)}.")
        if config.kind == "twohot" and size is not None:
            raise ValueError("A twohot head predicts one scalar; use mse for several numbers.")
        self.config = config
        self.scalar = size is None
        self.mlp = MLP(feat, units, config.layers)
        width = bins if config.kind == "twohot" else (size or 1)
        self.out = Linear(self.mlp.out_features, width, config.outscale)

    def forward(self, feat: Tensor) -> TwoHot | Bernoulli | Point:
        out = self.out(self.mlp(feat))
        if self.config.kind == "twohot":
            return TwoHot(out)
        if self.config.kind == "bernoulli":
            return Bernoulli(out.squeeze(-1) if self.scalar else out)
        return Point(out, symlog_target=self.config.kind == "symlog_mse")

    def predict(self, feat: Tensor) -> Tensor:
        """The prediction itself: [...] for a scalar, else [..., size]."""
        out = self(feat).mode()
        return out.squeeze(-1) if self.scalar and self.config.kind.endswith("mse") else out

    def loss(self, feat: Tensor, target: Tensor) -> Tensor:
        """Negative log likelihood [...] of targets shaped like the prediction."""
        if not self.config.trains_latent:
            feat = feat.detach()  # this head only reads the latent
        if self.scalar and self.config.kind.endswith("mse"):
            target = target.unsqueeze(-1)
        log_prob = self(feat).log_prob(target)
        if not self.scalar and self.config.kind == "bernoulli":
            log_prob = log_prob.sum(-1)
        return -log_prob


def head_size(spec: EnvSpec, head: HeadConfig) -> int | None:
    """How many numbers a head predicts; None for a scalar. ValueError for an unknown target."""
    if head.target in ("", "reward", "cont"):
        return None
    if head.target not in spec.obs:
        known = ", ".join(["reward", "cont", *sorted(spec.obs)])
        raise ValueError(f"No target '{head.target}' for a head. Known: {known}.")
    size = math.prod(spec.obs[head.target].shape)
    return size if size > 1 else None


def target_of(batch: Batch, name: str, discount: float) -> Tensor:
    """What a head with this target learns from, [B, T] or [B, T, N].

    "cont" carries the discount: (1 - is_terminal) * discount, so that predictions are products
    of survival and discount.
    """
    if name == "reward":
        return batch.reward
    if name == "cont":
        return (~batch.is_terminal).to(torch.float32) * discount
    if name in batch.obs:
        value = batch.obs[name]
        return value.squeeze(-1) if value.dim() == 3 else value
    known = ", ".join(["reward", "cont", *sorted(batch.obs)])
    raise ValueError(f"No target '{name}' in the batch. Known: {known}.")
