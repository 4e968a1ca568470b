"""The recurrent core: its gates by hand, resets, actions and latents."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.model_batches import (
    CONTINUOUS,
    SPECS,
    double,
    random_batch,
    random_state,
    scramble,
    spec_of,
    tiny,
)
from worldmodel.nets import BlockLinear, Linear, NormSiLU
from worldmodel.rssm import WorldModel
from worldmodel.rssm.core import RSSM
from worldmodel.rssm.state import LatentState
from worldmodel.types import Dynamics


def make_core(latent: str = "categorical", unimix: float = 0.01) -> RSSM:
    torch.manual_seed(0)
    core = RSSM(
        deter=6, hidden=2, groups=2, classes=3, blocks=3, embed=4, action=2, latent=latent,
        unimix=unimix,
    )  # fmt: skip
    scramble(core)
    return core


def make_model(**overrides: object) -> WorldModel:
    torch.manual_seed(0)
    model = WorldModel(SPECS["image"], tiny(**overrides))
    scramble(model, scale=0.1)
    return model


def core_state(batch: int, seed: int = 0) -> LatentState:
    return random_state(tiny(deter=6, groups=2, classes=3), batch, seed)


def same(a: LatentState, b: LatentState) -> bool:
    return torch.equal(a.deter, b.deter) and torch.equal(a.stoch, b.stoch)


# The recurrence


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def linear(layer: object, x: np.ndarray) -> np.ndarray:
    assert isinstance(layer, Linear)
    return x @ double(layer.weight).T + double(layer.bias)


def blocks(layer: BlockLinear, x: list[np.ndarray]) -> list[np.ndarray]:
    biases = np.split(double(layer.bias), len(x))
    return [v @ w + b for v, w, b in zip(x, double(layer.weight), biases, strict=True)]


def activate(layer: object, x: np.ndarray) -> np.ndarray:
    assert isinstance(layer, NormSiLU)
    y = x / np.sqrt((x**2).mean() + 1e-4) * double(layer.norm.scale)
    return y * sigmoid(y)


def by_hand(core: RSSM, state: LatentState, action: Tensor) -> np.ndarray:
    """The next deter [D] of one state, block by block."""
    h, z = double(state.deter), double(state.stoch).reshape(-1)
    a = double(action)
    a = a / np.maximum(1, np.abs(a))
    inputs = [(core.deter_in, h), (core.stoch_in, z), (core.action_in, a)]
    shared = np.concatenate([activate(net[1], linear(net[0], x)) for net, x in inputs])
    own = np.split(h, core.blocks)
    mixed = np.concatenate(blocks(core.mix, [np.concatenate([x, shared]) for x in own]))
    mixed = activate(core.mix_norm, mixed)
    parts = []
    for old, gates in zip(own, blocks(core.gates, np.split(mixed, core.blocks)), strict=True):
        reset, candidate, update = np.split(gates, 3)
        candidate = np.tanh(sigmoid(reset) * candidate)
        u = sigmoid(update - 1)
        parts.append(u * candidate + (1 - u) * old)
    return np.concatenate(parts)


def test_the_recurrence_by_hand() -> None:
    core, state = make_core(), core_state(4)
    action = torch.tensor([[0.5, -0.2], [3.0, 0.0], [-1.0, -40.0], [0.0, 0.0]])
    deter = core.recur(state, core.embed_action(action))
    for b in range(4):
        one = state.map(lambda x, b=b: x[b])
        np.testing.assert_allclose(double(deter[b]), by_hand(core, one, action[b]), rtol=1e-4)


def test_zero_weights_move_by_sigmoid_of_minus_one() -> None:
    core, state = make_core(), core_state(2)
    with torch.no_grad():
        core.gates.weight.zero_()
        core.gates.bias.zero_()
    deter = core.step(state, torch.zeros(2, 2)).deter
    torch.testing.assert_close(deter, state.deter * (1 - 0.26894142))  # candidate 0


def test_actions_beyond_the_edge_are_scaled_back_entry_by_entry() -> None:
    core = make_core()
    action = torch.tensor([[4.0, 0.5], [-0.3, -2.0]])
    torch.testing.assert_close(core.embed_action(action), core.embed_action(action.clamp(-1, 1)))


def test_the_divisor_of_an_action_has_no_gradient() -> None:
    core = make_core()
    action = torch.tensor([[4.0, 0.5]], requires_grad=True)
    edge = torch.tensor([[1.0, 0.5]], requires_grad=True)
    core.embed_action(action).sum().backward()
    core.embed_action(edge).sum().backward()
    assert action.grad is not None
    assert edge.grad is not None
    assert edge.grad.abs().min() > 0
    torch.testing.assert_close(action.grad, edge.grad / torch.tensor([4.0, 1.0]))


# Resets


def test_a_first_step_equals_one_from_the_initial_state() -> None:
    model = make_model()
    batch = random_batch(SPECS["image"], batch=4, length=1)
    obs = {k: v[:, 0] for k, v in batch.obs.items()}
    dirty = random_state(model.config, 4)
    first = torch.tensor([True, False, True, False])
    torch.manual_seed(1)
    after = model.observe(dirty, obs, torch.randn(4, 2), first)
    torch.manual_seed(1)
    torch.randn(4, 2)  # the same draws follow
    fresh = model.observe(model.initial(4), obs, torch.zeros(4, 2), torch.zeros(4).bool())
    assert torch.equal(after.deter[first], fresh.deter[first])
    assert torch.equal(after.stoch[first], fresh.stoch[first])
    assert not torch.equal(after.deter[~first], fresh.deter[~first])


@pytest.mark.parametrize("value", [7.0, float("nan"), float("inf")])
def test_nothing_before_a_first_row_reaches_what_follows(value: float) -> None:
    core = make_core()
    first = torch.tensor([[False, False, True, False, False]])
    embed, action = torch.randn(1, 5, 4), torch.randn(1, 5, 2)
    torch.manual_seed(1)
    clean, clean_params = core.observe(core.initial(1), embed, action, first)
    start = core.initial(1).map(lambda x: x + value)
    embed[:, :2] = value
    action[:, :3] = value  # the action that led to a first row is the last episode's
    torch.manual_seed(1)
    dirty, dirty_params = core.observe(start, embed, action, first)
    assert same(clean.map(lambda x: x[:, 2:]), dirty.map(lambda x: x[:, 2:]))
    assert torch.equal(clean_params[:, 2:], dirty_params[:, 2:])
    assert not torch.equal(clean.deter[:, 1], dirty.deter[:, 1])


def test_history_matters_without_a_reset() -> None:
    core = make_core()
    first = torch.zeros(1, 3, dtype=torch.bool)
    embed, action = torch.randn(1, 3, 4), torch.randn(1, 3, 2)
    torch.manual_seed(1)
    a, _ = core.observe(core_state(1, seed=1), embed, action, first)
    torch.manual_seed(1)
    b, _ = core.observe(core_state(1, seed=2), embed, action, first)
    assert (a.deter != b.deter).any(-1).all()


def test_the_initial_state_is_zero_and_not_learned() -> None:
    core = make_core()
    state = core.initial(3)
    assert state.deter.shape == (3, 6)
    assert state.stoch.shape == (3, 2, 3)
    assert not state.feat.any()
    assert not state.feat.requires_grad


# Sequences are loops over one step


def test_a_sequence_equals_its_steps() -> None:
    model = make_model()
    batch = random_batch(SPECS["image"])
    start = random_state(model.config, 3)
    batch.is_first[2, 0] = False  # one goes on from `start`
    torch.manual_seed(1)
    whole = model.observe(start, batch.obs, batch.action, batch.is_first)
    torch.manual_seed(1)
    state = start
    for t in range(5):
        obs = {k: v[:, t] for k, v in batch.obs.items()}
        state = model.observe(state, obs, batch.action[:, t], batch.is_first[:, t])
        torch.testing.assert_close(state.deter, whole.deter[:, t])
        assert torch.equal(state.stoch, whole.stoch[:, t])


def test_imagination_is_a_loop_over_step() -> None:
    model = make_model()
    assert isinstance(model, Dynamics)
    start, actions = random_state(model.config, 4), torch.randn(4, 6, 2)
    torch.manual_seed(1)
    states, taken = model.imagine(start, actions, 6)
    assert states.deter.shape == (4, 7, 16)
    assert states.stoch.shape == (4, 7, 3, 4)
    assert torch.equal(taken, actions)
    assert same(states.map(lambda x: x[:, 0]), start)
    torch.manual_seed(1)
    state = start
    for h in range(6):
        prediction = model.step(state, actions[:, h])
        state = prediction.state
        assert same(state, states.map(lambda x, h=h: x[:, h + 1]))
        assert torch.equal(prediction.reward, model.reward(state.feat))
        cont = model.discounted_cont(state.feat)
        assert torch.equal(prediction.cont, (cont / model.discount).clamp(0, 1))


def test_a_policy_is_asked_at_every_state_but_the_last() -> None:
    model = make_model()
    seen: list[LatentState] = []

    def policy(state: LatentState) -> Tensor:
        seen.append(state)
        return state.deter[:, :2]

    states, actions = model.imagine(random_state(model.config, 4), policy, 3)
    assert len(seen) == 3
    for h, state in enumerate(seen):
        assert same(state, states.map(lambda x, h=h: x[:, h]))
    assert torch.equal(actions, states.deter[:, :3, :2])


# Latents


def test_categorical_latents_are_one_hot_with_one_percent_uniform() -> None:
    core = make_core()
    params = 100 * torch.randn(500, 2, 3)
    z = core.sample(params)
    assert z.shape == (500, 2, 3)
    assert torch.equal(z.sort(-1).values, torch.tensor([0.0, 0, 1]).expand(500, 2, 3))
    dist = core.dist(params)
    low = dist.probs.min().item()  # type: ignore[union-attr]
    assert low == pytest.approx(0.01 / 3, rel=1e-4)


def test_kl_and_entropy_are_summed_over_the_groups() -> None:
    core = make_core(unimix=0.1)
    a, b = torch.randn(4, 2, 3), torch.randn(4, 2, 3)
    p, q = (0.9 * np.exp(double(x)) / np.exp(double(x)).sum(-1, keepdims=True) for x in (a, b))
    p, q = p + 0.1 / 3, q + 0.1 / 3
    kl = (p * np.log(p / q)).sum((-1, -2))
    np.testing.assert_allclose(double(core.kl(a, b)), kl, rtol=1e-4)
    np.testing.assert_allclose(double(core.entropy(a)), -(p * np.log(p)).sum((-1, -2)), rtol=1e-5)


def test_gaussian_latents_by_hand() -> None:
    core = make_core("gaussian")
    assert core.initial(3).stoch.shape == (3, 2, 1)
    a, b = torch.randn(4, 2, 2), torch.randn(4, 2, 2)

    def moments(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
        return double(x[..., 0]), 2 * sigmoid(double(x[..., 1]) / 2) + 0.1

    (m, s), (n, t) = moments(a), moments(b)
    kl = (np.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5).sum(-1)
    np.testing.assert_allclose(double(core.kl(a, b)), kl, rtol=1e-4)
    entropy = (np.log(s) + 0.5 * np.log(2 * np.pi * np.e)).sum(-1)
    np.testing.assert_allclose(double(core.entropy(a)), entropy, rtol=1e-4)
    torch.manual_seed(0)
    draws = core.sample(a[0].expand(20000, 2, 2))
    assert draws.shape == (20000, 2, 1)
    np.testing.assert_allclose(double(draws.mean(0)[:, 0]), m[0], atol=0.06)
    np.testing.assert_allclose(double(draws.std(0)[:, 0]), s[0], rtol=0.03)


def test_a_gaussian_model_observes_imagines_and_learns() -> None:
    spec = spec_of(CONTINUOUS)
    torch.manual_seed(0)
    model = WorldModel(spec, tiny(latent="gaussian"))
    assert model.feat_size == 16 + 3
    batch = random_batch(spec)
    total, metrics = model.loss(batch)
    total.backward()
    assert torch.isfinite(total)
    assert metrics["kl"].item() > 0
    states, _ = model.imagine(model.initial(2), torch.zeros(2, 4, 2), 4)
    assert states.stoch.shape == (2, 5, 3, 1)
    assert model.decode(states)["image"].shape == (2, 5, 32, 32, 3)


def test_an_unknown_latent_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"Unknown latent 'vq'. Known: categorical, gaussian."):
        make_core("vq")
