"""LaProp with adaptive gradient clipping against a plain float64 version of its four lines; Adam
against torch's."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from worldmodel.adam import Adam, AdamConfig
from worldmodel.optim import LaProp, OptimConfig


class Plain:
    """The reference: one NumPy array for each tensor, float64 throughout."""

    def __init__(self, params: list[np.ndarray], config: OptimConfig) -> None:
        self.params, self.config, self.t = params, config, 0
        self.mean = [np.zeros_like(p) for p in params]
        self.square = [np.zeros_like(p) for p in params]
        self.clipped: set[int] = set()

    def step(self, grads: list[np.ndarray]) -> None:
        c = self.config
        rate = c.lr * min(1.0, self.t / c.warmup) if c.warmup else c.lr
        self.t += 1
        for i, (p, g) in enumerate(zip(self.params, grads, strict=True)):
            if c.agc:
                limit = c.agc * max(1e-3, float(np.sqrt((p**2).sum())))
                size = float(np.sqrt((g**2).sum()))
                if size > limit:
                    self.clipped.add(i)
                    g = g * limit / size
            self.square[i] = c.beta2 * self.square[i] + (1 - c.beta2) * g**2
            scaled = g / (np.sqrt(self.square[i] / (1 - c.beta2**self.t)) + c.eps)
            self.mean[i] = c.beta1 * self.mean[i] + (1 - c.beta1) * scaled
            p -= rate * self.mean[i] / (1 - c.beta1**self.t)


class Weights(nn.Module):
    """Large weights, small ones, zeros, a scalar, and one that no loss touches."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator))

        self.large, self.small = draw(7, 5), nn.Parameter(draw(4).detach() * 0.01)
        self.zero, self.scalar = nn.Parameter(torch.zeros(3, 2)), draw()
        self.idle = draw(2)
        self.frozen = draw(2).requires_grad_(False)

    def loss(self, coefficients: list[Tensor]) -> Tensor:
        """Its gradient is the coefficients, plus the weight itself for `large`."""
        trained = (self.large, self.small, self.zero, self.scalar)
        linear = sum((c * w).sum() for c, w in zip(coefficients, trained, strict=True))
        return torch.as_tensor(linear) + 0.5 * self.large.square().sum()


