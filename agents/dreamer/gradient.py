"""What the actor maximises, and with which gradient.

"reinforce": log-probabilities times advantages, as published. Unbiased whatever the world is like,
    and of high variance.
"dynamics": the gradient of the returns themselves through the world model, as in the first
    Dreamers. Of low variance where the world is smooth; through contacts it grows with every step
    backwards until it is noise.
"quieter": in every update whichever of the two has the lower variance over the rollouts, on all
    ranks the same. What differs from start to start counts as variance.

Suh et al., "Do Differentiable Simulators Give Better Policy Gradients?" (ICML 2022), mix the two
by their variances. What one run of each gave here, which ranks nothing: docs/DREAMER.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldmodel.accel.ranks import Ranks

REINFORCE, DYNAMICS, QUIETER = GRADIENTS = ("reinforce", "dynamics", "quieter")
TRIM = 0.98  # of the rollouts count as they are when variances are measured, longer ones as these
MOST = 10.0  # times that length: no rollout moves the actor by more


class Objective(NamedTuple):
    """To be maximised: the mean of weight times `gain` [N, H], and `surrogate`, whose value is 0
    and whose gradient is that through the world."""

    gain: Tensor
    surrogate: Tensor | float
    metrics: dict[str, Tensor]


def actor_objective(
    kind: str, policy: Any, drawn: Sequence[Tensor], returns: Tensor, advantage: Tensor,
    weight: Tensor, ranks: Ranks | None = None,
) -> Objective:  # fmt: skip
    """Of H imagined steps of N rollouts, by one of GRADIENTS.

    policy: as it learns, [N, H]. drawn: the actions that it drew there, H of [N, A]. returns:
    [N, H], as they depend on these; advantage, weight: [N, H], without gradient. ranks: of those
    that learn together.
    """
    taken = torch.stack([action.detach() for action in drawn], 1)
    if kind == REINFORCE:
        return Objective(policy.log_prob(taken) * advantage, 0.0, {})
    dynamics = _through_world(weight * returns, drawn)
    if kind == DYNAMICS:
        return Objective(returns.detach(), _surrogate(policy, taken, dynamics), {})
    share = _quietness(policy, taken, weight * advantage, dynamics, ranks)
    quiet = share > 0.5  # False where it is not a number
    gain = torch.where(quiet, returns.detach(), policy.log_prob(taken) * advantage)
    followed = torch.where(quiet, _trimmed(dynamics, MOST), 0.0)
    surrogate = _surrogate(policy, taken, followed)
    return Objective(gain, surrogate, {"dynamics_quietness": share})


def _through_world(returns: Tensor, drawn: Sequence[Tensor]) -> Tensor:
    """The gradient [N, H, A] of the sum of `returns` at each action drawn, H of [N, A], through
    all that follows from it: the states, and the actions that the actor takes in them."""
    return torch.stack(torch.autograd.grad(returns.sum(), list(drawn)), 1).float()


def _surrogate(policy: Any, actions: Tensor, gradient: Tensor) -> Tensor:
    """Of value 0; its gradient is `gradient`, at the actions [N, H, A], taken on to the policy
    (normals) that drew them: the reparameterised draw with the same noise. A mean over [N, H]."""
    noise = (actions - policy.mean.detach()) / policy.std.detach()
    again = policy.mean + policy.std * noise
    return (gradient * (again - again.detach())).sum(-1).mean()


def _trimmed(gradient: Tensor, times: float = 1.0) -> Tensor:
    """The same [N, H, A]; at each step none is longer than `times` the length that TRIM of the
    rollouts do not exceed."""
    length = gradient.norm(dim=-1, keepdim=True)
    most = times * torch.quantile(length, TRIM, 0, keepdim=True)
    return gradient * (most / length.clamp_min(1e-30)).clamp_max(1.0)


def _quietness(
    policy: Any, taken: Tensor, scores: Tensor, dynamics: Tensor, ranks: Ranks | None
) -> Tensor:
    """The variance of REINFORCE as a share [] of both: above a half, the other one is quieter.

    taken: actions [N, H, A] of the policy (normals); scores: their advantages [N, H]; dynamics:
    the other gradient [N, H, A]. Variances over the N rollouts of the gradient at the policy's
    mean, averaged over steps and entries, and over ranks.
    """
    score = scores.unsqueeze(-1) * (taken - policy.mean.detach()) / policy.std.detach().square()
    apart = torch.stack([_trimmed(x).var(0).mean() for x in (score, dynamics)])
    if ranks is not None:
        ranks.all_reduce_mean(apart)
    ours, both = apart[0], apart.sum()
    return torch.where(both == 0, 0.5, ours / both)  # nothing is to be gained yet
