"""The two gradients that an actor can follow, and their mix, in worlds of a line."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.dreamer.gradient import GRADIENTS, MOST, follow
from worldmodel.distributions import Normal

N, H, A = 400, 3, 2
World = Callable[[Tensor], Tensor]
Change = Callable[[Tensor, list[Tensor]], Tensor]


def smooth(action: Tensor) -> Tensor:
    return -(action - 0.5).square().sum(-1)


def rough(action: Tensor) -> Tensor:
    """Of the same shape seen from afar, but its slope says nothing."""
    return smooth(action) + 0.1 * torch.sin(1000 * action).sum(-1)


class Rollouts:
    """Means and deviations at each step; a step's return is what its world says of its action, and
    `change` what becomes of returns and actions."""

    def __init__(
        self, worlds: list[World], change: Change = lambda returns, drawn: returns
    ) -> None:
        torch.manual_seed(0)
        self.mean = torch.zeros(H, A, requires_grad=True)
        self.std = torch.full((H, A), 0.3, requires_grad=True)
        self.drawn = [x.clone() for x in self.policy.sample().unbind(1)]  # each a tensor of its own
        returns = torch.stack([w(a) for w, a in zip(worlds, self.drawn, strict=True)], 1)
        self.returns = change(returns, self.drawn)
        self.advantage = (self.returns - self.returns.mean(0)).detach()
        self.weight = torch.tensor([1.0, 0.9, 0.8]).expand(N, H)

    @property
    def policy(self) -> Normal:
        return Normal(self.mean.expand(N, H, A), self.std)

    def follow(self, kind: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Gradients of mean and deviation, which are to be climbed; and metrics."""
        way = follow(kind, self.policy, self.drawn, self.returns, self.advantage, self.weight)
        aim = (self.weight * way.gain).mean() + way.pull
        return *torch.autograd.grad(aim, [self.mean, self.std]), way.metrics

    def plain(self) -> tuple[Tensor, ...]:
        """The same of the returns themselves."""
        return torch.autograd.grad((self.weight * self.returns).mean(), [self.mean, self.std])


def test_the_gradient_through_the_world_is_that_of_the_returns() -> None:
    def scaled(returns: Tensor, drawn: list[Tensor]) -> Tensor:  # later ones, by the first action
        return torch.cat([returns[:, :1], returns[:, 1:] * drawn[0].sum(-1, keepdim=True)], 1)

    *found, _ = Rollouts([smooth] * H, scaled).follow("dynamics")
    for ours, theirs in zip(found, Rollouts([smooth] * H, scaled).plain(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", GRADIENTS)
def test_all_point_the_same_way_where_the_world_is_smooth(kind: str) -> None:
    mean, std, _ = Rollouts([smooth] * H).follow(kind)
    wanted = torch.tensor([1.0, 0.9, 0.8]).view(H, 1) / H
    torch.testing.assert_close(mean, wanted.expand(H, A), atol=0.06, rtol=0)
    torch.testing.assert_close(std, -0.6 * wanted.expand(H, A), atol=0.09, rtol=0)


@pytest.mark.parametrize(("last", "least", "most"), [(smooth, 0.8, 1.0), (rough, 0.0, 0.01)])
def test_the_mix_follows_what_is_less_noisy(last: World, least: float, most: float) -> None:
    worlds = [smooth, smooth, last]
    mean, _, metrics = Rollouts(worlds).follow("mixed")
    share = float(metrics["dynamics_share"])
    assert least < share < most
    reinforce, dynamics = (Rollouts(worlds).follow(kind)[0] for kind in GRADIENTS[:2])
    if last is smooth:
        mixed = (1 - share) * reinforce + share * dynamics
        torch.testing.assert_close(mean, mixed, atol=0, rtol=0.01)  # but for what was trimmed
    else:
        torch.testing.assert_close(mean, reinforce, atol=0.02, rtol=0.02)
        assert (dynamics[2] - reinforce[2]).abs().max() > 0.5  # what it was spared

    # The share, by numpy in float64.
    made = Rollouts(worlds)
    actions = torch.stack(made.drawn, 1).detach().double().numpy()
    found = torch.autograd.grad((made.weight * made.returns).sum(), made.drawn)
    pulls = torch.stack(found, 1).double().numpy()
    length = np.linalg.norm(pulls, axis=-1, keepdims=True)
    pulls = pulls * np.minimum(1, np.quantile(length, MOST, 0) / length)
    scores = (made.weight * made.advantage).double().numpy()[..., None] * actions / 0.3**2
    theirs, ours = (x.var(0, ddof=1).mean() for x in (scores, pulls))
    np.testing.assert_allclose(share, theirs / (theirs + ours), rtol=1e-4)


def test_one_rollout_that_explodes_does_not_decide() -> None:
    def spiked(returns: Tensor, drawn: list[Tensor]) -> Tensor:
        steep = torch.zeros(N, 1)
        steep[7] = 1e8
        turn = drawn[0].sum(-1, keepdim=True)
        return returns + steep * (turn - turn.detach())  # steep, and worth nothing

    for grad in Rollouts([smooth] * H, spiked).follow("mixed")[:2]:
        assert grad.abs().max() < 0.6
    assert Rollouts([smooth] * H, spiked).follow("dynamics")[0].abs().max() > 1e4


def test_where_nothing_is_to_be_gained_nothing_moves() -> None:
    for grad in Rollouts([lambda action: 0 * action.sum(-1)] * H).follow("mixed")[:2]:
        assert torch.equal(grad, torch.zeros_like(grad))
