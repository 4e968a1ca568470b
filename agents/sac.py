"""Soft actor-critic: learns from replayed transitions, with entropy as a part of the reward.

    replay -> s, a, r, discount, s'
    target   y = r + discount (min_i Q'_i(s', a') - alpha log pi(a'|s')),  a' ~ pi(s')
    critics  sum_i mean (Q_i(s, a) - y)^2 / 2
    actor    mean (alpha log pi(b|s) - min_i Q_i(s, b)),                   b ~ pi(s)   (cut 1)
    alpha    -mean log alpha (log pi(b|s) + target entropy)                            (cut 2)

One optimizer step on the sum of all three: each uses the weights from before it. Q' follows Q
slowly. Haarnoja et al., "Soft Actor-Critic Algorithms and Applications" (2018).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agents.base import Agent, Evaluation, Part, check_mode
from agents.policies import EncoderConfig, Torso
from worldmodel import tree
from worldmodel.adam import Adam, AdamConfig
from worldmodel.config import ConfigError, check_ranges
from worldmodel.distributions import TanhNormal
from worldmodel.nets import EMACopy, ReluMLP
from worldmodel.replay import Replay
from worldmodel.types import EnvSpec, Transitions


@dataclass
class SACConfig:
    """batch_size: transitions of one update. units, layers: hidden layers of actor and critics.
    discount: of one step. target_rate: share of the way that the target critics move towards the
    critics at every update. target_entropy: of the policy, nats; null is minus the number of
    action entries. encoder: of images."""

    name: str = "sac"
    batch_size: int = 256
    units: int = 256
    layers: int = 2
    discount: float = 0.99
    target_rate: float = 0.005
    target_entropy: float | None = None
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    optim: AdamConfig = field(default_factory=AdamConfig)

    def __post_init__(self) -> None:
        ranges = {"batch_size": (1, 1 << 16), "units": (1, 1 << 16), "layers": (0, 64)}
        share = {"discount": (0, 1), "target_rate": (1e-9, 1)}
        check_ranges(self, {**ranges, **share, "target_entropy": (-1e6, 1e6)})


class Critics(nn.Module):
    """Two Q functions with weights of their own, computed side by side: features [B, F] and actions
    [B, A] -> [2, B]."""

    def __init__(self, features: int, units: int, layers: int) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for a, b in itertools.pairwise([features] + [units] * layers + [1]):
            bound = math.sqrt(6 / (a + b))  # Glorot's
            self.weights.append(torch.empty(2, a, b).uniform_(-bound, bound))
            self.biases.append(torch.zeros(2, 1, b))

    def forward(self, features: Tensor, action: Tensor, frozen: bool = False) -> Tensor:
        """frozen: no gradient reaches the weights, as if they were constants."""
        x = torch.cat([features, action], -1).expand(2, -1, -1)
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if frozen:
                weight, bias = weight.detach(), bias.detach()
            x = torch.baddbmm(bias, x, weight)
            x = x.relu_() if i < last else x
        return x.squeeze(-1)


class Networks(nn.Module):
    """Torso, actor, critics, the logarithm of the temperature alpha, and what targets are made of.

    The critics' loss alone trains the torso.
    """

    def __init__(self, spec: EnvSpec, config: SACConfig) -> None:
        super().__init__()
        self.torso = Torso(spec, config.encoder)
        features, actions = self.torso.out_features, spec.action.size
        self.actor = ReluMLP(features, config.units, config.layers, 2 * actions, glorot=True)
        self.critics = Critics(features + actions, config.units, config.layers)
        self.log_alpha = nn.Parameter(torch.zeros(()))
        self.target_torso = EMACopy(self.torso, config.target_rate)
        self.target_critics = EMACopy(self.critics, config.target_rate)

    def policy(self, features: Tensor) -> TanhNormal:
        """Features [B, F] -> the distribution of actions [B, A]."""
        mean, log_std = self.actor(features).chunk(2, -1)
        return TanhNormal(mean, log_std.clamp(-20.0, 2.0))

    def follow(self) -> None:
        """Move the targets one step."""
        self.target_torso.update(self.torso)
        self.target_critics.update(self.critics)


class Tick(nn.Module):
    """The policy's mode as a pure function of the observation; see `Agent.tick`."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.torso, self.actor = networks.torso, networks.actor

    def forward(self, obs: dict[str, Tensor], state: None, is_first: Tensor) -> tuple[Tensor, None]:
        mean, _ = self.actor(self.torso(obs)).chunk(2, -1)
        return torch.tanh(mean), None


