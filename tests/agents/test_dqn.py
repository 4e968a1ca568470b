"""DQN: its targets by hand, masks, exploration, priorities, and what a run asks of it."""

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

from agents.dqn import DQN, DQNConfig, double_target, huber_loss
from agents.policies import EncoderConfig, greedy
from agents.run.config import TrainConfig
from agents.run.train import build
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
    live,
    observed,
    small_config,
)
from tests.model_batches import SPECS
from worldmodel import tree
from worldmodel.adam import AdamConfig
from worldmodel.config import ConfigError
from worldmodel.envs import EnvConfig
from worldmodel.types import MASK_KEY, ActionSpec, EnvSpec, ObsSpec

CPU = torch.device("cpu")
ENCODER = EncoderConfig(depth=2, mults=[1, 1], units=4)
THREE = ActionSpec("discrete", (3,))
VECTOR = EnvSpec({"v": ObsSpec("vector", (5,))}, THREE)
MIXED = SPECS["mixed"]  # images, vectors, one-hots and a mask; three actions
MASKED = EnvSpec({"v": ObsSpec("vector", (5,)), MASK_KEY: ObsSpec("vector", (3,))}, THREE)
close = torch.testing.assert_close


def make(spec: EnvSpec = VECTOR, seed: int = 0, device: torch.device = CPU, **settings: Any) -> DQN:
    torch.manual_seed(seed)
    base: dict[str, Any] = {"batch_size": 8, "units": 16, "encoder": ENCODER}
    return DQN(spec, DQNConfig(**{**base, **settings}), device)


# The losses


def test_targets_and_losses_by_hand() -> None:
    q = torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.0, 3.0]])  # of the target network
    reward, discount = torch.tensor([1.0, -1.0]), torch.tensor([0.5, 0.0])
    # Q finds the last action best, the target network says what it is worth; the end is the end.
    close(double_target(reward, discount, q, torch.tensor([2, 0])), torch.tensor([2.0, -1.0]))
    value, target = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, -3.0, 1.0])
    # 0.5^2 / 2, 3 - 1/2, 0
    close(huber_loss(value, target, torch.ones(3)), torch.tensor((0.125 + 2.5) / 3))
    close(huber_loss(value, target, torch.tensor([1.0, 0.2, 9.0])), torch.tensor(0.625 / 3))


def test_the_best_action_is_an_allowed_one() -> None:
    q = torch.tensor([[1.0, 5.0, 2.0]]).repeat(4, 1)
    mask = torch.tensor([[1.0, 1, 1], [1, 0, 1], [1, 0, 0], [0, 0, 0]])  # the last: nothing is said
    assert greedy(q, mask).tolist() == [1, 2, 0, 1]
    assert greedy(q, None).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("spec", [VECTOR, MASKED], ids=["free", "masked"])
