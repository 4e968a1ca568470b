"""The world model: its losses by hand, its heads, and which weights each loss may move."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.model_batches import (
    CHOICES,
    IMAGE,
    MIXED,
    SPECS,
    VECTOR,
    double,
    learners,
    random_batch,
    random_state,
    scramble,
    spec_of,
    tiny,
)
from worldmodel.rssm import HeadConfig, ModelOutput, WorldModel
from worldmodel.types import MASK_KEY, Batch, EnvSpec


def make(spec: EnvSpec = MIXED, scale: float = 0.1, **overrides: Any) -> WorldModel:
    torch.manual_seed(0)
    model = WorldModel(spec, tiny(**overrides))
    if scale:
        scramble(model, scale=scale)
    return model


def losses(model: WorldModel, batch: Batch) -> ModelOutput:
    torch.manual_seed(1)
    return model.losses(batch)


def default_heads(**more: HeadConfig) -> dict[str, HeadConfig]:
    return {
        "reward": HeadConfig("reward", "twohot"),
        "cont": HeadConfig("cont", "bernoulli"),
    } | more


# Observations of every kind


@pytest.mark.parametrize("name", SPECS)
def test_every_kind_of_observation_passes_losses_and_decode(name: str) -> None:
    spec = SPECS[name]
    model, batch = make(spec), random_batch(spec)
    output = losses(model, batch)
    expected = {"dyn", "rep", "reward", "cont", *spec.obs}
    assert set(output.losses) == expected
    assert all(x.shape == (3, 5) for x in output.losses.values())
    assert all(torch.isfinite(x).all() for x in output.losses.values())
    decoded = model.decode(output.states)
    shown = [k for k in spec.obs if k != MASK_KEY]
    assert sorted(decoded) == sorted(shown)
    for key in shown:
        assert decoded[key].shape == batch.obs[key].shape
    total, metrics = model.loss(batch)
    total.backward()
    assert {f"loss/{k}" for k in expected} < set(metrics)
    assert not any(x.requires_grad for x in metrics.values())


def test_reconstruction_losses_by_hand() -> None:
    model, batch = make(), random_batch(MIXED)
    output = losses(model, batch)
    decoded = model.decode(output.states)
    for key in ("image", "wrist"):
        error = (double(decoded[key]) - double(batch.obs[key]) / 255) ** 2
        np.testing.assert_allclose(double(output.losses[key]), error.sum((2, 3, 4)), rtol=1e-4)

    def symlog(x: Tensor) -> np.ndarray:
        return np.sign(double(x)) * np.log1p(np.abs(double(x)))

    error = (symlog(decoded["v"]) - symlog(batch.obs["v"])) ** 2
    np.testing.assert_allclose(double(output.losses["v"]), error.sum(-1), rtol=1e-4)
    parts = decoded["c"].split([2, 3], -1)
    assert all(torch.equal(p.sum(-1), torch.ones(3, 5)) for p in parts)


def test_a_one_hot_observation_costs_its_cross_entropy() -> None:
    model, batch = make(SPECS["discrete"], scale=0.0), random_batch(SPECS["discrete"])
    head = model.decoder.heads["to_c"]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0, math.log(3), 0.0, 0.0, math.log(2)]))
    logs = np.log([1 / 4, 3 / 4, 1 / 4, 1 / 4, 1 / 2])
    expected = -(double(batch.obs["c"]) * logs).sum(-1)
    np.testing.assert_allclose(double(losses(model, batch).losses["c"]), expected, rtol=1e-5)


def test_observations_may_have_any_name() -> None:
    spec = spec_of(type=VECTOR, values=CHOICES, to=IMAGE)
    output = losses(make(spec), random_batch(spec))
    assert set(output.losses) == {"dyn", "rep", "reward", "cont", "type", "values", "to"}


# KL


def test_free_nats_hold_each_step_and_not_the_mean() -> None:
    batch = random_batch(SPECS["image"])
    free, bound = make(SPECS["image"], free_nats=0.0), make(SPECS["image"], free_nats=0.25)
    kl = losses(free, batch)
    clipped = losses(bound, batch)
    assert kl.losses["dyn"].min() < 0.25 < kl.losses["dyn"].max()  # both sides occur
    for name in ("dyn", "rep"):
        assert torch.equal(clipped.losses[name], kl.losses[name].clamp_min(0.25))
        assert torch.equal(kl.losses[name], kl.losses["dyn"])  # equal in value, not in gradient
    assert clipped.metrics["kl"] == kl.metrics["kl"]  # the metric is not clipped
    assert make(SPECS["image"]).config.free_nats == 1.0


def test_kl_within_the_free_nats_teaches_nothing() -> None:
    model, batch = make(SPECS["image"], free_nats=1e3), random_batch(SPECS["image"])
    output = losses(model, batch)
    assert torch.equal(output.losses["dyn"], torch.full((3, 5), 1e3))
    for name in ("dyn", "rep"):
        assert not learners(output.losses[name].mean(), model, GROUPS)


def test_kl_is_between_the_posterior_and_the_prior_of_the_same_step() -> None:
    model, batch = make(SPECS["image"], free_nats=0.0), random_batch(SPECS["image"])
    output = losses(model, batch)
    torch.manual_seed(1)
    states, posterior = model.core.observe(
        model.initial(3), model.encoder(batch.obs), batch.action, batch.is_first
    )
    assert torch.equal(states.stoch, output.states.stoch)

    def probs(x: Tensor) -> np.ndarray:
        e = np.exp(double(x))
        return 0.99 * e / e.sum(-1, keepdims=True) + 0.01 / 4

    p, q = probs(posterior), probs(model.core.prior(states.deter))
    kl = (p * np.log(p / q)).sum((-1, -2))
    np.testing.assert_allclose(double(output.losses["dyn"]), kl, rtol=1e-3, atol=1e-6)


# Heads


def test_rewards_start_at_exactly_zero() -> None:
    model = make(SPECS["image"], scale=0.0)
    prediction = model.step(random_state(model.config, 4), torch.randn(4, 2))
    assert torch.equal(prediction.reward, torch.zeros(4))
    assert prediction.cont.shape == (4,)
    assert ((prediction.cont > 0) & (prediction.cont < 1)).all()


def test_continue_carries_the_discount() -> None:
    model, batch = make(SPECS["image"], discount_horizon=5), random_batch(SPECS["image"])
    assert make(SPECS["image"]).discount == 1 - 1 / 333
    out = model.heads["cont"].out  # type: ignore[union-attr]
    with torch.no_grad():
        out.weight.zero_()
        out.bias.fill_(2.0)
    p = 1 / (1 + math.exp(-2))
    live = -(0.8 * math.log(p) + 0.2 * math.log(1 - p))
    over = -math.log(1 - p)
    expected = np.where(batch.is_terminal, over, live)
    assert batch.is_last.sum() > batch.is_terminal.sum() > 0  # a truncation is no end
    np.testing.assert_allclose(double(losses(model, batch).losses["cont"]), expected, rtol=1e-5)


def test_control_weighs_the_heads() -> None:
    heads = default_heads(comfort=HeadConfig("reward", "mse"))
    model = make(SPECS["image"], heads=heads, control={"reward": 2.0, "comfort": -0.5})
    feat = random_state(model.config, 4).feat
    parts = [model.heads[k].predict(feat) for k in ("reward", "comfort")]  # type: ignore[operator]
    torch.testing.assert_close(model.reward(feat), 2 * parts[0] - 0.5 * parts[1])


def test_heads_learn_any_key_of_the_batch() -> None:
    heads = default_heads(
        point=HeadConfig("v", "mse"), squashed=HeadConfig("v", "symlog_mse"),
        coins=HeadConfig("c", "bernoulli"), scalar=HeadConfig("reward", "mse"),
    )  # fmt: skip
    model, batch = make(heads=heads), random_batch(MIXED)
    output = losses(model, batch)
    feat = output.states.feat
    head = {k: m.predict(feat) for k, m in model.heads.items()}  # type: ignore[operator]
    assert head["point"].shape == (3, 5, 5)
    assert head["scalar"].shape == (3, 5)
    v, c, reward = batch.obs["v"], batch.obs["c"], batch.reward
    torch.testing.assert_close(output.losses["point"], (head["point"] - v).square().sum(-1))
    torch.testing.assert_close(output.losses["scalar"], (head["scalar"] - reward).square())
    log = c * head["coins"].log() + (1 - c) * (1 - head["coins"]).log()
    torch.testing.assert_close(output.losses["coins"], -log.sum(-1))
    symlog = [x.sign() * x.abs().log1p() for x in (head["squashed"], v)]
    torch.testing.assert_close(output.losses["squashed"], (symlog[0] - symlog[1]).square().sum(-1))


def test_the_mask_head_learns_which_actions_are_allowed() -> None:
    model, batch = make(), random_batch(MIXED)
    output = losses(model, batch)
    feat = output.states.feat
    p = model.heads[MASK_KEY].predict(feat)  # type: ignore[operator]
    mask = batch.obs[MASK_KEY]
    log = mask * p.log() + (1 - mask) * (1 - p).log()
    torch.testing.assert_close(output.losses[MASK_KEY], -log.sum(-1))
    predicted = model.allowed(feat)
    assert predicted is not None
    assert torch.equal(predicted, (p > 0.5).float())
    assert 0 < predicted.mean() < 1
    assert make(SPECS["image"]).action_mask(random_state(tiny(), 2)) is None


def test_the_total_is_the_weighted_sum_of_means() -> None:
    heads = default_heads(point=HeadConfig("v", "mse", scale=7.0))
    model = make(heads=heads, dyn_scale=0.5, rep_scale=0.25, image_scale=2.0, vector_scale=3.0)
    batch = random_batch(MIXED)
    scales = {
        "dyn": 0.5, "rep": 0.25, "image": 2.0, "wrist": 2.0, "v": 3.0, "c": 3.0, MASK_KEY: 1.0,
        "reward": 1.0, "cont": 1.0, "point": 7.0,
    }  # fmt: skip
    parts = losses(model, batch).losses
    torch.manual_seed(1)
    total, _ = model.loss(batch)
    expected = sum(scales[k] * v.mean().item() for k, v in parts.items())
    assert total.item() == pytest.approx(expected, rel=1e-5)
    paper = make().config
    assert (paper.dyn_scale, paper.rep_scale, paper.image_scale) == (1.0, 0.1, 1.0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"control": {"rewrad": 1.0}}, r"Unknown head 'rewrad'. Known heads: reward, cont."),
        ({"heads": {"reward": HeadConfig()}}, r"Unknown head 'cont'. Known heads: reward."),
        ({"heads": default_heads(x=HeadConfig("nothing"))}, r"No target 'nothing' .* cont, action"),
        ({"heads": default_heads(x=HeadConfig(kind="cat"))}, r"Unknown head kind 'cat'. Known: "),
        ({"heads": default_heads(x=HeadConfig("v", "twohot"))}, r"predicts one scalar; use mse"),
        ({"heads": default_heads(v=HeadConfig("v", "mse"))}, r"head 'v' .* another name"),
        ({"heads": default_heads(dyn=HeadConfig("v", "mse"))}, r"head 'dyn' .* another name"),
        ({"heads": default_heads(type=HeadConfig("v", "mse"))}, r"head 'type' .* another name"),
    ],
)
def test_impossible_heads_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**overrides)


# Who learns from what

GROUPS = {
    "encoder": "encoder",
    "core.prior_net": "prior",
    "core.post": "posterior",
    "core": "recurrence",
    "decoder": "decoder",
    "heads.reward": "reward head",
    "heads.cont": "continue head",
    "heads.action_mask": "mask head",
    "heads.read": "reading head",
}
LATENT = {"encoder", "posterior", "recurrence"}
MODEL = make(
    free_nats=0.0,
    heads=default_heads(read=HeadConfig("v", "mse", trains_latent=False)),
)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("dyn", {"prior", *LATENT}),  # the latents of earlier steps, through deter
        ("rep", LATENT),
        ("image", {"decoder", *LATENT}),
        ("v", {"decoder", *LATENT}),
        ("c", {"decoder", *LATENT}),
        ("reward", {"reward head", *LATENT}),
        ("cont", {"continue head", *LATENT}),
        (MASK_KEY, {"mask head", *LATENT}),
        ("read", {"reading head"}),
    ],
)
def test_who_learns_from_each_loss(loss: str, expected: set[str]) -> None:
    output = losses(MODEL, random_batch(MIXED))
    assert learners(output.losses[loss].mean(), MODEL, GROUPS) == expected


def test_the_dynamics_loss_never_moves_the_posterior_of_its_own_step() -> None:
    # With a new episode in every row no earlier latent is left to reach.
    batch = random_batch(MIXED)
    batch.is_first[:] = True
    output = losses(MODEL, batch)
    assert learners(output.losses["dyn"].mean(), MODEL, GROUPS) == {"prior", "recurrence"}
    assert learners(output.losses["rep"].mean(), MODEL, GROUPS) == LATENT


def test_no_gradient_crosses_a_first_row() -> None:
    obs, batch = random_batch(MIXED).obs, random_batch(MIXED)
    obs["v"] = obs["v"].requires_grad_()
    batch.obs = obs
    batch.is_first[0, 3] = True
    loss = losses(MODEL, batch).losses["dyn"]
    (grad,) = torch.autograd.grad(loss[0, 4], obs["v"])
    moved = grad[0].abs().sum(-1) > 0
    assert moved.tolist() == [False, False, False, True, False]  # not its own row, nor before


def test_no_weight_of_the_world_model_is_left_out() -> None:
    model, batch = make(free_nats=0.0), random_batch(MIXED)
    total, _ = model.loss(batch)
    total.backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
