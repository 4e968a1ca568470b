"""SAC: its losses by hand and in float64, what learns from which, and what a run asks of it."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from agents.policies import EncoderConfig
from agents.run.config import TrainConfig
from agents.run.train import build
from agents.sac import SAC, SACConfig, actor_loss, alpha_loss, critic_loss, soft_target
from tests.agents.small_runs import (
    ENV,
    SILENT,
    check_exports_and_deploys,
    check_learns_from_images,
    check_learns_offline,
    check_resumes,
    check_starts_from,
    check_trains_and_evaluates,
    filled_replay,
    observed,
    small_config,
)
from tests.model_batches import SPECS
from worldmodel import tree
from worldmodel.adam import AdamConfig
from worldmodel.config import ConfigError
from worldmodel.envs import EnvConfig
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec

CPU = torch.device("cpu")
ENCODER = EncoderConfig(depth=2, mults=[1, 1], units=4)
VECTOR = SPECS["vector"]  # v [5], two continuous actions
IMAGES = EnvSpec(
    {"image": ObsSpec("image", (32, 32, 3)), "v": ObsSpec("vector", (5,))},
    ActionSpec("continuous", (2,)),
)


def make(spec: EnvSpec = VECTOR, seed: int = 0, device: torch.device = CPU, **settings: Any) -> SAC:
    torch.manual_seed(seed)
    base: dict[str, Any] = {"batch_size": 8, "units": 16, "encoder": ENCODER}
    return SAC(spec, SACConfig(**{**base, **settings}), device)


# The losses


def test_losses_by_hand() -> None:
    q = torch.tensor([[1.0, 5.0, 7.0], [2.0, 4.0, 9.0]])
    log_prob, alpha = torch.tensor([-1.0, 2.0, 0.5]), torch.tensor(0.1)
    reward, discount = torch.tensor([1.0, 0.0, 3.0]), torch.tensor([0.9, 0.5, 0.0])
    # min Q - alpha log pi: 1 + 0.1, 4 - 0.2, and what a terminal step does not ask for
    target = soft_target(reward, discount, q, log_prob, alpha)
    torch.testing.assert_close(target, torch.tensor([1.99, 1.9, 3.0]))
    # ((-1)^2 + 3^2 + 4^2 + 0 + 2^2 + 6^2) / 3 / 2
    close = torch.testing.assert_close
    close(critic_loss(q, torch.tensor([2.0, 2.0, 3.0])), torch.tensor(66 / 6))
    # (-0.1 - 1 + 0.2 - 4 + 0.05 - 7) / 3
    close(actor_loss(q, log_prob, alpha), torch.tensor(-11.85 / 3))
    log_alpha = torch.tensor(-0.5, requires_grad=True)
    loss = alpha_loss(log_alpha, log_prob, -2.0)  # mean log pi is 0.5: entropy -0.5, above -2
    close(loss.detach(), torch.tensor(0.5 * (0.5 - 2.0)))
    loss.backward()
    assert log_alpha.grad == 1.5  # alpha falls


class Reference:
    """The networks in float64, one layer after the other, each critic by itself."""

    def __init__(self, agent: SAC) -> None:
        self.nets = copy.deepcopy(agent.networks).double().requires_grad_(True)

    def policy(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        x = obs
        for layer in list(self.nets.actor)[:-1:2]:
            x = F.relu(layer(x))
        mean, log_std = self.nets.actor[-1](x).chunk(2, -1)
        return mean, log_std.clamp(-20, 2)

    def action(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.policy(obs)
        u = mean + log_std.exp() * noise.double()
        action = torch.tanh(u)
        normal = torch.distributions.Normal(mean, log_std.exp()).log_prob(u)
        return action, (normal - torch.log(1 - action.square())).sum(-1)

    def critic(self, which: Any, one: int, obs: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([obs, action], -1)
        pairs = list(zip(which.weights, which.biases, strict=True))
        for i, (w, b) in enumerate(pairs):
            x = x @ w[one] + b[one]
            x = F.relu(x) if i < len(pairs) - 1 else x
        return x.squeeze(-1)


def test_the_update_s_gradient_in_float64_and_what_learns_from_which() -> None:
    """Every network gets the gradient of its own loss alone, all at the weights before the step."""
    agent = make()
    with torch.no_grad():
        agent.networks.log_alpha.fill_(-1.0)
        for p in agent.networks.target_critics.parameters():
            p.add_(0.1 * torch.randn_like(p))
    batch = filled_replay(VECTOR).transitions(8, 1, 0.99)
    state = agent.rng.get_state()
    noise, next_noise = torch.randn(2, 8, 2, generator=agent.rng)
    agent.rng.set_state(state)
    loss, _ = agent.loss(batch)
    agent.optim.grad.zero_()
    loss.backward()

    ref, nets = Reference(agent), agent.networks
    obs, after = batch.obs["v"].double(), batch.next_obs["v"].double()
    alpha = ref.nets.log_alpha.exp().detach()
    a2, lp2 = ref.action(after, next_noise)
    q2 = [ref.critic(ref.nets.target_critics.module, i, after, a2) for i in range(2)]
    y = batch.reward + batch.discount.double() * (torch.minimum(*q2) - alpha * lp2)
    q = [ref.critic(ref.nets.critics, i, obs, batch.action.double()) for i in range(2)]
    critics = sum(0.5 * (one - y.detach()).square().mean() for one in q)
    a, lp = ref.action(obs, noise)
    q = [ref.critic(ref.nets.critics, i, obs, a) for i in range(2)]
    actor = (alpha * lp - torch.minimum(*q)).mean()
    heat = -(ref.nets.log_alpha * (lp + agent.target_entropy).detach()).mean()
    for name, one in (("critics", critics), ("actor", actor), ("log_alpha", heat)):
        ours = [(n, p) for n, p in nets.named_parameters() if n.split(".")[0] == name]
        theirs = dict(ref.nets.named_parameters())
        grads = torch.autograd.grad(one, [theirs[n] for n, _ in ours], retain_graph=True)
        for (n, p), g in zip(ours, grads, strict=True):
            assert p.grad is not None
            torch.testing.assert_close(p.grad.double(), g, rtol=1e-4, atol=1e-6, msg=n)
    its = (critics + actor + heat).detach()
    assert float(loss.detach()) == pytest.approx(float(its), rel=1e-5)


def test_only_the_critics_train_what_reads_images() -> None:
    agent = make(IMAGES)
    nets, batch = agent.networks, filled_replay(IMAGES).transitions(8, 1, 0.99)
    state = agent.rng.get_state()
    total, _ = agent.loss(batch)
    agent.rng.set_state(state)
    _, noise = torch.randn(2, 8, 2, generator=agent.rng)
    with torch.no_grad():
        action, log_prob = nets.policy(nets.torso(batch.next_obs)).draw(noise)
        q = nets.target_critics(nets.target_torso(batch.next_obs), action)
        y = soft_target(batch.reward, batch.discount, q, log_prob, nets.log_alpha.exp())
    alone = critic_loss(nets.critics(nets.torso(batch.obs), batch.action), y)
    torso = list(nets.torso.parameters())
    grads = [torch.autograd.grad(loss, torso) for loss in (total, alone)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ours.abs().sum() > 0


def test_an_update_moves_weights_and_targets() -> None:
    agent, replay = make(target_rate=0.25), filled_replay(VECTOR)
    before = copy.deepcopy(agent.networks)
    metrics = agent.update(replay)
    assert all(math.isfinite(float(value)) for value in metrics.values())
    assert float(metrics["alpha"]) == 1.0  # log alpha starts at 0
    old = before.target_critics.module.weights[1]
    new = agent.networks.critics.weights[1]
    assert not torch.equal(old, new)
    torch.testing.assert_close(
        agent.networks.target_critics.module.weights[1], torch.lerp(old, new, 0.25)
    )


def test_before_the_first_step_there_is_nothing_to_learn() -> None:
    agent, replay = make(), filled_replay(VECTOR, steps=1, num_envs=8)
    assert len(replay) == agent.min_rows
    assert not replay.can_sample(agent.in_a_row)


def test_where_the_loss_is_not_finite_nothing_moves() -> None:
    agent, replay = make(), filled_replay(VECTOR)
    agent.update(replay)
    with torch.no_grad():
        agent.networks.critics.biases[0].fill_(float("inf"))
    before = copy.deepcopy(agent.networks.state_dict())
    with pytest.raises(FloatingPointError) as caught:
        agent.update(replay)
    assert caught.value.batch.reward.shape == (8,)  # type: ignore[attr-defined]
    for name, value in agent.networks.state_dict().items():
        assert torch.equal(value, before[name]), name


# Acting


def test_it_acts_within_bounds_from_its_own_generator() -> None:
    agent, outside = make(), torch.get_rng_state()
    obs = observed(VECTOR, 50)
    sampled, state, extras = agent.act(obs)
    assert (state, extras, agent.initial(50)) == (None, {}, None)
    assert sampled.shape == (50, 2)
    assert sampled.dtype == np.float32
    assert np.abs(sampled).max() <= 1
    assert not np.array_equal(agent.act(obs)[0], sampled)
    mine = agent.rng.get_state()
    mode = agent.act(obs, mode="mode")[0]
    assert np.array_equal(agent.act(obs, mode="mode")[0], mode)
    assert torch.equal(agent.rng.get_state(), mine)
    assert torch.equal(torch.get_rng_state(), outside)
    with pytest.raises(ValueError, match="Unknown action mode"):
        agent.act(obs, mode="best")


@pytest.mark.parametrize("spec", [VECTOR, IMAGES], ids=["vector", "image"])
def test_its_tick_is_its_mode(spec: EnvSpec) -> None:
    agent, obs = make(spec), observed(spec, 3)
    tick = agent.tick()
    tensors = {key: torch.as_tensor(value) for key, value in obs.items()}
    action, state = tick(tensors, agent.initial(3), torch.zeros(3, dtype=torch.bool))
    assert state is None
    np.testing.assert_array_equal(action.detach().numpy(), agent.act(obs, mode="mode")[0])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (SPECS["discrete"], "agent=sac needs continuous actions.*with 3 choices.*agent=dqn"),
        (SPECS["multidiscrete"], "2 x 3 choices"),
        (EnvSpec({"far": ObsSpec("recorded", (2,))}, ActionSpec("continuous", (1,))), "no image"),
    ],
    ids=["discrete", "multidiscrete", "nothing"],
)
def test_what_cannot_work_is_refused(spec: EnvSpec, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make(spec)


# Keeping


@pytest.mark.parametrize("spec", [VECTOR, IMAGES], ids=["vector", "image"])
def test_it_goes_on_where_it_was_saved(spec: EnvSpec) -> None:
    agent, replays, obs = make(spec), [filled_replay(spec) for _ in range(2)], observed(spec, 4)
    for _ in range(2):
        agent.update(replays[0])
        replays[1].transitions(8, 1, 0.99)  # the same draws
        agent.act(obs)
    state = copy.deepcopy(tree.to_plain(agent.state_dict()))
    other = make(spec, seed=5)
    other.load_state_dict(state)
    for _ in range(3):
        for one, replay in zip((agent, other), replays, strict=True):
            one.update(replay)
        np.testing.assert_array_equal(agent.act(obs)[0], other.act(obs)[0])
    ours, theirs = (tree.to_plain(one.state_dict()) for one in (agent, other))
    for (name, a), (_, b) in zip(tree.leaves(ours), tree.leaves(theirs), strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, name
    with pytest.raises(ValueError, match="the agent"):
        make(spec, units=17).load_state_dict(state)


def test_its_parts_are_the_weights_in_use() -> None:
    agent = make(IMAGES)
    parts = agent.parts
    assert set(parts) == {"torso", "actor", "critics", "log_alpha"}
    assert set(make().parts) == {"actor", "critics", "log_alpha"}  # a vector needs no torso
    named = {name: t for part in parts.values() for name, t in part.tensors.items()}
    assert named.keys() == agent.networks.state_dict().keys()
    obs = observed(IMAGES, 3)
    before = agent.act(obs, mode="mode")[0]
    with torch.no_grad():
        for tensor in parts["actor"].tensors.values():
            tensor.mul_(2)
    assert not np.array_equal(agent.act(obs, mode="mode")[0], before)
    assert agent.slow_down(0.5)
    assert agent.optim.state_dict()["slower"] == 0.5


# Learning


def test_it_finds_the_best_action_of_a_bandit() -> None:
    """Reward -(a - 0.6)^2 x 10 and no future: the policy goes to 0.6 and grows narrow there."""
    spec = EnvSpec({"v": ObsSpec("vector", (1,))}, ActionSpec("continuous", (1,)))
    replay = filled_replay(
        spec, 400, reward=lambda action: -10 * (action[:, 0] - 0.6) ** 2, terminal=True
    )
    agent = make(spec, batch_size=64, units=32, optim=AdamConfig(lr=1e-2))
    for _ in range(300):
        metrics = agent.update(replay)
    action = agent.act(observed(spec, 5), mode="mode")[0]
    np.testing.assert_allclose(action, 0.6, atol=0.1)
    assert float(metrics["alpha"]) < 0.5


# In a run, which knows nothing of it


def config_of(folder: Path, **changes: Any) -> TrainConfig:
    agent = SACConfig(batch_size=8, units=8, encoder=ENCODER)
    return small_config(folder, agent, "box", **changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sac") / "run"
    check_trains_and_evaluates(config_of(folder))
    return folder


def test_a_run_stopped_and_continued_is_the_same(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    check_resumes(tmp_path, replace(config, env=replace(config.env, num_envs=2)))


def test_a_run_starts_from_another_one(tmp_path: Path, run: Path) -> None:
    check_starts_from(config_of(tmp_path), run)


def test_a_run_learns_from_a_recording(tmp_path: Path, run: Path) -> None:
    check_learns_offline(config_of(tmp_path), run)


def test_it_is_exported_and_deployed(tmp_path: Path, run: Path) -> None:
    pytest.importorskip("onnxscript")
    check_exports_and_deploys(run, tmp_path)


def test_it_learns_from_images(tmp_path: Path) -> None:
    agent = SACConfig(
        batch_size=16, units=32, discount=0.0,
        encoder=EncoderConfig(depth=2, mults=[1, 2]), optim=AdamConfig(lr=2e-3),
    )  # fmt: skip
    check_learns_from_images(tmp_path, agent, "box")


def test_the_wrong_actions_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="agent=sac needs continuous actions"):
        build(replace(config_of(tmp_path), env=EnvConfig(ENV)), SILENT)