def test_the_update_s_gradient_in_float64(spec: EnvSpec) -> None:
    agent = make(spec)
    with torch.no_grad():
        for p in agent.target.parameters():
            p.add_(0.3 * torch.randn_like(p))
    batch = filled_replay(spec).transitions(8, 2, 0.9)
    loss, error, _ = agent.loss(batch)
    agent.optim.grad.zero_()
    loss.backward()
    q, target = copy.deepcopy(agent.q).double(), copy.deepcopy(agent.target).double()

    def values(network: Any, obs: Tensor) -> Tensor:
        first, _, second, _, last = network.head
        return last(F.relu(second(F.relu(first(obs.double())))))

    after = values(q, batch.next_obs["v"])
    if spec.has_mask:
        after = torch.where(batch.next_obs[MASK_KEY] > 0, after, -1e9)
    rows, best = torch.arange(8), after.argmax(-1)
    y = batch.reward + batch.discount.double() * values(target, batch.next_obs["v"])[rows, best]
    said = values(q, batch.obs["v"])[rows, batch.action.argmax(-1)]
    difference = (y - said).detach()
    theirs = F.smooth_l1_loss(said, y.detach())
    theirs.backward()
    close(error.double(), difference, rtol=1e-5, atol=1e-6)
    assert float(loss.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    for ours, its in zip(agent.q.parameters(), q.parameters(), strict=True):
        assert ours.grad is not None
        close(ours.grad.double(), its.grad, rtol=1e-4, atol=1e-7)
    assert all(p.grad is None for p in agent.target.parameters())


def test_the_target_network_is_a_copy_now_and_then() -> None:
    agent, replay = make(target_every=3), filled_replay(VECTOR)
    weight = agent.q.head[0].weight
    for update in range(1, 8):
        before = agent.target.head[0].weight.clone()
        metrics = agent.update(replay)
        assert all(math.isfinite(float(value)) for value in metrics.values())
        assert torch.equal(agent.target.head[0].weight, weight if update % 3 == 0 else before)


def test_before_the_first_step_there_is_nothing_to_learn() -> None:
    agent, replay = make(), filled_replay(VECTOR, steps=1, num_envs=8)
    assert len(replay) == agent.min_rows
    assert not replay.can_sample(agent.in_a_row)


def test_where_the_loss_is_not_finite_nothing_moves() -> None:
    agent, replay = make(), filled_replay(VECTOR)
    agent.update(replay)
    with torch.no_grad():
        agent.target.head[4].bias.fill_(float("nan"))
    before = agent.optim.flat.clone()
    with pytest.raises(FloatingPointError) as caught:
        agent.update(replay)
    assert caught.value.batch.reward.shape == (8,)  # type: ignore[attr-defined]
    assert torch.equal(agent.optim.flat, before)


# Priorities


def test_large_errors_are_drawn_more_often_and_count_less() -> None:
    agent = make(priority_exponent=0.6)
    assert agent.priority_exponent == 0.6
    replay = filled_replay(VECTOR, priority_exponent=0.6)
    seen: list[Any] = []
    draw, reweigh = replay.transitions, replay.reweigh

    def drawn(*args: Any, **given: Any) -> Any:
        seen.append(draw(*args, **given))
        return seen[-1]

    def weighed(index: Any, priorities: Any) -> None:
        assert index is seen[-1].index
        error = agent.loss(seen[-1])[1] if len(seen) == 1 else None
        assert error is None or len(priorities) == len(error)
        reweigh(index, priorities)

    replay.transitions, replay.reweigh = drawn, weighed  # type: ignore[method-assign]
    for _ in range(20):
        agent.update(replay)
    assert torch.equal(seen[0].weight, torch.ones(8))  # all new rows have one priority
    assert len(seen[-1].weight.unique()) > 1
    assert seen[-1].weight.max() <= 1


# Acting


def test_exploration_falls_with_the_steps_acted_on() -> None:
    agent = make(epsilon_start=1.0, epsilon_end=0.2, epsilon_steps=400)
    obs = observed(VECTOR, 100)
    best = agent.act(obs, mode="mode")[0]
    assert agent.steps == 0  # evaluation is not exploration
    shares = []
    for _ in range(8):
        assert agent.epsilon == pytest.approx(max(0.2, 1 - 0.8 * agent.steps / 400))
        action, state, extras = agent.act(obs)
        assert (state, extras, agent.initial(100)) == (None, {}, None)
        assert action.dtype == np.float32
        assert np.array_equal(action.sum(-1), np.ones(100))
        shares.append((action * best).sum() / 100)
    assert agent.steps == 800
    # The best action is taken unless chance decides, and then by one in three.
    np.testing.assert_allclose(shares[4:], 1 - 0.2 * 2 / 3, atol=0.12)
    assert shares[0] < 0.6
    with pytest.raises(ValueError, match="Unknown action mode"):
        agent.act(obs, mode="best")


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_it_never_takes_a_forbidden_action(epsilon: float) -> None:
    agent = make(MASKED, epsilon_start=epsilon, epsilon_end=epsilon)
    obs = observed(MASKED, 300)
    for mode in ("sample", "mode"):
        action = agent.act(obs, mode=mode)[0]
        assert (action * obs[MASK_KEY]).sum() == 300


@pytest.mark.parametrize("spec", [VECTOR, MIXED], ids=["vector", "mixed"])
def test_its_tick_is_its_mode_and_draws_nothing(spec: EnvSpec) -> None:
    agent, obs, outside = make(spec), observed(spec, 6), torch.get_rng_state()
    mine = copy.deepcopy(agent.rng.bit_generator.state)
    tensors = {key: torch.as_tensor(value) for key, value in obs.items()}
    action, state = agent.tick()(tensors, agent.initial(6), torch.zeros(6, dtype=torch.bool))
    assert state is None
    np.testing.assert_array_equal(action.numpy(), agent.act(obs, mode="mode")[0])
    assert agent.rng.bit_generator.state == mine
    agent.act(obs)
    assert torch.equal(torch.get_rng_state(), outside)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (EnvSpec(VECTOR.obs, ActionSpec("continuous", (2,))), "continuous actions. Use agent=sac"),
        (SPECS["multidiscrete"], "2 of them side by side. Use agent=dreamer"),
        (EnvSpec({"far": ObsSpec("recorded", (2,))}, THREE), "no image"),
    ],
    ids=["continuous", "multidiscrete", "nothing"],
)
def test_what_cannot_work_is_refused(spec: EnvSpec, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make(spec)


@pytest.mark.parametrize("bad", [{"n_step": 0}, {"epsilon_end": 1.5}, {"priority_exponent": -1.0}])
def test_wrong_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        DQNConfig(**bad)


# Keeping


@pytest.mark.parametrize("spec", [VECTOR, MIXED], ids=["vector", "mixed"])
def test_it_goes_on_where_it_was_saved(spec: EnvSpec) -> None:
    agent = make(spec, target_every=2, epsilon_steps=20)
    replays, obs = [filled_replay(spec) for _ in range(2)], observed(spec, 4)
    for _ in range(3):
        agent.update(replays[0])
        replays[1].transitions(8, 1, 0.99)  # the same draws
        agent.act(obs)
    state = copy.deepcopy(tree.to_plain(agent.state_dict()))
    other = make(spec, seed=5, target_every=2, epsilon_steps=20)
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
    agent = make(MIXED)
    parts = agent.parts
    assert set(parts) == {"torso", "head"}
    assert set(make().parts) == {"head"}  # a vector needs no torso
    names = {name for part in parts.values() for name in part.tensors}
    both = {"q": agent.q, "target": agent.target}
    assert names == {f"{one}.{name}" for one, net in both.items() for name in net.state_dict()}
    with torch.no_grad():
        parts["head"].tensors["q.head.4.bias"].copy_(torch.tensor([0.0, 1e6, 0.0]))
    obs = observed(MIXED, 3) | {MASK_KEY: np.ones((3, 3), np.float32)}
    assert agent.act(obs, mode="mode")[0].argmax(-1).tolist() == [1, 1, 1]
    assert agent.slow_down(0.5)
    assert agent.optim.state_dict()["slower"] == 0.5


# Learning


def test_it_learns_what_actions_are_worth() -> None:
    """Each action pays its number, and nothing follows: values become 0, 1 and 2."""
    replay = filled_replay(VECTOR, 200, lambda action: action.argmax(-1), terminal=True)
    agent = make(batch_size=32, optim=AdamConfig(lr=1e-2, clip=10.0))
    for _ in range(200):
        agent.update(replay)
    q = agent.q({"v": torch.randn(20, 5)})
    close(q, torch.tensor([[0.0, 1.0, 2.0]]).expand(20, 3), rtol=0, atol=0.3)


# In a run, which knows nothing of it


def config_of(folder: Path, **settings: Any) -> TrainConfig:
    agent = DQNConfig(batch_size=8, units=8, epsilon_steps=40, encoder=ENCODER, **settings)
    return small_config(folder, agent)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dqn") / "run"
    check_trains_and_evaluates(config_of(folder))
    return folder


@pytest.mark.parametrize("priority", [0.0, 0.6])
def test_a_run_stopped_and_continued_is_the_same(tmp_path: Path, priority: float) -> None:
    config = config_of(tmp_path, priority_exponent=priority, n_step=3, target_every=3)
    check_resumes(tmp_path, replace(config, env=replace(config.env, num_envs=2)))


def test_a_run_starts_from_another_one(tmp_path: Path, run: Path) -> None:
    check_starts_from(config_of(tmp_path), run)


def test_a_run_learns_from_a_recording(tmp_path: Path, run: Path) -> None:
    check_learns_offline(config_of(tmp_path), run)


@pytest.mark.slow
def test_it_is_exported_and_deployed(tmp_path: Path, run: Path) -> None:
    pytest.importorskip("onnxscript")
    check_exports_and_deploys(run, tmp_path)


def test_a_run_skips_an_update_that_is_not_finite_and_keeps_its_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, calls = DQN.loss, []

    def ill(self: DQN, batch: Any) -> Any:
        calls.append(batch)
        loss, error, metrics = losses(self, batch)
        return (loss * torch.nan if len(calls) == 3 else loss), error, metrics

    monkeypatch.setattr(DQN, "loss", ill)
    live(config_of(tmp_path))
    (kept,) = (tmp_path / "nonfinite").glob("*.pt")
    saved = torch.load(kept, weights_only=True)
    assert "The loss is nan" in saved["error"]
    assert torch.equal(saved["batch"]["next_obs.count"], calls[2].next_obs["count"])


def test_it_learns_from_images(tmp_path: Path) -> None:
    agent = DQNConfig(
        batch_size=16, units=32, discount=0.0, epsilon_steps=150,
        encoder=EncoderConfig(depth=2, mults=[1, 2]), optim=AdamConfig(lr=1e-3, clip=10.0),
    )  # fmt: skip
    check_learns_from_images(tmp_path, agent)


def test_from_images_with_a_mask(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    env = EnvConfig(ENV, kwargs={"masked": True}, image_size=[32, 32])
    check_trains_and_evaluates(replace(config, env=env))


def test_the_wrong_actions_are_one_clear_error(tmp_path: Path) -> None:
    env = EnvConfig(ENV, kwargs={"actions": "multidiscrete"})
    with pytest.raises(ConfigError, match="agent=dqn needs one discrete action"):
        build(replace(config_of(tmp_path), env=env), SILENT)
