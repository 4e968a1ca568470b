"""Dreamer finds what is known to be best: in latent worlds whose optimum is worked out by dynamic
programming, and from pixels in seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agents.dreamer import Dreamer, DreamerConfig
from agents.dreamer.gradient import GRADIENTS
from agents.run.collect import Collector
from tests.model_batches import VECTOR, spec_of, tiny
from worldmodel.distributions import FactoredOneHot
from worldmodel.envs import EnvConfig, env_spec, make_vector
from worldmodel.optim import OptimConfig
from worldmodel.replay import Replay, ReplayConfig
from worldmodel.rssm import ModelConfig, ModelOutput
from worldmodel.rssm.state import LatentState
from worldmodel.types import ActionSpec, Batch, Dynamics, Prediction

CPU = torch.device("cpu")


class KnownWorld(nn.Module):
    """A latent world that is given, not learned. Its state is the vector deter; a subclass says
    where imagination starts, what an action leads to, and what that is worth."""

    discount = 0.9

    def starts(self) -> Tensor:
        """[N, D]."""
        raise NotImplementedError

    def move(self, deter: Tensor, action: Tensor) -> Tensor:
        """[N, D] and [N, A] -> [N, D]."""
        raise NotImplementedError

    def reward(self, feat: Tensor) -> Tensor:
        raise NotImplementedError

    def discounted_cont(self, feat: Tensor) -> Tensor:
        return torch.full(feat.shape[:-1], self.discount)

    def state(self, deter: Tensor) -> LatentState:
        return LatentState(deter, torch.ones(*deter.shape[:-1], 1, 1))

    def initial(self, batch_size: int) -> LatentState:
        return self.state(self.starts()[:batch_size])

    def observe(self, state: LatentState, *_: Any) -> LatentState:
        return state

    def step(self, state: LatentState, action: Tensor) -> Prediction:
        after = self.state(self.move(state.deter, action))
        return Prediction(
            after, self.reward(after.feat), self.discounted_cont(after.feat) / self.discount
        )

    def imagine(
        self, state: LatentState, policy: Callable[[LatentState], Tensor], horizon: int
    ) -> tuple[LatentState, Tensor]:
        states, actions = [state], []
        for _ in range(horizon):
            actions.append(policy(states[-1]))
            states.append(self.step(states[-1], actions[-1]).state)
        deter = torch.stack([s.deter for s in states], 1)
        return self.state(deter), torch.stack(actions, 1)

    def imagined_reward(self, feat: Tensor, action: Tensor) -> Tensor:
        return self.reward(feat)

    def allowed(self, feat: Tensor) -> None:
        return None

    def scale(self, name: str) -> float:
        return 1.0

    def losses(self, batch: Batch) -> ModelOutput:
        """Nothing to learn."""
        states = self.state(self.starts().unsqueeze(0))
        return ModelOutput({"none": torch.zeros(1, 1)}, states, {})


def train(world: KnownWorld, action: ActionSpec, updates: int, **settings: Any) -> Dreamer:
    """A Dreamer that lives in a known world."""
    assert isinstance(world, Dynamics)
    torch.manual_seed(0)
    width = world.starts().shape[-1]
    config = DreamerConfig(
        horizon=10, actor_layers=2, critic_layers=2, slow_rate=0.1, replay_value_scale=0.0,
        model=tiny(deter=width, groups=1, classes=1, blocks=1, units=32), **settings,
    )  # fmt: skip
    agent = Dreamer(spec_of(action, v=VECTOR), config, CPU)
    agent.model = world  # type: ignore[assignment]
    for _ in range(updates):
        agent.train_on(None)  # type: ignore[arg-type]
    return agent


# A chain with two goals


class Chain(KnownWorld):
    """Six places in a row. The last one ends the episode and pays 2, once; the first pays 0.2 at
    every step there, for ever. From the middle, greed and patience differ."""

    PLACES = 6

    def starts(self) -> Tensor:
        return torch.eye(self.PLACES)[torch.arange(self.PLACES - 1).repeat(8)]

    def move(self, deter: Tensor, action: Tensor) -> Tensor:
        place = deter.argmax(-1)
        after = (place + torch.where(action[..., 1] > 0.5, 1, -1)).clamp(0, self.PLACES - 1)
        after = torch.where(place == self.PLACES - 1, place, after)
        return torch.eye(self.PLACES)[after]

    def reward(self, feat: Tensor) -> Tensor:
        return 0.2 * feat[..., 0] + 2.0 * feat[..., self.PLACES - 1]

    def discounted_cont(self, feat: Tensor) -> Tensor:
        return self.discount * (1 - feat[..., self.PLACES - 1])

    def solve(self) -> np.ndarray:
        """Q* of the five places that go on, [5, 2]: value iteration."""
        q = np.zeros((5, 2))
        for _ in range(300):
            value = np.append(q.max(1), 0.0)
            for p in range(5):
                left, right = max(p - 1, 0), p + 1
                q[p, 0] = 0.2 * (left == 0) + 0.9 * value[left]
                q[p, 1] = 2.0 * (right == 5) + 0.9 * value[right]
        return q


def test_discrete_actions_find_the_optimum_of_a_chain() -> None:
    world = Chain()
    best = world.solve()
    assert best.argmax(1).tolist() == [0, 0, 0, 1, 1]
    np.testing.assert_allclose(best.max(1), [2.0, 2.0, 1.8, 1.8, 2.0], rtol=1e-6)
    action = ActionSpec("discrete", (2,))
    agent = train(world, action, 500, entropy=0.02, optim=OptimConfig(lr=2e-3, warmup=10))
    feat = world.state(torch.eye(6)[:5]).feat
    with torch.no_grad():
        policy, value = agent.actor(feat), agent.critic(feat).mean
    assert isinstance(policy, FactoredOneHot)
    chosen = policy.parts[0].probs.gather(-1, torch.tensor(best.argmax(1)).unsqueeze(-1))
    assert chosen.min() > 0.9
    np.testing.assert_allclose(value, best.max(1), rtol=0.05)


# A controlled point


class Point(KnownWorld):
    """x' = x + a on a line; every step costs x'^2 + 2 a^2. The best action is linear in x and
    the value quadratic (the Riccati equation); the greedy action would be -x / 3."""

    EFFORT = 2.0

    def starts(self) -> Tensor:
        x = torch.linspace(-1.2, 1.2, 96)
        return torch.stack([x, torch.zeros(96)], -1)

    def move(self, deter: Tensor, action: Tensor) -> Tensor:
        return torch.stack([deter[..., 0] + action[..., 0], action[..., 0]], -1)

    def reward(self, feat: Tensor) -> Tensor:
        return -(feat[..., 0].square() + self.EFFORT * feat[..., 1].square())

    def riccati(self) -> float:
        """k of the best action a* = -k x."""
        p = 0.0
        for _ in range(300):
            ahead = 1 + self.discount * p
            p = self.EFFORT * ahead / (self.EFFORT + ahead)
        return ahead / (self.EFFORT + ahead)

    def values(self, k: float) -> tuple[float, float]:
        """p, c of V = -p x^2 - c under a = -k x and the least noise of a policy, 0.1."""
        stay = (1 - k) ** 2
        p = (stay + self.EFFORT * k**2) / (1 - self.discount * stay)
        return p, 0.1**2 * (self.EFFORT + 1 + self.discount * p) / (1 - self.discount)

    def summed(self) -> float:
        """k that no small change betters, where the lambda-returns of all of ten steps are summed
        and their values stay as they are: bisection of the derivative, in second moments of x."""

        def total(changed: float, k: float) -> float:
            p, _ = self.values(k)
            moments, rewards = [float((self.starts()[:, 0] ** 2).mean())], []
            for _ in range(10):
                effort = changed**2 * moments[-1] + 0.01
                moments.append((1 - changed) ** 2 * moments[-1] + 0.01)
                rewards.append(-(moments[-1] + self.EFFORT * effort))
            ret, sums = -p * moments[-1], 0.0
            for h in reversed(range(10)):
                value = -p * moments[h + 1]
                ret = rewards[h] + self.discount * (0.05 * value + 0.95 * ret)
                sums += self.discount ** (h + 1) * ret
            return sums

        low, high = 0.2, 0.9
        for _ in range(40):
            k = (low + high) / 2
            rises = total(k + 1e-5, k) > total(k - 1e-5, k)
            low, high = (k, high) if rises else (low, k)
        return low


@pytest.mark.slow
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_continuous_actions_find_the_optimum_of_a_controlled_point(gradient: str) -> None:
    # The sum that the gradient of dynamics follows favours what leads to good states later.
    world = Point()
    # What differs from state to state counts as noise, so that the quieter one is REINFORCE here.
    k = world.summed() if gradient == "dynamics" else world.riccati()
    assert k == pytest.approx(0.564 if gradient == "dynamics" else 0.483, abs=1e-3)
    p, c = world.values(k)
    optim = OptimConfig(lr=4e-3, warmup=10)
    action = ActionSpec("continuous", (1,))
    agent = train(world, action, 500, optim=optim, actor_gradient=gradient)
    x = torch.linspace(-1, 1, 9)
    feat = world.state(torch.stack([x, torch.zeros(9)], -1)).feat
    with torch.no_grad():
        policy, value = agent.actor(feat), agent.critic(feat).mean
    np.testing.assert_allclose(policy.mode()[:, 0], -k * x, atol=0.08)  # greedy is off by 0.15
    np.testing.assert_allclose(value, -p * x**2 - c, atol=0.25)
    assert policy.std.max() < 0.15  # type: ignore[union-attr]


# From pixels


@pytest.mark.slow
@pytest.mark.parametrize("actions", ["discrete", pytest.param("box", marks=pytest.mark.slow)])
def test_a_tiny_environment_is_learned_from_pixels(actions: str) -> None:
    length = 8
    env = EnvConfig(
        "tests.envs_for_tests:LeftRightEnv", image_size=[32, 32], num_envs=4,
        kwargs={"length": length, "actions": actions},
    )  # fmt: skip
    torch.manual_seed(0)
    model = ModelConfig(
        deter=64, hidden=32, groups=4, classes=4, depth=8, units=32, blocks=2, mults=[1, 2, 2],
        convolution="strided", centre_images=True, free_nats=0.1, discount_horizon=3,
    )  # fmt: skip
    config = DreamerConfig(
        batch_size=8, batch_length=8, horizon=3, actor_layers=1, critic_layers=1, entropy=1e-2,
        slow_rate=0.1, model=model, optim=OptimConfig(lr=4e-3, warmup=20),
    )  # fmt: skip
    envs = make_vector(env, seed=0)
    try:
        spec = env_spec(envs)
        agent = Dreamer(spec, config, CPU)
        replay = Replay(spec, ReplayConfig(capacity=5000), 4, agent.columns, seed=0)
        collector = Collector(envs, spec, agent, seed=0)
        scores: list[float] = []
        while len(replay) < 3200 and np.mean(scores[-12:] or 0) < 0.98 * length:
            scores += [episode.score for episode in collector.step(replay)]
            if len(replay) >= 200 and len(replay) % 8 == 0:
                agent.update(replay)
        assert np.mean(scores[:16]) < 0.75 * length  # chance is half
        judge = Collector(make_vector(env, seed=1), spec, agent, seed=0, mode="mode")
        final: list[float] = []
        while len(final) < 20:
            final += [episode.score for episode in judge.step()]
        judge.envs.close()
        assert np.mean(final) > 0.95 * length
    finally:
        envs.close()
