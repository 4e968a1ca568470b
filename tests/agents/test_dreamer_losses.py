"""Dreamer's actor and critic losses by hand, and which weights each of them may move."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.dreamer import Dreamer, DreamerConfig
from agents.dreamer.gradient import GRADIENTS
from tests.model_batches import (
    CONTINUOUS,
    DISCRETE,
    VECTOR,
    double,
    learners,
    random_batch,
    scramble,
    spec_of,
    tiny,
)
from worldmodel.config import ConfigError
from worldmodel.distributions import TwoHot
from worldmodel.optim import OptimConfig
from worldmodel.rssm import ModelOutput
from worldmodel.rssm.state import LatentState
from worldmodel.types import ActionSpec, Batch

SPECS = {"continuous": spec_of(CONTINUOUS, v=VECTOR), "discrete": spec_of(DISCRETE, v=VECTOR)}
BINS = TwoHot(torch.zeros(255)).bins
GROUPS = {
    "model.encoder": "encoder",
    "model.core.prior_net": "prior",
    "model.core.post": "posterior",
    "model.core": "recurrence",
    "model.decoder": "decoder",
    "model.heads": "heads",
    "actor": "actor",
    "critic": "critic",
    "slow_critic": "slow critic",
}


def make(kind: str = "continuous", **overrides: Any) -> Dreamer:
    torch.manual_seed(0)
    settings = {"batch_size": 3, "batch_length": 5, "horizon": 4} | overrides
    settings = {"model": tiny(free_nats=0.0)} | settings
    config = DreamerConfig(**settings, optim=OptimConfig(lr=1e-3, warmup=0))
    agent = Dreamer(SPECS[kind], config, torch.device("cpu"))
    scramble(agent.module, scale=0.1)
    for head in (agent.critic, agent.slow_critic.module, agent.model.heads["reward"]):
        calm(head.out)  # type: ignore[union-attr]
    return agent


def calm(out: Any) -> None:
    """Predictions of a few units, not of the outermost bins."""
    with torch.no_grad():
        out.bias.sub_(0.02 * (torch.arange(255) - 130.0).square())


def losses(agent: Dreamer, batch: Batch) -> tuple[ModelOutput, dict[str, tuple[float, Tensor]]]:
    torch.manual_seed(1)
    output = agent.model.losses(batch)
    torch.manual_seed(2)
    found, _ = agent.behaviour_losses(batch, output)
    return output, found


def expectation(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return (p / p.sum(-1, keepdims=True) * double(BINS)).sum(-1)


def cross_entropy(logits: np.ndarray, target: np.ndarray) -> np.ndarray:
    """-log q of the two bins around every target, weighted by nearness."""
    top = logits.max(-1, keepdims=True)
    logs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    bins = double(BINS)
    high = np.searchsorted(bins, target, side="right").clip(1, 254)
    share = (target - bins[high - 1]) / (bins[high] - bins[high - 1])
    at = [np.take_along_axis(logs, i[..., None], -1)[..., 0] for i in (high - 1, high)]
    return -((1 - share) * at[0] + share * at[1])


def imagined(agent: Dreamer, output: ModelOutput) -> dict[str, np.ndarray]:
    """The same rollouts as in `losses`, and what everybody says of them, in float64."""
    starts = output.states.map(lambda x: x.detach().flatten(0, 1))
    torch.manual_seed(2)
    with torch.no_grad():
        states, drawn = agent.imagine(starts)
        actions = torch.stack(drawn, 1)
        feat = states.feat
        return {
            "feat": double(feat),
            "action": double(actions),
            "reward": double(agent.model.reward(feat)),
            "cont": double(agent.model.discounted_cont(feat)),
            "critic": double(agent.critic(feat).logits),
            "slow": double(agent.slow_critic(feat).logits),
        }


def returns_of(x: dict[str, np.ndarray], lam: float = 0.95) -> np.ndarray:
    value = expectation(x["critic"])
    ret, out = value[:, -1], []
    for t in range(value.shape[1] - 1, 0, -1):
        ret = x["reward"][:, t] + x["cont"][:, t] * ((1 - lam) * value[:, t] + lam * ret)
        out.append(ret)
    return np.stack(out[::-1], 1)


# Values


def test_the_critic_loss_by_hand() -> None:
    agent, batch = make(), random_batch(SPECS["continuous"])
    output, found = losses(agent, batch)
    x = imagined(agent, output)
    returns, slow = returns_of(x), expectation(x["slow"])
    weight = np.cumprod(x["cont"], 1)[:, :-1]  # the start's own included
    logits = x["critic"][:, :-1]
    both = cross_entropy(logits, returns) + cross_entropy(logits, slow[:, :-1])
    assert weight.shape == (15, 4)
    scale, loss = found["critic"]
    assert scale == 1.0
    np.testing.assert_allclose(loss.item(), (weight * both).mean(), rtol=1e-4)


@pytest.mark.parametrize("kind", SPECS)
def test_the_actor_loss_by_hand(kind: str) -> None:
    agent, batch = make(kind, entropy=0.3), random_batch(SPECS[kind])
    agent.return_scale.high.fill_(4.0)
    output, found = losses(agent, batch)
    x = imagined(agent, output)
    returns, value = returns_of(x), expectation(x["critic"])
    low, high = np.quantile(returns, [0.05, 0.95])
    spread = max(1.0, (0.99 * 4 + 0.01 * high) - 0.01 * low)
    assert spread > 1
    advantage = (returns - value[:, :-1]) / spread
    with torch.no_grad():
        hidden = agent.actor.mlp(torch.tensor(x["feat"][:, :-1]).float())
        out = double(agent.actor.out(hidden))
    action = x["action"][:, :-1]
    if kind == "continuous":
        mean, raw = np.tanh(out), double(agent.actor.spread(hidden))
        std = 0.9 / (1 + np.exp(-(raw + 2))) + 0.1
        logs = -0.5 * ((action - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
        entropy = (np.log(std) + 0.5 * np.log(2 * np.pi * np.e)).sum(-1)
        log_prob = logs.sum(-1)
    else:
        p = np.exp(out) / np.exp(out).sum(-1, keepdims=True)
        p = 0.99 * p + 0.01 / 3
        log_prob = np.log((p * action).sum(-1))
        entropy = -(p * np.log(p)).sum(-1)
    weight = np.cumprod(x["cont"], 1)[:, :-1]
    expected = -(weight * (log_prob * advantage + 0.3 * entropy)).mean()
    np.testing.assert_allclose(found["actor"][1].item(), expected, rtol=1e-3)


@pytest.mark.parametrize(("done", "weight"), [(0, 0.3), (5, 0.165), (10, 0.03), (30, 0.03)])
def test_the_weight_of_entropy_falls_to_a_tenth_on_request(done: int, weight: float) -> None:
    agent, same = make(entropy=0.3, entropy_anneal=10), make(entropy=weight)
    agent.optim.updates = same.optim.updates = done
    batch = random_batch(SPECS["continuous"])
    found, expected = (losses(one, batch)[1]["actor"][1].item() for one in (agent, same))
    assert found == pytest.approx(expected, rel=1e-6)
    assert same.dream_config(same.model, updates=7).entropy_anneal == 0
    assert agent.dream_config(agent.model, updates=7).entropy_anneal == 7


def test_the_dynamics_loss_by_hand() -> None:
    agent, batch = make(entropy=0.3, actor_gradient="dynamics"), random_batch(SPECS["continuous"])
    agent.return_scale.high.fill_(4.0)
    output, found = losses(agent, batch)
    x = imagined(agent, output)
    returns = returns_of(x)
    low, high = np.quantile(returns, [0.05, 0.95])
    spread = max(1.0, (0.99 * 4 + 0.01 * high) - 0.01 * low)
    with torch.no_grad():
        hidden = agent.actor.mlp(torch.tensor(x["feat"][:, :-1]).float())
        raw = double(agent.actor.spread(hidden))
    std = 0.9 / (1 + np.exp(-(raw + 2))) + 0.1
    entropy = (np.log(std) + 0.5 * np.log(2 * np.pi * np.e)).sum(-1)
    weight = np.cumprod(x["cont"], 1)[:, :-1]
    expected = -(weight * (returns / spread + 0.3 * entropy)).mean()
    np.testing.assert_allclose(found["actor"][1].item(), expected, rtol=1e-4)


def test_the_dynamics_gradient_is_that_of_the_returns() -> None:
    # Against differences: no weight, clipped action or range of returns changes with the policy.
    agent = make(
        entropy=0.0, actor_gradient="dynamics", return_rate=0.0, model=tiny(latent="gaussian")
    )
    agent.return_scale.high.fill_(4.0)
    with torch.no_grad():
        agent.model.heads["cont"].out.weight.zero_()  # type: ignore[union-attr, operator]
        agent.actor.spread.bias.fill_(-20.0)  # the least deviation
    batch = random_batch(SPECS["continuous"])
    output, found = losses(agent, batch)
    assert np.abs(imagined(agent, output)["action"]).max() < 1
    assert agent.return_scale.scale.item() == 4.0
    bias = agent.actor.out.bias
    (grad,) = torch.autograd.grad(found["actor"][1], bias)
    step, ends = 0.003 * torch.sign(grad), []
    for sign in (1, -1):
        with torch.no_grad():
            bias.copy_(bias + sign * step)
        ends.append(losses(agent, batch)[1]["actor"][1].item())
        with torch.no_grad():
            bias.copy_(bias - sign * step)
    assert grad.abs().min() > 1e-4
    np.testing.assert_allclose((ends[0] - ends[1]) / 2, (step * grad).sum().item(), rtol=0.01)


@pytest.mark.parametrize("gradient", ["dynamics", "quieter"])
def test_a_gradient_through_the_world_needs_continuous_actions(gradient: str) -> None:
    with pytest.raises(ConfigError, match=rf"={gradient} is .* here they are discrete.*=reinforce"):
        make("discrete", actor_gradient=gradient)


def test_the_replay_value_loss_by_hand() -> None:
    agent, batch = make(), random_batch(SPECS["continuous"])
    output, found = losses(agent, batch)
    first = returns_of(imagined(agent, output))[:, 0].reshape(3, 5)
    d, lam = 1 - 1 / 333, 0.95
    feat = output.states.feat.detach()
    logits, slow = (double(c(feat).logits) for c in (agent.critic, agent.slow_critic))
    total = 0.0
    for b in range(3):
        ret = first[b, 4]
        for t in range(3, -1, -1):
            over, last = bool(batch.is_terminal[b, t + 1]), bool(batch.is_last[b, t + 1])
            ahead = first[b, t + 1] if last else (1 - lam) * first[b, t + 1] + lam * ret
            ret = float(batch.reward[b, t + 1]) + (0.0 if over else d) * ahead
            if not batch.is_last[b, t]:
                target = np.array([ret]), np.array([expectation(slow[b, t])])
                total += sum(cross_entropy(logits[b, t][None], x)[0] for x in target)
    scale, loss = found["replay_value"]
    assert scale == 0.3
    np.testing.assert_allclose(loss.item(), total / 12, rtol=1e-4)


def test_without_imagination_recorded_returns_rest_on_the_critic() -> None:
    agent = make(imagination_starts=2, lam=0.0)
    batch = random_batch(SPECS["continuous"])
    batch.is_last[:] = batch.is_terminal[:] = False
    output = agent.model.losses(batch)
    rows = torch.tensor([1, 13])  # (0, 1) and (2, 3)
    with torch.no_grad():
        value = agent.critic(output.states.feat).mean
        boot = value.clone()
        boot[0, 1], boot[2, 3] = 5.0, -5.0
        target = batch.reward[:, 1:] + agent.model.discount * boot[:, 1:]
        logits = double(agent.critic(output.states.feat).logits)[:, :-1]
        slow = double(agent.slow_critic(output.states.feat).mean)[:, :-1]
    expected = cross_entropy(logits, double(target)) + cross_entropy(logits, slow)
    loss = agent.replay_value_loss(batch, output, torch.tensor([5.0, -5.0]), rows)
    np.testing.assert_allclose(loss.item(), expected.mean(), rtol=1e-4)


# Where imagination starts


def test_imagination_starts_at_every_posterior_or_at_some_of_each_sequence() -> None:
    batch = random_batch(SPECS["continuous"])
    batch.is_first[:, 1:] = False  # so that no two states of a sequence are alike
    for starts, expected in ((0, 15), (2, 6), (5, 15), (9, 15)):
        agent = make(imagination_starts=starts)
        seen: list[LatentState] = []
        imagine = agent.imagine

        def spy(
            start: LatentState, seen: Any = seen, imagine: Any = imagine
        ) -> tuple[LatentState, list[Tensor]]:
            seen.append(start)
            return imagine(start)

        agent.imagine = spy  # type: ignore[method-assign]
        output, _ = losses(agent, batch)
        (start,) = seen
        assert len(start.deter) == expected
        assert not start.feat.requires_grad  # cut 1
        for b, own in enumerate(start.deter.chunk(3)):
            here = (own.unsqueeze(1) == output.states.deter[b]).all(-1)
            assert here.any(1).all()  # of its own sequence
            assert here.any(0).sum() == expected // 3  # and no state twice


# Who learns from what


@pytest.mark.parametrize(
    ("kind", "gradient"),
    [*(("continuous", gradient) for gradient in GRADIENTS), ("discrete", "reinforce")],
)
def test_who_learns_from_each_loss(kind: str, gradient: str) -> None:
    agent = make(kind, actor_gradient=gradient)
    _, found = losses(agent, random_batch(SPECS[kind]))
    latent = {"encoder", "posterior", "recurrence"}
    expected = {"actor": {"actor"}, "critic": {"critic"}, "replay_value": {"critic", *latent}}
    assert set(found) == set(expected)
    for name, groups in expected.items():
        assert learners(found[name][1], agent.module, GROUPS) == groups, name


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_behaviour_leaves_the_gradient_of_the_world_model_alone(gradient: str, half: bool) -> None:
    # Only the replay value reaches the model; without it a whole update is the model's own.
    agent = make(replay_value_scale=0.0, actor_gradient=gradient)
    batch = random_batch(SPECS["continuous"])
    params = [p for _, p in agent.model.named_parameters()]

    def casting() -> torch.autocast:  # with its memory of cast weights
        return torch.autocast("cpu", torch.bfloat16, enabled=half)

    torch.manual_seed(1)
    with casting():
        alone, _ = agent.model.loss(batch)
    expected = torch.autograd.grad(alone, params)
    with casting():
        output, found = losses(agent, batch)
    total = sum(agent.model.scale(k) * v.mean() for k, v in output.losses.items())
    total = torch.as_tensor(total) + sum(scale * loss for scale, loss in found.values())
    for ours, theirs in zip(torch.autograd.grad(total, params), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_no_weight_of_actor_and_critic_is_left_out_and_none_of_the_slow_critic_trained() -> None:
    agent = make()
    agent.train_on(random_batch(SPECS["continuous"]))
    for module in (agent.actor, agent.critic):
        assert all(p.grad is not None and p.grad.any() for p in module.parameters())
    assert not any(p.requires_grad for p in agent.slow_critic.parameters())
    assert not any(name.startswith("slow") for name in agent.optim.names)


def test_a_step_minimises_the_scaled_sum() -> None:
    agent, batch = make(), random_batch(SPECS["continuous"])
    torch.manual_seed(1)
    metrics, states = agent.train_on(batch)
    scales = {"rep": 0.1, "replay_value": 0.3}
    names = ("dyn", "rep", "v", "reward", "cont", "actor", "critic", "replay_value")
    expected = sum(scales.get(k, 1.0) * metrics[f"loss/{k}"].item() for k in names)
    assert metrics["loss/total"].item() == pytest.approx(expected, rel=1e-5)
    assert states.deter.shape == (3, 5, 16)
    assert not states.feat.requires_grad


def test_multi_discrete_actions_are_learned_too() -> None:
    spec = spec_of(ActionSpec("discrete", (2, 3)), v=VECTOR)
    torch.manual_seed(0)
    agent = Dreamer(spec, DreamerConfig(horizon=2, model=tiny()), torch.device("cpu"))
    metrics, _ = agent.train_on(random_batch(spec))
    assert metrics["actor_entropy"].item() == pytest.approx(np.log(6), abs=0.01)
