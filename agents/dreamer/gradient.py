"""Which way the actor goes: what the gradient of imagined returns at the actions drawn is made of.

"reinforce": log-probabilities times advantages, as published; right on average whatever the world
    is like, and noisy.
"dynamics": the returns' own gradient through the world model, as in the first Dreamers; quiet
    where the world is smooth. Where bodies meet it grows with every step backwards, until it says
    nothing.
"quieter": in every update the one of the two that is less noisy there.

Suh et al., "Do Differentiable Simulators Give Better Policy Gradients?" (ICML 2022), mix the two
by their variances. Mixtures learned more slowly here than the better of the two (docs/DREAMER.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

REINFORCE, DYNAMICS, QUIETER = GRADIENTS = ("reinforce", "dynamics", "quieter")
MOST = 0.98  # of the rollouts count as they are when noise is measured, stronger ones as these


class Way(NamedTuple):
    """What is to be maximised: the mean of weight times `gain` [N, H], and `pull`, 0 by value."""

    gain: Tensor
    pull: Tensor | float
    metrics: dict[str, Tensor]


def follow(
    kind: str, policy: Any, drawn: Sequence[Tensor], returns: Tensor, advantage: Tensor,
    weight: Tensor,
) -> Way:  # fmt: skip
    """What moves the policy in H imagined steps of N rollouts.

    policy: as it learns, [N, H]. drawn: the actions that it drew there, H of [N, A]. returns:
    [N, H], as they depend on these; advantage, weight: [N, H], without gradient.
    """
    taken = torch.stack([action.detach() for action in drawn], 1)
    if kind == REINFORCE:
        return Way(policy.log_prob(taken) * advantage, 0.0, {})
    dynamics = _through_world(weight * returns, drawn)
    if kind == DYNAMICS:
        return Way(returns.detach(), _towards(policy, taken, dynamics), {})
    share = _quietness(policy, taken, weight * advantage, dynamics)
    quiet = share > 0.5  # False where it is not a number
    gain = torch.where(quiet, returns.detach(), policy.log_prob(taken) * advantage)
    pull = _towards(policy, taken, torch.where(quiet, dynamics, 0.0))
    return Way(gain, pull, {"dynamics_quietness": share})


def _through_world(returns: Tensor, drawn: Sequence[Tensor]) -> Tensor:
    """The gradient [N, H, A] of the sum of `returns` at each action drawn, H of [N, A], through
    all that follows from it: the states, and the actions that the actor takes in them."""
    return torch.stack(torch.autograd.grad(returns.sum(), list(drawn)), 1).float()


def _towards(policy: Any, actions: Tensor, gradient: Tensor) -> Tensor:
    """A mean, 0 by value, whose gradient moves normals, from which `actions` [N, H, A] were drawn,
    as `gradient` at those actions says."""
    noise = (actions - policy.mean.detach()) / policy.std.detach()
    again = policy.mean + policy.std * noise  # the same numbers, but of the policy as it learns
    return (gradient * (again - again.detach())).sum(-1).mean()


def _trimmed(gradient: Tensor) -> Tensor:
    """The same [N, H, A], at each step no longer than all but the longest few are."""
    length = gradient.norm(dim=-1, keepdim=True)
    most = torch.quantile(length, MOST, 0, keepdim=True)
    return gradient * (most / length.clamp_min(1e-30)).clamp_max(1.0)


def _quietness(policy: Any, taken: Tensor, scores: Tensor, dynamics: Tensor) -> Tensor:
    """The noise of REINFORCE as a share [] of both: above a half, the other one is quieter.

    taken: actions [N, H, A] of the policy (normals); scores: their advantages [N, H]; dynamics:
    the other gradient [N, H, A]. Noise is the variance over the N rollouts of the gradient at the
    policy's mean, averaged over steps and entries.
    """
    score = scores.unsqueeze(-1) * (taken - policy.mean.detach()) / policy.std.detach().square()
    noise, other = (_trimmed(x).var(0).mean() for x in (score, dynamics))
    return noise / (noise + other)
