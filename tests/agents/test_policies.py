"""Policies over the three kinds of action."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from agents.dreamer.acting import Actor
from worldmodel.distributions import FactoredOneHot, Normal
from worldmodel.types import ActionSpec

FEAT = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))


def make(kind: str, *sizes: int, **settings: float) -> Actor:
    torch.manual_seed(0)
    return Actor(ActionSpec(kind, sizes), feat=12, units=32, **settings)  # type: ignore[arg-type]


def test_continuous_mean_and_deviation_by_hand() -> None:
    policy = make("continuous", 2)
    for layer in (policy.out, policy.spread):
        nn.init.zeros_(layer.weight)
    with torch.no_grad():
        policy.out.bias.copy_(torch.tensor([0.5, -30.0]))
        policy.spread.bias.copy_(torch.tensor([-2.0, 30.0]))
    dist = policy(FEAT)
    assert isinstance(dist, Normal)
    np.testing.assert_allclose(dist.mean[0].detach(), [math.tanh(0.5), -1.0], rtol=1e-6)
    np.testing.assert_allclose(dist.std[0].detach(), [0.9 * 0.5 + 0.1, 1.0], rtol=1e-6)
    with torch.no_grad():
        policy.spread.bias.fill_(-30.0)
    assert policy(FEAT).std.min().item() == pytest.approx(0.1, rel=1e-5)


def test_continuous_policies_start_centred_and_wide() -> None:
    dist = make("continuous", 3)(FEAT)
    assert isinstance(dist, Normal)
    start = 0.9 / (1 + math.exp(-2)) + 0.1
    np.testing.assert_allclose(dist.mean.detach(), np.zeros((50, 3)), atol=0.05)
    np.testing.assert_allclose(dist.std.detach(), np.full((50, 3), start), atol=0.01)
    assert dist.mode().shape == (50, 3)
    assert dist.sample().abs().max() > 1  # not squashed: the environment clips


def test_discrete_policies_start_uniform_and_keep_one_percent() -> None:
    dist = make("discrete", 4)(FEAT)
    assert isinstance(dist, FactoredOneHot)
    np.testing.assert_allclose(dist.parts[0].probs.detach(), np.full((50, 4), 0.25), atol=0.02)
    sure = make("discrete", 4, outscale=1e6)(FEAT)
    assert isinstance(sure, FactoredOneHot)
    np.testing.assert_allclose(sure.parts[0].probs.detach().min(), 0.01 / 4, rtol=1e-4)
    np.testing.assert_allclose(sure.parts[0].probs.detach().max(), 0.99 + 0.01 / 4, rtol=1e-4)


def test_multi_discrete_actions_have_one_one_hot_for_each_factor() -> None:
    torch.manual_seed(0)
    dist = make("discrete", 2, 3)(FEAT)
    for action in (dist.sample(), dist.mode()):
        assert action.shape == (50, 5)
        assert torch.equal(action[:, :2].sum(-1), torch.ones(50))
        assert torch.equal(action[:, 2:].sum(-1), torch.ones(50))
    assert dist.log_prob(dist.mode()).shape == (50,)
    entropy = dist.entropy().detach()
    np.testing.assert_allclose(entropy, np.full(50, math.log(2 * 3)), atol=0.01)


def test_masks_reach_the_distribution() -> None:
    torch.manual_seed(0)
    mask = torch.tensor([0.0, 1.0, 1.0]).expand(50, 3)
    dist = make("discrete", 3, outscale=1e6)(FEAT, mask)
    assert dist.sample()[:, 0].sum() == 0
    assert dist.mode()[:, 0].sum() == 0


def test_leading_axes_pass_through() -> None:
    for policy in (make("continuous", 2), make("discrete", 2)):
        flat, folded = policy(FEAT), policy(FEAT.view(5, 10, 12))
        torch.testing.assert_close(folded.mode(), flat.mode().view(5, 10, 2))
        torch.testing.assert_close(folded.entropy(), flat.entropy().view(5, 10))
