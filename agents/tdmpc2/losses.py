"""TD-MPC2's losses of values and policy: tensors in, tensors out.

H steps of B slices; weight [H, B] is rho^t, and 0 where a slice has left its episode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def value_target(reward: Tensor, terminal: Tensor, discount: float, q: Tensor) -> Tensor:
    """What Q shall say [H, B]: q [2, H, B] are two target heads at the row that was reached."""
    return reward + discount * (~terminal).float() * q.amin(0)


def value_loss(apart: Tensor, weight: Tensor) -> Tensor:
    """The mean over all heads of their cross-entropies [E, H, B], weight [H, B]."""
    return (weight * apart).mean()


def next_scale(scale: Tensor, values: Tensor, rate: float = 0.01) -> Tensor:
    """The scale of values, moved towards the range of these from their 5th to their 95th
    percentile, at least 1."""
    ends = values.new_tensor([0.05, 0.95])
    low, high = torch.quantile(values.flatten(), ends)
    return torch.lerp(scale, (high - low).clamp_min(1.0), rate)


def scaled_entropy(noise: Tensor, log_std: Tensor, action: Tensor, squashed: bool) -> Tensor:
    """Of a policy, by one draw each [...]: action = tanh(mean + exp(log_std) noise) [..., A].

    The normal part is multiplied by A, and its constant counts once, as in the paper's code.
    squashed: with what tanh changes of the density.
    """
    normal = (-0.5 * noise.square() - log_std).sum(-1) - HALF_LOG_TWO_PI
    density = normal * noise.shape[-1]
    if squashed:
        density = density - torch.log(F.relu(1 - action.square()) + 1e-6).sum(-1)
    return -density


def plan_log_prob(action: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """How likely actions [..., A] are under a planner's normal distributions [...], times A, with
    the constant once, as `scaled_entropy` counts."""
    std = std.clamp_min(0.05)
    density = -0.5 * ((action - mean) / std).square() - std.log()
    return action.shape[-1] * (density.sum(-1) - HALF_LOG_TWO_PI)


def constraint_gain(log_prob: Tensor, scale: Tensor, size: int) -> Tensor:
    """What staying near the planner adds to the policy's gain [...]; nothing before values have
    spread. TD-M(PC)^2: Lin et al., "TD-M(PC)^2: Improving Temporal Difference MPC Through Policy
    Constraint" (2025)."""
    return (size / 61) * log_prob / scale * (scale > 2)


def factor_gain(probs: Sequence[Tensor], drawn: Tensor, q: Callable[[Tensor], Tensor]) -> Tensor:
    """The expected value of discrete policies [...], summed over their factors.

    probs: of each factor's classes [..., K], with gradient; drawn: actions [..., A]; q: from
    actions [V, ..., A] to values [V, ...], without gradient. Each factor is averaged over its
    classes while the others stay as they were drawn: without bias, and exact for one factor.
    """
    sizes = [part.shape[-1] for part in probs]
    variants = drawn.expand(sum(sizes), *drawn.shape).clone()
    begin = 0
    for size in sizes:
        block = slice(begin, begin + size)
        eye = torch.eye(size, dtype=drawn.dtype, device=drawn.device)
        variants[block, ..., block] = eye.view(size, *[1] * (drawn.ndim - 1), size)
        begin += size
    values = q(variants).movedim(0, -1)  # [..., A]
    return (torch.cat(list(probs), -1) * values).sum(-1)
