"""Dreamer: acting, its losses by hand, who learns from them, and what is kept."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from agents.base import Agent, parameters_count
from agents.dreamer import Dreamer, DreamerConfig
from agents.returns import lambda_return, replay_return
from tests.model_batches import (
    DISCRETE,
    MASK,
    SPECS,
    VECTOR,
    random_batch,
    scramble,
    spec_of,
    tiny,
)
from worldmodel.nets import count_parameters
from worldmodel.optim import OptimConfig
from worldmodel.replay import Replay, ReplayConfig
from worldmodel.rssm import HeadConfig, ModelConfig
from worldmodel.types import MASK_KEY, ActionSpec, EnvSpec, ObsSpec

CPU = torch.device("cpu")
MASKED = spec_of(DISCRETE, **{"v": VECTOR, MASK_KEY: MASK})


def make(spec: EnvSpec = SPECS["image"], scale: float = 0.1, **overrides: Any) -> Dreamer:
    torch.manual_seed(0)
    model = overrides.pop("model", {})
    settings = {"batch_size": 4, "batch_length": 6, "horizon": 3} | overrides
    optim = OptimConfig(lr=1e-3, warmup=0)
    agent = Dreamer(spec, DreamerConfig(**settings, model=tiny(**model), optim=optim), CPU)
    if scale:
        scramble(agent.module, scale=scale)
    return agent


def rows(spec: EnvSpec, batch: int, t: int = 0) -> dict[str, np.ndarray]:
    """One moment of random observations [B, ...] as an environment gives them."""
    return {k: v[:, 0].numpy() for k, v in random_batch(spec, batch, 1, seed=t).obs.items()}


def filled(agent: Dreamer, steps: int = 40, num_envs: int = 2) -> Replay:
    """A replay of random rows, with no stored latents."""
    replay = Replay(agent.spec, ReplayConfig(capacity=200), num_envs, agent.columns)
    batch = random_batch(agent.spec, num_envs, steps)
    for t in range(steps):
        names = ("action", "reward", "is_first", "is_last", "is_terminal")
        row: dict[str, Any] = {k: getattr(batch, k)[:, t].numpy() for k in names}
        replay.add(row | {k: v[:, t].numpy() for k, v in batch.obs.items()})
    return replay


# Sizes and settings


@pytest.mark.parametrize(
    ("sizes", "millions"),
    [
        ((512, 64, 4, 4, 64), 0.687),
        ((2048, 256, 16, 16, 256), 10.49),
        ((3072, 384, 24, 24, 384), 23.5),
        ((4096, 512, 32, 32, 512), 41.7),
        ((8192, 1024, 64, 64, 1024), 166),
    ],
)
def test_the_published_sizes_have_the_published_number_of_weights(
    sizes: tuple[int, ...], millions: float
) -> None:
    spec = spec_of(ActionSpec("continuous", (6,)), image=ObsSpec("image", (64, 64, 3)))
    names = ("deter", "hidden", "classes", "depth", "units")
    config = DreamerConfig(model=ModelConfig(**dict(zip(names, sizes, strict=True))))
    with torch.device("meta"):
        agent = Dreamer(spec, config, torch.device("meta"))
    assert parameters_count(agent) == count_parameters(agent.module)
    assert float(f"{parameters_count(agent) / 1e6:.4g}") == pytest.approx(millions, rel=3e-3)


def test_the_defaults_are_the_papers() -> None:
    c = DreamerConfig()
    assert (c.batch_size, c.batch_length, c.horizon, c.lam) == (16, 64, 15, 0.95)
    assert (c.entropy, c.actor_unimix, c.actor_layers, c.critic_layers) == (3e-4, 0.01, 3, 3)
    assert (c.slow_rate, c.slow_scale, c.return_rate) == (0.02, 1.0, 0.01)
    assert (c.replay_value_scale, c.imagination_starts) == (0.3, 0)
    assert (c.optim.lr, c.optim.warmup, c.optim.agc) == (4e-5, 1000, 0.3)
    assert (c.model.free_nats, c.model.unimix, c.model.discount_horizon) == (1.0, 0.01, 333)


def test_values_start_at_exactly_zero() -> None:
    agent = make(scale=0.0)
    feat = torch.randn(5, agent.model.feat_size)
    assert torch.equal(agent.critic(feat).mean, torch.zeros(5))
    assert torch.equal(agent.slow_critic(feat).mean, torch.zeros(5))


# Acting


@pytest.mark.parametrize("latent", ["categorical", "gaussian"])
@pytest.mark.parametrize("name", ["mixed", "discrete"])
def test_a_tick_acts_as_the_agent_does_without_drawing(name: str, latent: str) -> None:
    spec = SPECS[name]
    agent = make(spec, model={"latent": latent})
    tick = agent.tick()
    state = other = agent.initial(3)
    agent.model.core.sample = agent.model.core.mode  # type: ignore[method-assign]
    drawn = torch.get_rng_state()
    with torch.no_grad():
        for t in range(4):
            obs = rows(spec, 3, t) | {"is_first": np.array([t == 0, t == 2, False])}
            tensors = {key: torch.as_tensor(value) for key, value in obs.items()}
            action, state, _ = agent.act(obs, state, "mode")
            ours, other = tick(tensors, other, tensors["is_first"])
            assert np.array_equal(spec.action.clip(action), ours.numpy())
            assert all(torch.equal(a, b) for a, b in zip(state.latent, other.latent, strict=True))
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("mode", ["sample", "mode"])
@pytest.mark.parametrize("name", SPECS)
def test_act_gives_encoded_actions_and_the_posterior(name: str, mode: str) -> None:
    spec = SPECS[name]
    agent = make(spec)
    assert isinstance(agent, Agent)
    state, extras = None, {}
    for t in range(3):
        action, state, extras = agent.act(rows(spec, 4, t), state, mode)
        assert action.shape == (4, spec.action.size)
        assert action.dtype == np.float32
        if spec.action.kind == "discrete":
            for part in np.split(action, np.cumsum(spec.action.sizes)[:-1], -1):
                assert np.array_equal(np.sort(part, -1)[:, -1], np.ones(4))
                assert np.array_equal(part.sum(-1), np.ones(4))
        assert np.array_equal(state.action.numpy(), action)  # the next step is told of it
    latent = state.latent
    assert latent.deter.shape == (4, 16)
    assert latent.stoch.shape == (4, 3, 4)
    packed = agent.model.unpack({name: extras[name] for name in agent.columns})
    assert torch.equal(packed.deter, latent.deter.half().float())
    assert torch.equal(packed.stoch, latent.stoch)


def test_mode_is_the_policys_and_samples_vary() -> None:
    agent, obs = make(), rows(SPECS["image"], 4)
    action, state, _ = agent.act(obs, mode="mode")
    with torch.no_grad():
        expected = agent.actor(state.latent.feat).mode()
    assert np.array_equal(action, expected.numpy())
    drawn = [agent.act(obs, mode="sample")[0] for _ in range(3)]
    assert not np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[1], drawn[2])


def test_acting_starts_anew_where_is_first() -> None:
    spec = SPECS["image"]
    agent = make(spec)
    _, state, _ = agent.act(rows(spec, 3))
    first = np.array([True, False, True])
    obs = rows(spec, 3, t=1)
    torch.manual_seed(1)
    _, after, _ = agent.act(obs | {"is_first": first}, state)
    torch.manual_seed(1)
    _, fresh, _ = agent.act(obs)
    torch.manual_seed(1)
    _, going, _ = agent.act(obs, state)  # no is_first: False
    for a, b, c in zip(after.latent, fresh.latent, going.latent, strict=True):
        assert torch.equal(a[first], b[first])
        assert torch.equal(a[~first], c[~first])
    assert not torch.equal(after.latent.deter[1], fresh.latent.deter[1])
    assert not torch.equal(after.latent.deter[0], going.latent.deter[0])


def test_acting_remembers_the_last_action() -> None:
    agent, obs = make(), rows(SPECS["image"], 2)
    _, state, _ = agent.act(obs)
    other = state._replace(action=state.action + 1.0)
    deter = [agent.act(obs, s)[1].latent.deter for s in (state, other)]
    assert not torch.equal(deter[0], deter[1])


@pytest.mark.parametrize("mode", ["sample", "mode"])
def test_acting_obeys_the_mask(mode: str) -> None:
    agent = make(MASKED, scale=1.0)
    obs = rows(MASKED, 300)
    for allowed in range(3):
        obs[MASK_KEY] = np.ones((300, 3), np.float32)
        obs[MASK_KEY][:, allowed] = 0
        action, _, _ = agent.act(obs, mode=mode)
        assert action[:, allowed].sum() == 0
        assert action.sum() == 300


def test_imagination_obeys_the_predicted_mask() -> None:
    agent = make(MASKED)
    head = agent.model.heads[MASK_KEY].out  # type: ignore[union-attr]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([3.0, -3.0, 3.0]))
    states, drawn = agent.imagine(agent.model.initial(200))
    actions = torch.stack(drawn, 1)
    assert states.deter.shape == (200, 4, 16)
    assert actions.shape == (200, 4, 3)
    assert actions[..., 1].sum() == 0
    assert actions.sum() == 800


def test_an_unknown_mode_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"Unknown action mode 'greedy'. Known: sample, mode."):
        make().act(rows(SPECS["image"], 1), mode="greedy")


# Learning


def test_an_update_learns_and_writes_latents_back() -> None:
    agent = make()
    replay = filled(agent)
    before = copy.deepcopy(agent.state_dict()["module"])
    metrics = agent.update(replay)
    after = agent.state_dict()["module"]
    losses = {"dyn", "rep", "image", "reward", "cont", "actor", "critic", "replay_value", "total"}
    assert {f"loss/{k}" for k in losses} <= set(metrics)
    assert all(np.isfinite(float(v)) for v in metrics.values())
    for part in ("model.encoder.", "model.core.", "model.decoder.", "actor.", "critic."):
        assert any(not torch.equal(after[k], before[k]) for k in after if k.startswith(part))
    for name, fast in agent.critic.named_parameters():
        slow = before[f"slow_critic.module.{name}"]
        moved = after[f"slow_critic.module.{name}"]
        torch.testing.assert_close(moved, slow + 0.02 * (fast.detach() - slow))
    known = [replay.sample(8, 6, online=False, context=agent.columns) for _ in range(20)]
    assert any(not b.is_first[:, 0].all() for b in known)  # some rows now follow a stored latent


@pytest.mark.parametrize("where", ["reward", "context"])
def test_a_batch_that_is_not_finite_changes_nothing(where: str) -> None:
    agent = make(model={"centre_images": True})
    agent.train_on(random_batch(agent.spec, 4, 6))
    batch = random_batch(agent.spec, 4, 6)
    if where == "reward":
        batch.reward[1, 2] = float("nan")
    else:
        batch.is_first[:, 0] = False
        batch.context = agent.model.pack(agent.model.initial(4))
        batch.context["deter"][:] = float("nan")
    before = copy.deepcopy(agent.state_dict())
    with pytest.raises(FloatingPointError, match="Weights were not changed"):
        agent.train_on(batch)
    after = agent.state_dict()
    for name, value in after["module"].items():
        assert torch.equal(value, before["module"][name]), name
    for name in ("mean", "square"):
        assert torch.equal(after["optim"][name], before["optim"][name])
    assert after["optim"]["updates"] == 1
    metrics, _ = agent.train_on(random_batch(agent.spec, 4, 6))  # and learning can go on
    assert torch.isfinite(metrics["loss/total"])


def test_the_batch_that_was_not_finite_travels_with_the_error() -> None:
    agent = make()
    replay = filled(agent)
    with torch.no_grad():
        agent.model.heads["reward"].out.bias.fill_(float("nan"))  # type: ignore[union-attr]
    with pytest.raises(FloatingPointError) as caught:
        agent.update(replay)
    assert caught.value.batch.shape == (4, 6)  # type: ignore[attr-defined]


# Keeping


def test_a_restored_agent_acts_and_learns_the_same() -> None:
    spec = SPECS["mixed"]
    agent, other = make(spec, scale=0.1), make(spec, scale=0.2)
    agent.train_on(random_batch(spec, 4, 6))
    other.load_state_dict(copy.deepcopy(agent.state_dict()))
    for mode in ("sample", "mode"):
        results = []
        for each in (agent, other):
            torch.manual_seed(3)
            state, actions = None, []
            for t in range(3):
                action, state, _ = each.act(rows(spec, 2, t), state, mode)
                actions.append(action)
            results.append(np.stack(actions))
        assert np.array_equal(results[0], results[1])
    for each in (agent, other):
        torch.manual_seed(4)
        each.train_on(random_batch(spec, 4, 6, seed=1))
    for name, value in agent.state_dict()["module"].items():
        assert torch.equal(value, other.state_dict()["module"][name]), name
    assert agent.optim.updates == other.optim.updates == 2


def test_weights_of_another_agent_are_refused() -> None:
    state = make().state_dict()
    with pytest.raises(ValueError, match="deter_in"):
        make(model={"hidden": 4}).load_state_dict(state)


def test_a_head_cannot_take_the_name_of_a_loss() -> None:
    heads = {"reward": HeadConfig(), "cont": HeadConfig("cont", "bernoulli")}
    heads["critic"] = HeadConfig("reward", "mse")
    with pytest.raises(ValueError, match="'critic' names one of Dreamer's own losses"):
        make(model={"heads": heads})


@pytest.mark.parametrize("latent", ["categorical", "gaussian"])
@pytest.mark.parametrize("name", sorted(SPECS))
def test_mixed_precision_learns_acts_and_keeps_losses_in_float32(
    name: str, latent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a GPU does, on a CPU: the networks in bfloat16, the rest in float32.
    half = torch.autocast("cpu", torch.bfloat16)
    monkeypatch.setattr("agents.dreamer.agent.autocast", lambda device, precision: half)
    agent = make(SPECS[name], model={"latent": latent})
    batch = random_batch(agent.spec, 4, 6)
    seen: list[torch.dtype] = []
    kl = agent.model.core.kl
    monkeypatch.setattr(agent.model.core, "kl", lambda *a: seen.append((k := kl(*a)).dtype) or k)
    for one in (lambda_return, replay_return):

        def watched(*a: Any, of: Any = one) -> torch.Tensor:
            result = of(*a)
            seen.extend(x.dtype for x in (*a, result) if torch.is_tensor(x))
            return result

        monkeypatch.setattr(f"agents.dreamer.agent.{one.__name__}", watched)
    metrics, states = agent.train_on(batch)
    assert all(p.grad.abs().sum() > 0 for p in agent.actor.parameters())  # type: ignore[union-attr]
    batch.context = agent.model.pack(states.map(lambda x: x[:, 0]))
    metrics, _ = agent.train_on(batch)
    assert set(seen) == {torch.float32, torch.bool}  # KL, returns and all that they are made of
    assert all(v.dtype == torch.float32 and torch.isfinite(v) for v in metrics.values())
    obs = {key: value[:, 0] for key, value in batch.obs.items()}
    _, state, _ = agent.act(obs)
    action, state, _ = agent.act(obs, state)
    assert np.isfinite(action).all()
    assert state.latent.deter.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in agent.module.parameters())


def test_a_head_on_one_number_of_the_observation_can_be_controlled() -> None:
    spec = spec_of(DISCRETE, v=VECTOR, speed=ObsSpec("vector", (1,)))
    heads = {
        "reward": HeadConfig(outscale=0.0),
        "cont": HeadConfig("cont", "bernoulli"),
        "fast": HeadConfig("speed", "twohot"),
    }
    control = {"reward": 1.0, "fast": 0.5}
    agent = make(spec, model={"heads": heads, "control": control})
    batch = random_batch(spec, 4, 6)
    expected = batch.reward + 0.5 * batch.obs["speed"][..., 0]
    states = agent.model.losses(batch).states
    assert torch.allclose(agent.model.recorded_reward(batch, states), expected)
    metrics, _ = agent.train_on(batch)
    assert torch.isfinite(metrics["loss/fast"])
    heads["wide"] = HeadConfig("v", "mse")
    with pytest.raises(ValueError, match="'wide' predicts several numbers"):
        make(spec, model={"heads": heads, "control": {"wide": 1.0}})
