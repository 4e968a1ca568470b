"""The gradients that an actor can follow, in worlds of a line."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.dreamer.gradient import GRADIENTS, TRIM, actor_objective
from worldmodel.accel.ranks import Ranks
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

    def follow(
        self, kind: str, ranks: Ranks | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Gradients of mean and deviation, which are to be climbed; and metrics."""
        aim = actor_objective(
            kind, self.policy, self.drawn, self.returns, self.advantage, self.weight, ranks
        )
        total = (self.weight * aim.gain).mean() + aim.surrogate
        return *torch.autograd.grad(total, [self.mean, self.std]), aim.metrics

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


@pytest.mark.parametrize("last", [smooth, rough])
def test_of_the_two_it_takes_the_one_that_is_less_noisy(last: World) -> None:
    worlds = [smooth, smooth, last]
    better = "dynamics" if last is smooth else "reinforce"
    *found, metrics = Rollouts(worlds).follow("quieter")
    for ours, theirs in zip(found, Rollouts(worlds).follow(better), strict=False):
        torch.testing.assert_close(ours, theirs)
    reinforce, dynamics = (Rollouts(worlds).follow(kind)[0] for kind in GRADIENTS[:2])
    assert last is smooth or (dynamics[2] - reinforce[2]).abs().max() > 0.5  # what it was spared

    # The noise, by numpy in float64.
    made = Rollouts(worlds)
    actions = torch.stack(made.drawn, 1).detach().double().numpy()
    pulls = torch.autograd.grad((made.weight * made.returns).sum(), made.drawn)
    scores = (made.weight * made.advantage).double().numpy()[..., None] * actions / 0.3**2
    noise = []
    for one in (scores, torch.stack(pulls, 1).double().numpy()):
        length = np.linalg.norm(one, axis=-1, keepdims=True)
        trimmed = one * np.minimum(1, np.quantile(length, TRIM, 0) / length)
        noise.append(trimmed.var(0, ddof=1).mean())
    share = noise[0] / sum(noise)
    assert share > 0.8 if last is smooth else share < 0.02
    np.testing.assert_allclose(float(metrics["dynamics_quietness"]), share, rtol=1e-4)


def test_all_ranks_take_the_same_one() -> None:
    class TwoRanks(Ranks):
        other = torch.zeros(2)  # the variances on the other one

        def all_reduce_mean(self, tensor: Tensor) -> None:
            tensor.copy_((tensor + self.other) / 2)

    worlds: list[World] = [smooth] * H
    ranks = TwoRanks()
    ranks.other = torch.tensor([1.0, 1e6])  # the gradient through its world is noise there
    found = Rollouts(worlds).follow("quieter", ranks)
    assert found[2]["dynamics_quietness"] < 0.01
    for ours, theirs in zip(found[:2], Rollouts(worlds).follow("reinforce")[:2], strict=True):
        torch.testing.assert_close(ours, theirs)
    ranks.other = torch.tensor([float("nan"), 1.0])
    for ours, theirs in zip(Rollouts(worlds).follow("quieter", ranks), found[:2], strict=False):
        torch.testing.assert_close(ours, theirs)


def test_what_explodes_is_not_followed() -> None:
    def steep(returns: Tensor, drawn: list[Tensor]) -> Tensor:  # and worth nothing
        turn = drawn[0].sum(-1, keepdim=True)
        slope = 1e8 * (torch.arange(N) % 10 == 0).float().view(N, 1)
        return returns + slope * (turn - turn.detach())

    reinforce = Rollouts([smooth] * H).follow("reinforce")
    not_finite = Rollouts([smooth] * H)
    not_finite.drawn[0].register_hook(lambda grad: grad * float("inf"))
    for made in (Rollouts([smooth] * H, steep), not_finite):
        for ours, theirs in zip(made.follow("quieter")[:2], reinforce[:2], strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_few_that_explode_move_little() -> None:
    def spiked(returns: Tensor, drawn: list[Tensor]) -> Tensor:
        turn = drawn[0].sum(-1, keepdim=True)
        slope = 1e8 * (torch.arange(N) < 4).float().view(N, 1)
        return returns + slope * (turn - turn.detach())

    mean, std, metrics = Rollouts([smooth] * H, spiked).follow("quieter")
    assert metrics["dynamics_quietness"] > 0.5
    assert max(mean.abs().max(), std.abs().max()) < 1
    assert Rollouts([smooth] * H, spiked).follow("dynamics")[0].abs().max() > 1e4


def test_where_nothing_is_to_be_gained_nothing_moves() -> None:
    *grads, metrics = Rollouts([lambda action: 0 * action.sum(-1)] * H).follow("quieter")
    assert not any(grad.any() for grad in grads)
    assert metrics["dynamics_quietness"] == 0.5
