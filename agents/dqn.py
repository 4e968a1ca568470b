"""Double deep Q-learning: values of actions, learned from replayed transitions.

    replay -> s, a, n-step return R, its discount, s'
    target  y = R + discount Q'(s', argmax_a Q(s', a))      over the actions that s' allows
    loss    mean of weight * Huber(y - Q(s, a))

Q' is a copy of Q, taken every so many updates. The action is random with a probability that falls
over the first steps, else the one of the highest value. Mnih et al., "Human-level control through
deep reinforcement learning" (2015); van Hasselt et al., "Deep Reinforcement Learning with Double
Q-learning" (2016); with `priority_exponent`: Schaul et al., "Prioritized Experience Replay" (2016).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.base import Agent, Evaluation, Part, check_mode, random_actions
from agents.policies import EncoderConfig, Greedy, Torso, greedy
from worldmodel import tree
from worldmodel.adam import Adam, AdamConfig
from worldmodel.config import ConfigError, check_ranges
from worldmodel.nets import ReluMLP
from worldmodel.replay import Replay
from worldmodel.types import MASK_KEY, EnvSpec, Transitions


@dataclass
class DQNConfig:
    """batch_size: transitions of one update. units, layers: hidden layers. discount: of one step.
    n_step: steps whose rewards are counted before the value is asked. target_every: updates between
    two copies of Q to Q'. epsilon_start, epsilon_end: probability of a random action, at first and
    after epsilon_steps agent steps. priority_exponent: of the error, in how often a transition is
    replayed; 0 draws all alike. beta, beta_updates: how far weights make up for that, at first; it
    rises to 1 over so many updates. encoder: of images."""

    name: str = "dqn"
    batch_size: int = 64
    units: int = 256
    layers: int = 2
    discount: float = 0.99
    n_step: int = 1
    target_every: int = 128
    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    epsilon_steps: int = 10_000
    priority_exponent: float = 0.0
    beta: float = 0.4
    beta_updates: int = 25_000
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    optim: AdamConfig = field(default_factory=lambda: AdamConfig(lr=5e-4, clip=10.0))

    def __post_init__(self) -> None:
        rows, share, steps = (1, 1 << 16), (0, 1), (1, 1 << 40)
        check_ranges(self, {
            "batch_size": rows, "units": rows, "layers": (0, 64), "discount": share,
            "n_step": (1, 1000), "target_every": steps, "epsilon_start": share,
            "epsilon_end": share, "epsilon_steps": steps, "priority_exponent": share,
            "beta": share, "beta_updates": steps,
        })  # fmt: skip


class QNetwork(nn.Module):
    """Observations by key, [B, ...] -> the value of each action [B, A]."""

    def __init__(self, spec: EnvSpec, config: DQNConfig) -> None:
        super().__init__()
        self.torso = Torso(spec, config.encoder)
        self.head = ReluMLP(self.torso.out_features, config.units, config.layers, spec.action.size)

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        values: Tensor = self.head(self.torso(obs))
        return values


class DQN(Agent):
    """Raises ConfigError unless there is one discrete action, and something to observe."""

    Config = DQNConfig

    def __init__(self, spec: EnvSpec, config: DQNConfig, device: torch.device) -> None:
        action = spec.action
        if action.kind != "discrete" or len(action.sizes) != 1:
            given, other = "continuous actions", "agent=sac or agent=dreamer"
            if action.kind == "discrete":
                given, other = f"{len(action.sizes)} of them side by side", "agent=dreamer"
            raise ConfigError(
                f"agent=dqn needs one discrete action, but this environment has {given}. "
                f"Use {other}."
            )
        self.spec, self.config, self.device = spec, config, device
        self.batch_size = self.min_rows = config.batch_size
        self.window, self.window_words = 2, "env.num_envs"
        self.priority_exponent = config.priority_exponent
        self.q = QNetwork(spec, config).to(device)
        self.target = copy.deepcopy(self.q).requires_grad_(False)
        self.optim = Adam([("q", self.q)], config.optim)
        self._one_hots = np.eye(action.size, dtype=np.float32)
        self.steps = 0  # acted on while exploring, over all environments
        # Seeded from torch's generator, which the caller seeds.
        self.rng = np.random.default_rng(int(torch.randint(2**31, ()).item()))

    # Acting.

    @property
    def epsilon(self) -> float:
        """The probability of a random action at the next step."""
        c = self.config
        share = min(1.0, self.steps / c.epsilon_steps)
        return c.epsilon_start + share * (c.epsilon_end - c.epsilon_start)

    def initial(self, batch_size: int) -> None:
        """There is no state."""
        return None

    @torch.no_grad()
    def act(
        self, obs: Mapping[str, Any], state: Any = None, mode: str = "sample"
    ) -> tuple[np.ndarray, None, dict[str, Any]]:
        check_mode(mode)
        seen = {key: torch.as_tensor(obs[key], device=self.device) for key in self.spec.seen}
        best = greedy(self.q(seen), seen.get(MASK_KEY)).cpu().numpy()
        action = self._one_hots[best]
        if mode == "sample":
            explore = self.rng.random(len(best)) < self.epsilon
            if explore.any():
                other = random_actions(self.spec, obs, len(best), self.rng)
                action = np.where(explore[:, None], other, action)
            self.steps += len(best)
        return action, None, {}

    def tick(self) -> nn.Module:
        return Greedy(self.q)

    @torch.no_grad()
    def judge(self, obs: dict[str, Tensor]) -> Evaluation:
        """Values of observations [B, ...] on the device; no policy."""
        return Evaluation(value=self.q(obs).amax(-1))

    @torch.no_grad()
    def explore(self, obs: dict[str, Tensor]) -> Tensor:
        """Encoded actions [B, A] as `act` draws them, but from torch's generator, and not counted:
        for observations that nobody has made."""
        best = greedy(self.q(obs), obs.get(MASK_KEY))
        size = self.spec.action.size
        other = torch.randint(size, best.shape, device=best.device)
        chosen = torch.where(torch.rand(best.shape, device=best.device) < self.epsilon, other, best)
        return F.one_hot(chosen, size).float()

    # Learning.

    def update(self, replay: Replay) -> dict[str, Any]:
        c = self.config
        beta = min(1.0, c.beta + (1 - c.beta) * self.optim.updates / c.beta_updates)
        batch = replay.transitions(c.batch_size, c.n_step, c.discount, beta)
        metrics, error = self._learn(batch)
        if c.priority_exponent:
            replay.reweigh(batch.index, error.abs() + 1e-6)
        return metrics

    def learn(self, batch: Transitions) -> dict[str, Any]:
        """One update from these transitions, wherever they are from."""
        return self._learn(batch)[0]

    def _learn(self, batch: Transitions) -> tuple[dict[str, Any], Tensor]:
        """The same, and the error of each transition's value [B]."""
        batch = batch.to(self.device)
        loss, error, metrics = self.loss(batch)
        try:
            metrics |= self.optim.step(loss)
        except FloatingPointError as failure:
            failure.batch = batch  # type: ignore[attr-defined]  # for whoever looks for the cause
            raise
        if self.optim.updates % self.config.target_every == 0:
            self.target.load_state_dict(self.q.state_dict())
        return metrics, error

    def loss(self, batch: Transitions) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """The loss, the error of each transition's value [B], and metrics."""
        value = (self.q(batch.obs) * batch.action).sum(-1)
        with torch.no_grad():  # Q follows its target, not it Q
            best = greedy(self.q(batch.next_obs), batch.next_obs.get(MASK_KEY))
            target = double_target(batch.reward, batch.discount, self.target(batch.next_obs), best)
        loss = huber_loss(value, target, batch.weight)
        metrics = {"loss/q": loss.detach(), "value_mean": target.mean(), "epsilon": self.epsilon}
        return loss, target - value.detach(), metrics

    def slow_down(self, factor: float) -> bool:
        self.optim.slow_down(factor)
        return True

    # Keeping.

    @property
    def parts(self) -> dict[str, Part]:
        both = {"q": self.q, "target": self.target}
        groups: dict[str, dict[str, Tensor]] = {"torso": {}, "head": {}}
        for network, module in both.items():
            for name, tensor in module.state_dict(keep_vars=True).items():
                groups[name.partition(".")[0]][f"{network}.{name}"] = tensor
        return {
            name: Part(tensors, same_actions=name != "torso")
            for name, tensors in groups.items()
            if tensors
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "q": self.q.state_dict(),
            "target": self.target.state_dict(),
            "optim": self.optim.state_dict(),
            "steps": self.steps,
            "rng": self.rng.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        tree.check_plain_like(tree.to_plain(self.state_dict()), state, "the agent")
        self.q.load_state_dict(state["q"])
        self.target.load_state_dict(state["target"])
        self.optim.load_state_dict(state["optim"])
        self.steps = state["steps"]
        self.rng.bit_generator.state = state["rng"]


def double_target(reward: Tensor, discount: Tensor, q: Tensor, best: Tensor) -> Tensor:
    """What Q shall say [B]: the n-step return and its discount [B] (0 where the episode ended), and
    the target network's q [B, A] of the next state at the action [B] that Q itself finds best."""
    return reward + discount * q.gather(-1, best.unsqueeze(-1)).squeeze(-1)


def huber_loss(value: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over [B] of e^2/2 for errors e up to 1, and |e| - 1/2 beyond."""
    return (weight * F.huber_loss(value, target, reduction="none")).mean()