class SAC(Agent):
    """Raises ConfigError for discrete actions, and where there is nothing to observe."""

    Config = SACConfig

    def __init__(self, spec: EnvSpec, config: SACConfig, device: torch.device) -> None:
        if spec.action.kind != "continuous":
            raise ConfigError(
                "agent=sac needs continuous actions, but those of this environment are discrete, "
                f"with {' x '.join(map(str, spec.action.sizes))} choices. Use agent=dqn (one "
                "factor only) or agent=dreamer."
            )
        self.spec, self.config, self.device = spec, config, device
        self.batch_size = self.min_rows = config.batch_size
        self.window, self.window_words = 2, "env.num_envs"
        self.networks = Networks(spec, config).to(device)
        self.optim = Adam([("networks", self.networks)], config.optim)
        given = config.target_entropy
        self.target_entropy = -float(spec.action.size) if given is None else given
        # Seeded from torch's generator, which the caller seeds. On the CPU whatever the device: a
        # run from a GPU can be loaded elsewhere.
        self.rng = torch.Generator().manual_seed(int(torch.randint(2**31, ()).item()))

    # Acting.

    def initial(self, batch_size: int) -> None:
        """There is no state."""
        return None

    @torch.no_grad()
    def act(
        self, obs: Mapping[str, Any], state: Any = None, mode: str = "sample"
    ) -> tuple[np.ndarray, None, dict[str, Any]]:
        check_mode(mode)
        seen = {key: torch.as_tensor(obs[key], device=self.device) for key in self.spec.seen}
        policy = self.networks.policy(self.networks.torso(seen))
        if mode == "mode":
            action = policy.mode()
        else:
            action, _ = policy.draw(self._noise(len(policy.mean)))
        return action.cpu().numpy(), None, {}

    def tick(self) -> nn.Module:
        return Tick(self.networks)

    def _noise(self, *batch: int) -> Tensor:
        """Standard normal [*batch, A]."""
        noise = torch.randn(*batch, self.spec.action.size, generator=self.rng)
        return noise.to(self.device)

    @torch.no_grad()
    def judge(self, obs: dict[str, Tensor]) -> Evaluation:
        """Policy and values of observations [B, ...] on the device."""
        nets = self.networks
        features = nets.torso(obs)
        policy = nets.policy(features)
        return Evaluation(policy, nets.critics(features, policy.mode()).amin(0))

    # Learning.

    def update(self, replay: Replay) -> dict[str, Any]:
        return self.learn(replay.transitions(self.batch_size, 1, self.config.discount))

    def learn(self, batch: Transitions) -> dict[str, Any]:
        """One update from these transitions, wherever they are from."""
        batch = batch.to(self.device)
        loss, metrics = self.loss(batch)
        try:
            metrics |= self.optim.step(loss)
        except FloatingPointError as error:
            error.batch = batch  # type: ignore[attr-defined]  # for whoever looks for the cause
            raise
        self.networks.follow()
        return metrics

    def loss(self, batch: Transitions) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of all three losses, and metrics."""
        nets = self.networks
        noise, next_noise = self._noise(2, len(batch.reward))
        alpha = nets.log_alpha.detach().exp()
        features = nets.torso(batch.obs)
        with torch.no_grad():  # the critics follow their targets, not they them
            action, log_prob = nets.policy(nets.torso(batch.next_obs)).draw(next_noise)
            q = nets.target_critics(nets.target_torso(batch.next_obs), action)
            target = soft_target(batch.reward, batch.discount, q, log_prob, alpha)
        critics = critic_loss(nets.critics(features, batch.action), target)
        # Cut 1: what the actor learns from is a constant of its loss.
        features = features.detach()
        action, log_prob = nets.policy(features).draw(noise)
        actor = actor_loss(nets.critics(features, action, frozen=True), log_prob, alpha)
        # Cut 2: the temperature's loss does not move the actor.
        log_prob = log_prob.detach()
        heat = alpha_loss(nets.log_alpha, log_prob, self.target_entropy)
        return critics + actor + heat, {
            "loss/critics": critics.detach(), "loss/actor": actor.detach(), "alpha": alpha,
            "value_mean": target.mean(), "entropy": -log_prob.mean(),
        }  # fmt: skip

    def slow_down(self, factor: float) -> bool:
        self.optim.slow_down(factor)
        return True

    # Keeping.

    @property
    def parts(self) -> dict[str, Part]:
        groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.networks.state_dict(keep_vars=True).items():
            part = name.partition(".")[0].removeprefix("target_")
            groups.setdefault(part, {})[name] = tensor
        return {
            part: Part(tensors, same_actions=part != "torso") for part, tensors in groups.items()
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "networks": self.networks.state_dict(),
            "optim": self.optim.state_dict(),
            "rng": self.rng.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        tree.check_plain_like(tree.to_plain(self.state_dict()), state, "the agent")
        self.networks.load_state_dict(state["networks"])
        self.optim.load_state_dict(state["optim"])
        self.rng.set_state(state["rng"])


def soft_target(
    reward: Tensor, discount: Tensor, q: Tensor, log_prob: Tensor, alpha: Tensor
) -> Tensor:
    """What the critics shall say [B]: reward and discount [B] (0 after a terminal step), q [2, B]
    of the next action, and its log density [B]."""
    return reward + discount * (q.amin(0) - alpha * log_prob)


def critic_loss(q: Tensor, target: Tensor) -> Tensor:
    """Half the mean squared error of each critic, summed: q [2, B], target [B]."""
    return 0.5 * (q - target).square().mean(-1).sum()


def actor_loss(q: Tensor, log_prob: Tensor, alpha: Tensor) -> Tensor:
    """mean(alpha log pi - min Q) of q [2, B] and log_prob [B] of the actor's own actions."""
    return (alpha * log_prob - q.amin(0)).mean()


def alpha_loss(log_alpha: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """Raises alpha where the entropy, -mean(log_prob [B]), is below its target."""
    return -log_alpha * (log_prob.mean() + target_entropy)
