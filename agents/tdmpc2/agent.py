"""TD-MPC2: a planner in a learned latent world, with values learned by temporal differences.

    obs -> encoder -> z -> planner (candidates and the policy's, H steps, Q at their end) -> action
    replay -> slices -> consistency, reward, ending     (worldmodel.models.latent)
    values   CE(Q_i(z_t, a_t), r + discount min_2 Q'(enc(o'), pi(o')))    (cut 1: targets)
    policy   -mean rho^t (Q_2(z_t, pi(z_t)) / scale + entropy)            (cuts 2, 3: z and Q)

The policy takes its step after the others; the targets Q' then follow Q. Hansen, Su and Wang,
"TD-MPC2: Scalable, Robust World Models for Continuous Control" (ICLR 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.base import Agent, Evaluation, Part, check_mode
from agents.planning.base import Plan
from agents.planning.mppi import MPPI
from agents.planning.sequence import Warm
from agents.tdmpc2.config import TDMPC2Config
from agents.tdmpc2.losses import (
    constraint_gain,
    factor_gain,
    next_scale,
    plan_log_prob,
    scaled_entropy,
    value_loss,
    value_target,
)
from agents.tdmpc2.networks import Networks, TDMPC2State, Tick
from agents.tdmpc2.plans import PLAN, plan_again, stored, unplanned
from worldmodel import seeding, tree
from worldmodel.adam import Adam
from worldmodel.config import ConfigError
from worldmodel.distributions import FactoredOneHot
from worldmodel.models.latent import Latent, Learned
from worldmodel.replay import Replay
from worldmodel.types import MASK_KEY, Batch, Column, EnvSpec

DECODER = "decoder"


class TDMPC2(Agent):
    """Raises ConfigError where there is nothing to observe."""

    Config = TDMPC2Config

    def __init__(self, spec: EnvSpec, config: TDMPC2Config, device: torch.device) -> None:
        self.spec, self.config, self.device = spec, config, device
        self.batch_size = self.min_rows = config.batch_size
        self.discrete = spec.action.kind == "discrete"
        self.networks = nets = Networks(spec, config).to(device)
        self.model = nets.model
        self.window = self.model.context + config.horizon + 1
        self.window_words = "agent.horizon, agent.model.frames"
        world = [(n, module) for n, module in self.model.named_children() if n != DECODER]
        rates = [config.encoder_rate if name == "encoder" else 1.0 for name, _ in world] + [1.0]
        self.optim = Adam([*world, ("q", nets.q)], config.optim, rates)
        self.policy_optim = Adam([("policy", nets.policy)], config.policy_optim)
        decoder = self.model.decoder
        self.decoder_optim = Adam([(DECODER, decoder)], config.policy_optim) if decoder else None
        # Seeded from torch's generator, which the caller seeds.
        seeds = torch.randint(2**31, (3,)).tolist()
        self.stream = seeding.Stream(seeds[0], device)
        modes = {"sample": config.planner, "mode": replace(config.planner, sample=False)}
        self.planners = {
            mode: MPPI(spec.action, settings, seed, device)
            for (mode, settings), seed in zip(modes.items(), seeds[1:], strict=True)
        }
        if config.guide != "none":
            size = spec.action.size * (1 if self.discrete else 2)
            self.columns = {PLAN: Column((size,), "float32")}

    # Acting.

    @property
    def streams(self) -> tuple[seeding.Stream, ...]:
        return (self.stream, *(planner.stream for planner in self.planners.values()))

    def initial(self, batch_size: int) -> TDMPC2State:
        """The state before the first observation."""
        mean = self.planners["sample"].initial(batch_size).mean
        return TDMPC2State(self.model.initial(batch_size), mean)

    @torch.no_grad()
    def act(
        self, obs: Mapping[str, Any], state: TDMPC2State | None = None, mode: str = "sample"
    ) -> tuple[np.ndarray, TDMPC2State, dict[str, Any]]:
        """See `Agent.act`; before the first update nothing is planned, and the policy acts."""
        check_mode(mode)
        with self.config.autocast(self.device):
            state, mask, first = self._seen(obs, state)
            latent, batch = state.latent, len(first)
            if self.config.plan and self.optim.updates:
                plan = self.plan(latent, state.mean, first, mask, mode)
                action, mean, values = plan.action, plan.warm.mean, self._stored(plan)
                if mode == "sample" and not self.discrete:
                    with self.stream:
                        noise = plan.first.std * torch.randn_like(plan.first.std)
                    action = self.spec.action.clip(action + noise)
            else:
                policy = self.networks.actions(latent.z, mask)
                with self.stream:
                    action = policy.sample() if mode == "sample" else policy.mode()
                mean, guide = self.initial(batch).mean, self.config.guide
                values = unplanned(self.planners[mode].space, guide, batch, self.device)
        extras = {PLAN: values} if self.columns else {}
        return action.cpu().numpy(), TDMPC2State(latent, mean), extras

    def follow(
        self, obs: Mapping[str, Any], state: TDMPC2State | None = None, mode: str = "sample"
    ) -> tuple[None, TDMPC2State, dict[str, Any]]:
        """See `Agent.follow`: nothing is planned."""
        check_mode(mode)
        with torch.no_grad(), self.config.autocast(self.device):
            return None, self._seen(obs, state)[0], {}

    def _seen(
        self, obs: Mapping[str, Any], state: TDMPC2State | None
    ) -> tuple[TDMPC2State, Tensor | None, Tensor]:
        """The state with the observation taken in, the actions allowed, and `is_first`."""
        keys = (key for key in (*self.spec.seen, "is_first") if key in obs)
        tensors = {key: torch.as_tensor(obs[key], device=self.device) for key in keys}
        begins = torch.full((tree.batch_size(tensors),), state is None, device=self.device)
        state = self.initial(len(begins)) if state is None else state
        first = tensors.pop("is_first", begins).bool() | begins
        latent = self.model.observe(state.latent, tensors, state.latent.z, first)
        return state._replace(latent=latent), tensors.get(MASK_KEY), first

    def plan(
        self, latent: Latent, mean: Tensor | None, first: Tensor | None, mask: Tensor | None,
        mode: str,
    ) -> Plan:  # fmt: skip
        """What the planner finds; mean [B, H, A]: the last plan's, None where there is none."""
        root = self.model.prepared(latent)
        warm = None if mean is None else Warm(mean, mean.unsqueeze(1)[:, :0])
        return self.planners[mode].plan(self.model, root, self._guess, warm, first, mask)

    def _stored(self, plan: Plan) -> Tensor:
        return stored(plan, self.config.guide, self.discrete)

    def _plan_anew(self, latent: Latent, mask: Tensor | None) -> Tensor:
        return self._stored(self.plan(latent, None, None, mask, "sample"))

    def world_state(self, state: TDMPC2State) -> Latent:
        return state.latent

    def tick(self) -> Tick:
        return Tick(self.networks)

    # About its world.

    @torch.no_grad()
    def evaluate(self, state: Latent) -> Evaluation:
        """The policy in states [B, ...], and the value of what it likes best; draws nothing."""
        policy = self.networks.actions(state.z, self.model.action_mask(state))
        return Evaluation(policy, self.networks.value(state.z, policy.mode()))

    def _guess(self, state: Latent) -> Evaluation:
        """What a planner asks: the value, by two heads, of a draw of the policy."""
        policy = self.networks.actions(state.z, self.model.action_mask(state))
        value = self.networks.value(state.z, policy.sample(), self.networks.two())
        return Evaluation(policy, value)

    # Learning.

    def prepare(self, replay: Replay) -> None:
        """ConfigError where the policy is to learn from plans, which no recording has."""
        if self.columns:
            raise ConfigError(
                f"agent.guide={self.config.guide} learns from the planner's own distributions, and "
                "a recording has none. Set agent.guide=none."
            )

    def update(self, replay: Replay) -> dict[str, Any]:
        """One step of world and values, and one of the policy, on fresh slices."""
        batch = replay.sample(self.batch_size, self.window, online=False, columns=self.columns)
        batch = batch.to(self.device)
        try:
            with self.stream:
                return self._train_on(batch, replay)
        except FloatingPointError as error:
            error.batch = batch  # type: ignore[attr-defined]  # for whoever looks for the cause
            raise

    def _train_on(self, batch: Batch, replay: Replay) -> dict[str, Any]:
        """One update on this batch of a replay; draws from torch's generator."""
        nets = self.networks
        with self.config.autocast(self.device):
            learned = self.model.learn(batch)
            losses, metrics = self.world_losses(learned, batch)
            if self.config.replans(self.optim.updates):
                plan_again(replay, batch, learned, self.config.replan, self._plan_anew)
        total = torch.stack(list(losses.values())).sum()
        metrics |= {f"loss/{name}": loss.detach() for name, loss in losses.items()}
        metrics |= self.optim.step(total)
        with self.config.autocast(self.device):
            loss, scale, more = self.policy_loss(learned, batch)
        metrics["grad_norm/policy"] = self.policy_optim.step(loss)["grad_norm"]
        if self.decoder_optim is not None:
            shows = self.model.decoder_loss(learned, batch)
            self.decoder_optim.step(shows)
            metrics["loss/decoder"] = shows.detach()
        nets.scale.copy_(scale)
        nets.target_q.update(nets.q)
        return metrics | more

    def world_losses(
        self, learned: Learned, batch: Batch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses of world and values, weighted, and metrics."""
        nets, config = self.networks, self.config
        mask = self._mask(batch)
        with torch.no_grad():  # cut 1: values follow their targets, not they them
            action = nets.actions(learned.seen, None if mask is None else mask[1:]).sample()
            q = self.model.bins.mean(nets.target_q(learned.seen, action, nets.two()))
            target = value_target(learned.reward, learned.terminal, config.model.discount, q)
        apart = self.model.bins.loss(nets.q(learned.z[:-1], learned.action, drops=True), target)
        loss = config.value_scale * value_loss(apart, learned.weight)
        metrics = {"value_mean": target.mean(), "inside": (learned.weight > 0).float().mean()}
        return learned.losses | {"value": loss}, metrics

    def policy_loss(
        self, learned: Learned, batch: Batch
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The policy's loss, the scale of values after it, and metrics."""
        nets, config = self.networks, self.config
        z = learned.z.detach()  # cut 2: the policy does not shape the latents
        steps = torch.arange(len(z), device=z.device).unsqueeze(1)
        inside = torch.cat([torch.ones_like(learned.weight[:1]), (learned.weight > 0).float()])
        ends = batch.is_terminal[:, self.model.context :].t()
        weight = inside * (~ends).float() * config.model.rho**steps  # nobody acts after an ending
        policy = nets.actions(z, self._mask(batch))
        plan = (
            batch.columns[PLAN][:, self.model.context :].transpose(0, 1) if self.columns else None
        )
        if isinstance(policy, FactoredOneHot):
            value, entropy, near, apart = self._judge_discrete(z, policy, plan)
        else:
            value, entropy, near, apart = self._judge(z, policy, plan)
        imitates = config.guide == "imitation"
        scale = next_scale(nets.scale, (apart if imitates else value)[0].detach().float())
        gain = (-apart if imitates else value) / scale + config.entropy * entropy
        if config.guide == "constraint":
            gain = gain + constraint_gain(near, scale, self.spec.action.size)
        loss = -(weight * gain).mean()
        about = {"loss/policy": loss.detach(), "scale": scale, "entropy": entropy.detach().mean()}
        return loss, scale, about

    def _judge(
        self, z: Tensor, policy: Any, plan: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A continuous policy at z [H+1, B, F], by one draw each: the value of two heads, its
        entropy, how likely it is under the plan, and KL(policy || plan), [H+1, B] each."""
        nets = self.networks
        noise = torch.randn_like(policy.mean)
        action, log_prob = policy.draw(noise)
        # Cut 3: Q is a constant of the policy's loss; dropout stays on.
        logits = nets.q(z, action, nets.two(), drops=True, frozen=True)
        value = self.model.bins.mean(logits).mean(0)
        entropy = scaled_entropy(noise, policy.log_std, action, self.config.squashed_entropy)
        if plan is None:
            return value, entropy, torch.zeros_like(value), torch.zeros_like(value)
        mean, std = plan.chunk(2, -1)
        normal = torch.distributions.Normal(mean, std.clamp_min(0.05), validate_args=False)
        apart = log_prob - normal.log_prob(action).sum(-1)
        return value, entropy, plan_log_prob(action, mean, std), apart

    def _judge_discrete(
        self, z: Tensor, policy: FactoredOneHot, plan: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same of a discrete policy, by its probabilities."""
        nets, which = self.networks, self.networks.two()

        @torch.no_grad()  # cut 3: only the probabilities carry gradient
        def q(actions: Tensor) -> Tensor:
            logits = nets.q(z.expand(len(actions), *z.shape), actions, which, drops=True)
            mean: Tensor = self.model.bins.mean(logits).mean(0)
            return mean

        with torch.no_grad():
            drawn = policy.sample()
        probs = torch.cat([part.probs for part in policy.parts], -1)
        value = factor_gain([part.probs for part in policy.parts], drawn, q)
        entropy = policy.entropy()
        if plan is None:
            return value, entropy, torch.zeros_like(value), torch.zeros_like(value)
        near = (probs * plan.clamp_min(1e-6).log()).sum(-1)
        return value, entropy, near, -entropy - near

    def _mask(self, batch: Batch) -> Tensor | None:
        """Actions that were allowed, [H+1, B, A]."""
        mask = batch.obs.get(MASK_KEY)
        return None if mask is None else mask[:, self.model.context :].transpose(0, 1)

    def slow_down(self, factor: float) -> bool:
        self.optim.slow_down(factor)
        self.policy_optim.slow_down(factor)
        if self.decoder_optim is not None:
            self.decoder_optim.slow_down(factor)
        return True

    # Keeping.

    @property
    def parts(self) -> dict[str, Part]:
        found: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.networks.state_dict(keep_vars=True).items():
            part = name.removeprefix("model.").split(".")[0]
            part = {"target_q": "q", "scale": "q", "dynamics_norm": "dynamics"}.get(part, part)
            found.setdefault(part, {})[name] = tensor
        return {
            part: Part(
                tensors,
                optional=part in ("end", "mask", DECODER),
                same_actions=part not in ("encoder", "end", DECODER),
                same_observations=part in ("encoder", DECODER),
            )
            for part, tensors in found.items()
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "networks": self.networks.state_dict(),
            "optim": self.optim.state_dict(),
            "policy_optim": self.policy_optim.state_dict(),
            "decoder_optim": self.decoder_optim and self.decoder_optim.state_dict(),
            "stream": self.stream.state_dict(),
            "planners": {mode: one.state_dict() for mode, one in self.planners.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put `state_dict()` back; ValueError where it belongs to another agent."""
        try:
            self.networks.load_state_dict(state["networks"])
        except RuntimeError as error:
            raise ValueError(f"The weights belong to another configuration: {error}") from error
        self.optim.load_state_dict(state["optim"])
        self.policy_optim.load_state_dict(state["policy_optim"])
        if self.decoder_optim is not None:
            self.decoder_optim.load_state_dict(state["decoder_optim"])
        self.stream.load_state_dict(state["stream"])
        for mode, planner in self.planners.items():
            planner.load_state_dict(state["planners"][mode])
