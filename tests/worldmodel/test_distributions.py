"""Distributions against numbers worked out by hand, or in float64 with NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from worldmodel.distributions import (
    Bernoulli,
    FactoredOneHot,
    Normal,
    OneHot,
    Point,
    TanhNormal,
    TwoHot,
    sample_one_hot,
    symexp,
    symlog,
)

# 255 points symexp(linspace(-20, 20)), in float64.
GRID = np.sign(np.linspace(-20, 20, 255)) * np.expm1(np.abs(np.linspace(-20, 20, 255)))


def close(ours: Tensor, theirs: object, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    np.testing.assert_allclose(ours.detach().double().numpy(), theirs, rtol, atol)


def logits_of(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator)


def softmax(logits: Tensor) -> np.ndarray:
    x = logits.detach().double().numpy()
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# symlog


def test_symlog_by_hand_and_its_inverse() -> None:
    x = torch.tensor([-math.e + 1, 0.0, math.e - 1, 99.0])
    close(symlog(x), [-1.0, 0.0, 1.0, math.log(100)])
    close(symexp(symlog(x)), x.double(), rtol=1e-5)


# Two-hot


def two_hot(target: float) -> np.ndarray:
    """The 255 weights of a target: linear between its two bins, all on the end beyond them."""
    weights = np.zeros(255)
    if target <= GRID[0]:
        weights[0] = 1.0
    elif target >= GRID[-1]:
        weights[-1] = 1.0
    else:
        high = int(np.argmax(target < GRID))
        share = (target - GRID[high - 1]) / (GRID[high] - GRID[high - 1])
        weights[high - 1], weights[high] = 1.0 - share, share
    return weights


def test_bins_are_255_and_symmetric_to_the_last_bit() -> None:
    bins = TwoHot(torch.zeros(255)).bins
    assert torch.equal(bins, -bins.flip(0))
    assert bins[127] == 0
    close(bins, GRID, rtol=1e-5)


def test_two_hot_encoding_shows_in_the_gradient() -> None:
    # d log_prob / d logits = encoding - softmax, so the gradient at zero logits is the encoding.
    # Between the bins 0 and 1 the point at a quarter of the way; then at a bin, and beyond the
    # ends.
    quarter = float(0.25 * GRID[128])
    at_a_bin = TwoHot(torch.zeros(255)).bins[200].item()
    for target, expected in {
        quarter: {127: 0.75, 128: 0.25},
        0.0: {127: 1.0},
        at_a_bin: {200: 1.0},
        1e12: {254: 1.0},
        -1e12: {0: 1.0},
    }.items():
        logits = torch.zeros(255, requires_grad=True)
        TwoHot(logits).log_prob(torch.tensor(target)).backward()
        assert logits.grad is not None
        encoding = logits.grad + 1 / 255
        weights = np.zeros(255)
        for index, weight in expected.items():
            weights[index] = weight
        close(encoding, weights, atol=2e-6)


@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
def test_two_hot_loss_and_gradient_equal_the_explicit_cross_entropy(scale: float) -> None:
    targets = [0.0, 0.01, -0.3, 1.0, -7.5, 123.4, -5e4, 4.8e8, 1e9, -1e9]
    logits = logits_of(len(targets), 255, scale=scale).requires_grad_()
    log_prob = TwoHot(logits).log_prob(torch.tensor(targets))
    probs = softmax(logits)
    weights = np.stack([two_hot(t) for t in targets])
    close(-log_prob, -(weights * np.log(probs)).sum(-1), rtol=1e-4)
    log_prob.sum().backward()
    assert logits.grad is not None
    close(logits.grad, weights - probs, atol=2e-4)


def test_two_hot_mean_is_the_expectation() -> None:
    logits = torch.full((3, 255), -1e9)
    logits[0, 127], logits[0, 128] = math.log(0.75), math.log(0.25)
    logits[1, 200] = logits[2, 54] = 0.0
    close(TwoHot(logits).mean, [0.25 * GRID[128], GRID[200], -GRID[200]], rtol=1e-4)
    narrow = logits_of(6, 255) - 0.5 * torch.linspace(-20, 20, 255).square()
    close(TwoHot(narrow).mean, (softmax(narrow) * GRID).sum(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.7, 1e4])
def test_two_hot_mean_of_equal_logits_is_exactly_zero(constant: float) -> None:
    mean = TwoHot(torch.full((64, 255), constant)).mean
    assert torch.equal(mean, torch.zeros(64))  # although the outermost bins are 4.85e8


def test_two_hot_training_reaches_its_target() -> None:
    # The minimum of the loss is the target itself: the mean of its own encoding.
    for target in (-31.7, 0.004, 2.5, 1e6):
        weights = torch.as_tensor(two_hot(target)).float()
        assert TwoHot(weights.clamp_min(1e-30).log()).mean.item() == pytest.approx(target, rel=1e-4)


def test_two_hot_trains_after_it_was_used_in_inference_mode() -> None:
    with torch.inference_mode():
        assert TwoHot(torch.zeros(51)).mean == 0  # a number of bins that no other test uses
    logits = torch.zeros(51, requires_grad=True)
    TwoHot(logits).mean.backward()
    assert logits.grad is not None
    assert logits.grad.any()


def test_two_hot_refuses_an_even_number_of_bins() -> None:
    with pytest.raises(ValueError, match="odd number of bins, got 254"):
        TwoHot(torch.zeros(254))


# One-hot


def mixed(logits: Tensor, unimix: float) -> np.ndarray:
    return (1 - unimix) * softmax(logits) + unimix / logits.shape[-1]


@pytest.mark.parametrize("unimix", [0.0, 0.01, 0.3])
def test_one_hot_entropy_kl_and_log_prob_against_float64(unimix: float) -> None:
    a, b = logits_of(5, 7, seed=1), logits_of(5, 7, seed=2)
    p, q = mixed(a, unimix), mixed(b, unimix)
    ours, other = OneHot(a, unimix), OneHot(b, unimix)
    close(ours.probs, p)
    close(ours.entropy(), -(p * np.log(p)).sum(-1))
    close(ours.kl(other), (p * np.log(p / q)).sum(-1), rtol=1e-4)
    close(ours.kl(ours), np.zeros(5))
    hot = torch.eye(7)[torch.tensor([0, 3, 6, 1, 1])]
    close(ours.log_prob(hot), np.log(p[np.arange(5), [0, 3, 6, 1, 1]]))


def test_one_hot_by_hand() -> None:
    # softmax(0, log 3) = (1/4, 3/4); 20% uniform makes it (0.3, 0.7).
    dist = OneHot(torch.tensor([0.0, math.log(3)]), 0.2)
    close(dist.probs, [0.3, 0.7])
    even = OneHot(torch.zeros(2), 0.2)
    close(dist.kl(even), 0.3 * math.log(0.6) + 0.7 * math.log(1.4))
    close(dist.entropy(), -0.3 * math.log(0.3) - 0.7 * math.log(0.7))
    assert dist.mode().tolist() == [0, 1]


def test_unimix_bounds_the_kl_of_certain_logits() -> None:
    sure = OneHot(torch.tensor([1e4, 0.0, 0.0, 0.0]), 0.01)
    other = OneHot(torch.tensor([0.0, 1e4, 0.0, 0.0]), 0.01)
    small, large = 0.0025, 0.9925
    close(sure.probs, [large, small, small, small])
    close(sure.kl(other), (large - small) * math.log(large / small))


def test_samples_follow_the_mixed_probabilities() -> None:
    torch.manual_seed(0)
    probs = torch.tensor([0.05, 0.0, 0.7, 0.25])
    counts = sample_one_hot(probs.expand(20000, 4)).mean(0)
    close(counts, probs.double(), rtol=0, atol=0.012)  # 3.7 standard deviations of the largest
    uniform = OneHot(torch.tensor([[1e4, 0.0]]).expand(20000, 2), 0.5).sample().mean(0)
    close(uniform, [0.75, 0.25], rtol=0, atol=0.012)


def test_straight_through_gradient_is_that_of_the_mixed_probabilities() -> None:
    torch.manual_seed(0)
    logits = logits_of(4, 5).requires_grad_()
    weights = logits_of(4, 5, seed=3)
    hot = OneHot(logits, 0.01).sample()
    assert torch.equal(hot.detach().sort(-1).values[:, -1], torch.ones(4))
    assert torch.equal(hot.detach().sum(-1), torch.ones(4))  # exactly one-hot, no float dust
    (hot * weights).sum().backward()
    p, w = softmax(logits), weights.double().numpy()
    assert logits.grad is not None
    close(logits.grad, 0.99 * p * (w - (p * w).sum(-1, keepdims=True)))


@pytest.mark.parametrize("unimix", [0.0, 0.05])
def test_masked_classes_are_never_drawn(unimix: float) -> None:
    torch.manual_seed(0)
    logits = torch.tensor([9.0, 0.0, math.log(3.0), 9.0]).expand(500, 4)
    mask = torch.tensor([0, 1, 1, 0]).expand(500, 4)
    dist = OneHot(logits, unimix, mask)
    p = (1 - unimix) * 0.25 + unimix / 2
    close(dist.probs[0], [0, p, 1 - p, 0], atol=1e-7)
    close(dist.entropy()[0], -p * math.log(p) - (1 - p) * math.log(1 - p))
    draws = dist.sample()
    assert draws[:, [0, 3]].sum() == 0
    assert draws.sum() == 500
    assert dist.mode()[0].tolist() == [0, 0, 1, 0]
    close(dist.log_prob(torch.tensor([0.0, 1, 0, 0]))[0], math.log(p))


def test_masked_entropy_has_a_finite_gradient_and_an_empty_mask_counts_as_free() -> None:
    logits = logits_of(2, 3).requires_grad_()
    mask = torch.tensor([[1, 0, 1], [0, 0, 0]])
    dist = OneHot(logits, 0.01, mask)
    close(dist.probs[1], mixed(logits[1], 0.01))
    (dist.entropy() + dist.log_prob(dist.mode())).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 1] == 0


def test_factored_one_hot_is_a_sum_of_independent_parts() -> None:
    torch.manual_seed(0)
    logits = logits_of(6, 5)
    dist = FactoredOneHot(logits, (2, 3), 0.01)
    a, b = OneHot(logits[:, :2], 0.01), OneHot(logits[:, 2:], 0.01)
    action = dist.sample()
    assert torch.equal(action[:, :2].sum(-1), torch.ones(6))
    assert torch.equal(action[:, 2:].sum(-1), torch.ones(6))
    expected = a.log_prob(action[:, :2]) + b.log_prob(action[:, 2:])
    assert torch.equal(dist.log_prob(action), expected)
    assert torch.equal(dist.entropy(), a.entropy() + b.entropy())
    assert torch.equal(dist.mode(), torch.cat([a.mode(), b.mode()], -1))


def test_factored_masks_reach_their_own_factor() -> None:
    mask = torch.tensor([[0.0, 1.0, 1.0, 0.0, 0.0]])
    dist = FactoredOneHot(torch.zeros(1, 5), (2, 3), 0.01, mask)
    assert dist.sample().tolist() == [[0, 1, 1, 0, 0]]
    close(dist.entropy(), [0.0])


# Normal, Bernoulli, Point


def test_normal_by_hand() -> None:
    dist = Normal(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.5]]))
    half_log = 0.5 * math.log(2 * math.pi)
    # z = (1, -2): -1/2 - 2 - log(1) - log(1/2) - log(2 pi)
    close(dist.log_prob(torch.tensor([[1.0, 0.0]])), [-2.5 + math.log(2) - 2 * half_log])
    close(dist.entropy(), [2 * half_log + 1 + math.log(0.5)])
    other = Normal(torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 0.5]]))
    # log(2) + (1 + 1) / 8 - 1/2 for the first, 0 for the second
    close(dist.kl(other), [math.log(2) + 0.25 - 0.5])
    assert torch.equal(dist.mode(), dist.mean)


def test_normal_samples_are_reparameterised() -> None:
    torch.manual_seed(0)
    mean = torch.full((20000, 1), 3.0, requires_grad=True)
    std = torch.full((20000, 1), 0.5, requires_grad=True)
    draws = Normal(mean, std).sample()
    assert draws.mean().item() == pytest.approx(3.0, abs=0.02)
    assert draws.std().item() == pytest.approx(0.5, abs=0.02)
    draws.sum().backward()
    assert mean.grad is not None
    assert std.grad is not None
    assert torch.equal(mean.grad, torch.ones_like(mean))
    close(std.grad, ((draws - mean) / std).detach().double(), atol=1e-4)


def test_tanh_normal_by_hand() -> None:
    mean, log_std = torch.tensor([[0.3, -1.0]]), torch.tensor([[0.0, math.log(0.5)]])
    dist = TanhNormal(mean, log_std)
    action, log_prob = dist.draw(torch.tensor([[1.0, 2.0]]))
    close(action, [[math.tanh(1.3), math.tanh(0.0)]])
    normal = -0.5 - 2.0 - math.log(0.5) - math.log(2 * math.pi)
    close(log_prob, [normal - math.log(1 - math.tanh(1.3) ** 2)])
    close(dist.mode(), [[math.tanh(0.3), math.tanh(-1.0)]])


def test_tanh_normal_has_a_density() -> None:
    """It integrates to 1 over actions, and stays finite where tanh is 1 to the last bit."""
    noise = torch.linspace(-8, 8, 20001).unsqueeze(-1)
    dist = TanhNormal(torch.tensor([0.4]), torch.tensor([-0.7]))
    action, log_prob = (x.double().squeeze() for x in dist.draw(noise))
    # The trapezoid rule in the action; the tails beyond eight deviations hold nothing.
    mass = 0.5 * (log_prob[1:].exp() + log_prob[:-1].exp()) * action.diff()
    close(mass.sum(), 1.0, atol=1e-3)
    far = TanhNormal(torch.tensor([[40.0]]), torch.tensor([[-20.0]])).draw(torch.tensor([[1.0]]))
    close(far[0], [[1.0]])
    # log(1 - tanh(u)^2) is log 4 - 2 u there
    close(far[1], [-0.5 + 20 - 0.5 * math.log(2 * math.pi) - math.log(4) + 80], rtol=1e-5)


def test_tanh_normal_samples_are_reparameterised() -> None:
    torch.manual_seed(0)
    mean, log_std = (torch.full((20000, 1), x, requires_grad=True) for x in (0.5, -1.0))
    draws = TanhNormal(mean, log_std).sample()
    u = torch.atanh(draws.detach().double())
    assert u.mean().item() == pytest.approx(0.5, abs=0.02)
    assert u.std().item() == pytest.approx(math.exp(-1), abs=0.02)
    draws.sum().backward()
    assert mean.grad is not None
    assert log_std.grad is not None
    close(mean.grad, 1 - draws.detach().double() ** 2, atol=1e-5)
    close(log_std.grad, (1 - draws.detach().double() ** 2) * (u - 0.5), atol=1e-4)


def test_bernoulli_takes_soft_targets() -> None:
    p = torch.sigmoid(torch.tensor([0.0, 2.0])).double()
    dist = Bernoulli(torch.tensor([0.0, 2.0]))
    close(dist.log_prob(torch.tensor([1.0, 0.9])), [
        math.log(0.5), float(0.9 * p[1].log() + 0.1 * (1 - p[1]).log()),
    ])  # fmt: skip
    close(dist.mode(), p)


def test_point_is_the_squared_error_without_a_half() -> None:
    mean = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    target = torch.tensor([[0.0, 4.0], [0.0, math.e - 1]])
    close(Point(mean).log_prob(target), [-(1 + 4), -((math.e - 1) ** 2)])
    squashed = Point(mean, symlog_target=True)
    close(squashed.log_prob(target), [-(1 + (2 - math.log(5)) ** 2), -1.0])
    close(squashed.mode(), np.expm1(mean.double().numpy()))


def test_logits_of_lower_precision_are_computed_in_float32() -> None:
    logits = logits_of(3, 255).bfloat16()
    for dist in (OneHot(logits, 0.01), OneHot(logits)):
        assert dist.probs.dtype == dist.entropy().dtype == torch.float32
    assert TwoHot(logits).log_prob(torch.zeros(3)).dtype == torch.float32
    assert TwoHot(logits).mean.dtype == torch.float32
    assert Bernoulli(logits).log_prob(torch.zeros(3, 255)).dtype == torch.float32