def numpy(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy().copy()


def coefficients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    sizes: list[tuple[int, ...]] = [(7, 5), (4,), (3, 2), ()]
    # The third always exceeds 0.3 * 1e-3 at first, the fourth never anything.
    scales = [0.1, 1.0, 0.05, 1e-4]
    draws = [torch.randn(s, generator=generator) for s in sizes]
    return [x * draw for x, draw in zip(scales, draws, strict=True)]


@pytest.mark.parametrize(
    "config",
    [
        OptimConfig(lr=1e-2, warmup=4),
        OptimConfig(lr=1e-2, warmup=0, agc=0.0, beta1=0.5, beta2=0.9, eps=1e-3),
        OptimConfig(lr=3e-2, warmup=1, agc=0.01, beta2=0.99),
    ],
)
def test_steps_equal_the_float64_reference(config: OptimConfig) -> None:
    module = Weights()
    optim = LaProp([("w", module)], config)
    names = ["large", "small", "zero", "scalar", "idle"]
    plain = Plain([numpy(getattr(module, n)) for n in names], config)
    start = module.idle.clone(), module.frozen.clone()
    for step in range(12):
        drawn = coefficients(step)
        grads = [numpy(c) for c in drawn] + [np.zeros(2)]
        grads[0] += plain.params[0]
        expected_norm = np.sqrt(sum((g**2).sum() for g in grads))
        metrics = optim.step(module.loss(drawn))
        plain.step(grads)
        assert metrics["grad_norm"].item() == pytest.approx(expected_norm, rel=1e-4)
        for name, expected in zip(names, plain.params, strict=True):
            np.testing.assert_allclose(
                numpy(getattr(module, name)), expected, rtol=2e-4, atol=2e-6, err_msg=name
            )
    if config.agc:
        assert {1, 2} <= plain.clipped  # clipping was at work, and not everywhere
        assert 3 not in plain.clipped
    assert torch.equal(module.idle, start[0])
    assert torch.equal(module.frozen, start[1])


def test_first_step_is_the_learning_rate_times_the_sign() -> None:
    # Debiased twice, the first step is g / |g|, however small or clipped g is.
    layer = nn.Linear(2, 1, bias=False)
    optim = LaProp([("l", layer)], OptimConfig(lr=0.5, warmup=0))
    before = layer.weight.detach().clone()
    optim.step((layer.weight * torch.tensor([[1e-6, -1e3]])).sum())
    torch.testing.assert_close(layer.weight - before, torch.tensor([[-0.5, 0.5]]))


def test_zero_weights_are_clipped_at_the_floor() -> None:
    layer = nn.Linear(3, 4, bias=False)
    nn.init.zeros_(layer.weight)
    optim = LaProp([("l", layer)], OptimConfig(agc=0.3))
    optim.step(layer.weight.sum() * 100.0)
    assert torch.linalg.vector_norm(optim.grad).item() == pytest.approx(0.3 * 1e-3, rel=1e-5)
    assert optim.square.max().item() == pytest.approx((0.3e-3) ** 2 / 12 * 1e-3, rel=1e-4)


def test_learning_rate_rises_linearly_and_stays() -> None:
    layer = nn.Linear(1, 1)
    optim = LaProp([("l", layer)], OptimConfig(lr=1.0, warmup=4))
    rates = []
    for _ in range(6):
        rates.append(optim.lr)
        optim.step(layer(torch.ones(1, 1)).sum())
    assert rates == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    paper = LaProp([("l", layer)], OptimConfig())
    assert paper.lr == 0.0
    paper.updates = 1
    assert paper.lr == pytest.approx(4e-8)
    paper.updates = 5000
    assert paper.lr == pytest.approx(4e-5)


def test_learning_rate_anneals_to_a_tenth_on_request() -> None:
    layer = nn.Linear(1, 1)
    optim = LaProp([("l", layer)], OptimConfig(lr=1.0, warmup=4, anneal=14))
    rates = {}
    for done in (1, 4, 9, 14, 100):
        optim.updates = done
        rates[done] = optim.lr
    assert rates == pytest.approx({1: 0.25, 4: 1.0, 9: 0.55, 14: 0.1, 100: 0.1})


def poison_gradient(module: nn.Sequential) -> Tensor:
    # sqrt has an infinite slope at 0, and 0 * inf is NaN: the loss is fine, one gradient is not.
    weight = module[1].weight
    assert isinstance(weight, Tensor)
    return (weight * 0.0).abs().sum().sqrt() + module(torch.ones(1, 2)).sum()


def poison_loss(module: nn.Sequential) -> Tensor:
    return module(torch.full((1, 2), torch.inf)).sum()


@pytest.mark.parametrize(
    ("poison", "message"),
    [
        (poison_gradient, r"1 of 4 gradients are not finite \(first: net.1.weight\)"),
        (poison_loss, r"The loss is (nan|-?inf) and .* not finite"),
    ],
)
def test_nothing_moves_where_loss_or_gradient_is_not_finite(
    poison: Callable[[nn.Sequential], Tensor], message: str
) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    optim = LaProp([("net", module)], OptimConfig(warmup=0))
    x = torch.ones(1, 2)
    optim.step(module(x).sum())
    weights, state = copy.deepcopy(module.state_dict()), optim.state_dict()
    with pytest.raises(FloatingPointError, match=message):
        optim.step(poison(module))
    for name, value in module.state_dict().items():
        assert torch.equal(value, weights[name])
    for key in ("mean", "square"):
        assert torch.equal(optim.state_dict()[key], state[key])
    assert optim.updates == 1
    # and the bad gradient is forgotten
    optim.step(module(x).sum())
    assert torch.isfinite(optim.flat).all()


def test_parameters_are_views_and_stay_views() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    optim = LaProp([("a", module[0]), ("b", module[1])], OptimConfig(lr=0.1, warmup=0))
    assert optim.names == ["a.weight", "a.bias", "b.weight", "b.bias"]

    def check() -> None:
        start = 0
        for p in module.parameters():
            part = optim.flat[start : start + p.numel()]
            assert p.data_ptr() == part.data_ptr()
            assert torch.equal(p.flatten(), part)
            assert p.grad is not None
            assert p.grad.data_ptr() == optim.grad[start:].data_ptr()
            start += p.numel()
        assert start == optim.flat.numel()

    check()
    optim.step(module(torch.ones(4, 2)).square().sum())
    check()
    module.load_state_dict({k: v + 1 for k, v in module.state_dict().items()})
    check()
    before = optim.flat.clone()
    optim.step(module(torch.ones(4, 2)).square().sum())
    check()
    assert not torch.equal(optim.flat, before)


def test_state_continues_where_it_was_saved() -> None:
    def make() -> tuple[Weights, LaProp]:
        module = Weights()
        return module, LaProp([("w", module)], OptimConfig(lr=1e-2, warmup=5))

    module, optim = make()
    for step in range(3):
        optim.step(module.loss(coefficients(step)))
    weights, state = copy.deepcopy(module.state_dict()), optim.state_dict()
    other, resumed = make()
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    for step in range(3, 6):
        optim.step(module.loss(coefficients(step)))
        resumed.step(other.loss(coefficients(step)))
    assert torch.equal(optim.flat, resumed.flat)
    assert resumed.updates == 6
    assert state["updates"] == 3  # what was saved did not move on


@pytest.mark.parametrize("kind", ["laprop", "adam"])
def test_aligned_tensors_learn_the_same_and_their_state_moves(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(wide: int) -> tuple[nn.ModuleList, LaProp | Adam]:
        monkeypatch.setattr("worldmodel.optim.alignment", lambda device: wide)
        torch.manual_seed(0)
        parts = nn.ModuleList([nn.Linear(3, 5), nn.Linear(5, 2)])
        named = [("a", parts[0]), ("b", parts[1])]
        if kind == "laprop":
            return parts, LaProp(named, OptimConfig(lr=1e-2, warmup=0))
        config = AdamConfig(lr=1e-2, clip=0.1, decay=0.1)
        return parts, Adam(named, config, rates=(1.0, 0.5))

    def learn(parts: nn.ModuleList, optim: LaProp | Adam) -> None:
        x = torch.linspace(-1, 1, 12).view(4, 3)
        optim.step(parts[1](parts[0](x).tanh()).square().sum())

    (tight, close), (roomy, apart) = make(1), make(16)
    assert all(p.data_ptr() % 64 == apart.flat.data_ptr() % 64 for p in apart.params)
    assert apart.flat.numel() == 16 * 4 > close.flat.numel()
    for _ in range(3):
        learn(tight, close)
        learn(roomy, apart)
    apart.load_state_dict(close.state_dict())
    roomy.load_state_dict(tight.state_dict())
    learn(tight, close)
    learn(roomy, apart)
    for ours, theirs in zip(roomy.parameters(), tight.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    for name in ("mean", "square"):
        torch.testing.assert_close(apart.state_dict()[name], close.state_dict()[name])


def test_state_of_another_model_is_refused() -> None:
    state = LaProp([("l", nn.Linear(2, 2))], OptimConfig()).state_dict()
    other = LaProp([("l", nn.Linear(2, 3))], OptimConfig())
    with pytest.raises(ValueError, match=r"holds 2 tensors, 6 numbers; .* 2 tensors, 9 numbers"):
        other.load_state_dict(state)
    renamed = LaProp([("m", nn.Linear(2, 2))], OptimConfig())
    with pytest.raises(ValueError, match="same configuration"):
        renamed.load_state_dict(state)


# Adam


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_adam_is_torch_s_with_a_clipped_norm(clip: float) -> None:
    module = Weights()
    plain = copy.deepcopy(module)
    optim = Adam([("w", module)], AdamConfig(lr=1e-2, clip=clip, eps=1e-5))
    trained = [p for p in plain.parameters() if p.requires_grad]
    theirs = torch.optim.Adam(trained, lr=1e-2, eps=1e-5)
    for step in range(20):
        if step == 10:
            optim.slow_down(0.25)
            theirs.param_groups[0]["lr"] *= 0.25
        theirs.zero_grad()
        plain.loss(coefficients(step)).backward()
        if clip:
            norm = nn.utils.clip_grad_norm_(trained, clip)
            assert norm > clip
        theirs.step()
        optim.step(module.loss(coefficients(step)))
    for ours, other in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5)  # they add 1e-6 to the norm
    assert optim.updates == 20


def test_adam_skips_what_is_not_finite_and_goes_on_from_its_state() -> None:
    module = Weights()
    optim = Adam([("w", module)], AdamConfig(lr=1e-2, clip=1.0))
    optim.step(module.loss(coefficients(0)))
    before = [x.clone() for x in (optim.flat, optim.mean, optim.square)]
    pairs = zip((1.0, torch.nan, 1.0, 1.0), coefficients(1), strict=True)
    loss = module.loss([scale * x for scale, x in pairs])
    with pytest.raises(FloatingPointError, match=r"1 of 5 gradients .* \(first: w.small\)"):
        optim.step(loss)
    for now, then in zip((optim.flat, optim.mean, optim.square), before, strict=True):
        assert torch.equal(now, then)
    assert optim.updates == 1
    other = Weights()
    other.load_state_dict(module.state_dict())
    resumed = Adam([("w", other)], AdamConfig(lr=1e-2, clip=1.0))
    resumed.load_state_dict(optim.state_dict())
    for step in range(2, 5):
        optim.step(module.loss(coefficients(step)))
        resumed.step(other.loss(coefficients(step)))
    assert torch.equal(optim.flat, resumed.flat)
