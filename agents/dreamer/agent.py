"""Dreamer: an actor and a critic trained on rollouts that the world model imagines.

    obs [B,T] -> encoder -> observe -> posterior / prior -> decoder, heads -> world-model losses
                              | start states, detached (cut 1)
                              v
          imagine H steps, actor inside -> reward, continue, value -> lambda-returns
                              |-> actor loss   (features and advantage detached: cut 2; with
                              |    actor_gradient=dynamics the returns' own gradient instead;
                              |    quieter: either)
                              '-> critic loss  (target detached: cut 3)

With `freeze_model` the first line is left out: the world model stays as it is, and imagination
starts at the states that the replay stores with its rows.

Hafner et al., "Mastering diverse control tasks through world models" (Nature 2025).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agents.base import Agent, Evaluation, Part, check_mode
from agents.dreamer.acting import ActState, Tick
from agents.dreamer.config import DreamerConfig
from agents.dreamer.gradient import REINFORCE, actor_objective
from agents.dreamer.parts import check_fits, check_memory, fitted_tensors, networks, parts_of
from agents.dreamer.pipeline import Pipeline
from agents.normalize import ReturnScale
from agents.returns import lambda_return, replay_return
from worldmodel import seeding
from worldmodel.accel.devices import autocast
from worldmodel.accel.ranks import Ranks
from worldmodel.nets import EMACopy, held
from worldmodel.optim import LaProp, Step
from worldmodel.replay import Replay
from worldmodel.replay.ring import available_memory
from worldmodel.rssm import ModelOutput, WorldModel, filter_replay
from worldmodel.rssm.state import LatentState
from worldmodel.types import MASK_KEY, Batch, EnvSpec


class Dreamer(Agent):
    """World model, actor, critic and their one optimizer."""

    Config = DreamerConfig
    joins = True

    def __init__(self, spec: EnvSpec, config: DreamerConfig, device: torch.device) -> None:
        check_fits(spec, config)
        self.spec, self.config, self.device = spec, config, device
        check_memory(lambda: networks(spec, config), available_memory())
        self.model, self.actor, self.critic = networks(spec, config)
        self.slow_critic = EMACopy(self.critic, config.slow_rate)
        self.return_scale = ReturnScale(config.return_rate)
        self.module = nn.ModuleDict({
            "model": self.model, "actor": self.actor, "critic": self.critic,
            "slow_critic": self.slow_critic, "return_scale": self.return_scale,
        }).to(device)  # fmt: skip
        trained = [("model", self.model), ("actor", self.actor), ("critic", self.critic)]
        if config.freeze_model:
            self.model.requires_grad_(False)
            del trained[0]
        self.optim = LaProp(trained, config.optim)
        self._alone = True  # no other ranks
        self._pipeline: Pipeline | None = None
        # What the replay stores beside each row: the posterior state.
        self.columns = self.model.columns if config.store_latents else {}
        self.control = config.model.control
        self.batch_size, self.batch_length = config.batch_size, config.batch_length
        self.min_rows = config.batch_size * config.batch_length  # a batch without repetition

    # Acting.

    def initial(self, batch_size: int) -> ActState:
        """The state before the first observation."""
        action = torch.zeros(batch_size, self.spec.action.size, device=self.device)
        return ActState(self.model.initial(batch_size), action)

    @torch.no_grad()
    def act(
        self, obs: Mapping[str, Any], state: ActState | None = None, mode: str = "sample"
    ) -> tuple[np.ndarray, ActState, dict[str, Any]]:
        """Encoded actions [B, A] for observations [B, ...].

        obs may hold `is_first` [B], which resets those rows. mode: "sample" to explore, "mode"
        for the most probable action. extras: what the replay stores of the posterior.
        """
        check_mode(mode)
        tensors = {
            k: torch.as_tensor(obs[k], device=self.device)
            for k in (*self.spec.obs, "is_first")
            if k in obs
        }
        batch = next(iter(tensors.values())).shape[0]
        state = self.initial(batch) if state is None else state
        is_first = tensors.pop("is_first", None)
        if is_first is None:
            is_first = torch.zeros(batch, dtype=torch.bool, device=self.device)
        with autocast(self.device, self.config.precision):
            latent = self.model.observe(state.latent, tensors, state.action, is_first.bool())
            dist = self.actor(latent.feat, tensors.get(MASK_KEY))
        action = dist.sample() if mode == "sample" else dist.mode()
        latent = latent.map(Tensor.float)
        packed = self.model.pack(latent) if self.config.store_latents else {}
        return action.cpu().numpy(), ActState(latent, action), packed

    def replace_action(self, state: ActState, action: Any) -> ActState:
        return state._replace(action=torch.as_tensor(action, device=self.device))

    def tick(self) -> Tick:
        return Tick(self.model, self.actor)

    # About its world.

    def world_state(self, state: ActState) -> LatentState:
        return state.latent

    @torch.no_grad()
    def evaluate(self, state: LatentState) -> Evaluation:
        """The actor's distribution in states [B, ...], and the critic's value of them."""
        return Evaluation(self._policy(state.feat), self.critic(state.feat).mean)

    def _policy(self, feat: Tensor) -> Any:
        """The actor's distribution over actions in imagined states with features [..., F]."""
        return self.actor(feat, self.model.allowed(feat))

    def dream_config(self, world: WorldModel, updates: int) -> DreamerConfig:
        """These settings with that world, frozen."""
        c = self.config
        return replace(
            c, freeze_model=True, model=world.config,
            entropy_anneal=updates if c.entropy_anneal else 0,
            optim=replace(c.optim, anneal=updates if c.optim.anneal else 0),
        )  # fmt: skip

    # Learning.

    def prepare(self, replay: Replay) -> None:
        """Make a replay that was filled from files ready for updates: a frozen model filters it
        once, since its states of recorded rows will not change. Draws no global random numbers."""
        if self.config.freeze_model:
            with seeding.Stream(0, self.device), autocast(self.device, self.config.precision):
                filter_replay(self.model, replay)

    def update(self, replay: Replay) -> dict[str, Any]:
        """One gradient step on a fresh batch; the fresh posteriors go back to the replay. On a GPU
        it is only begun, and what is returned, stored and raised belongs to the one before."""
        stored, frozen = tuple(self.columns), self.config.freeze_model
        batch = replay.sample(
            self.batch_size, self.batch_length, columns=stored if frozen else (), context=stored
        )
        if pipeline := self._pipelined():
            return pipeline.update(replay, batch)
        metrics, states = self.train_on(batch.to(self.device))
        if self._renews:
            replay.rewrite(batch.index, self.model.pack(states))
        return metrics

    def settle(self, replay: Replay) -> dict[str, Any]:
        """Bring an update that a GPU has begun to its end: its metrics, or none."""
        return self._pipeline.settle(replay) if self._pipeline else {}

    @property
    def _renews(self) -> bool:
        """Whether fresh states go back to the replay."""
        return self.config.store_latents and not self.config.freeze_model

    def _pipelined(self) -> Pipeline | None:
        """How updates run on a GPU that learns alone; None elsewhere."""
        wanted = self.device.type == "cuda" and self.config.cuda_graph and self._alone
        if wanted and self._pipeline is None:
            pack = self.model.pack if self._renews else None
            self._pipeline = Pipeline(self._learn, self.optim.check, pack, self.device)
        return self._pipeline

    def train_on(self, batch: Batch) -> tuple[dict[str, Tensor], LatentState]:
        """One gradient step on this batch; returns metrics and the posteriors [B, T, ...]: where
        the model is frozen and learns nothing, those that the batch has in its columns.

        Raises FloatingPointError, nothing changed, where loss or gradient is not finite; its
        `batch` is the one that made it.
        """
        metrics, states, step = self._learn(batch)
        try:
            self.optim.check(step)
        except FloatingPointError as error:
            error.batch = batch  # type: ignore[attr-defined]  # for whoever looks for the cause
            raise
        return metrics, states

    def _learn(self, batch: Batch) -> tuple[dict[str, Tensor], LatentState, Step]:
        """What `train_on` does, without a look at any number: a GPU need not be waited for. Where
        the step met what is not finite, nothing changes."""
        before = [buffer.clone() for buffer in self.module.buffers()]
        with autocast(self.device, self.config.precision):
            if self.config.freeze_model:
                output = ModelOutput({}, self.model.unpack(batch.columns), {})
            else:
                output = self.model.losses(batch)
            losses = {k: (self.model.scale(k), v.mean()) for k, v in output.losses.items()}
            behaviour, metrics = self.behaviour_losses(batch, output)
        losses |= behaviour
        total = torch.stack([scale * loss for scale, loss in losses.values()]).sum()
        metrics |= output.metrics | {f"loss/{k}": v.detach() for k, (_, v) in losses.items()}
        step = self.optim.attempt(total)
        for buffer, value in zip(self.module.buffers(), before, strict=True):
            buffer.copy_(torch.where(step.finite, buffer, value))
        self.slow_critic.update(self.critic, step.finite)
        metrics |= {"grad_norm": step.grad_norm, "loss/total": step.loss}
        return metrics, output.states.map(lambda x: x.detach().float()), step

    def behaviour_losses(
        self, batch: Batch, output: ModelOutput
    ) -> tuple[dict[str, tuple[float, Tensor]], dict[str, Tensor]]:
        """Actor and critic losses as {name: (scale, scalar)}, and metrics."""
        c = self.config
        # Cut 1: imagination starts at the posteriors and sends nothing back into them.
        starts, rows = self._pick_starts(output.states.map(Tensor.detach))
        reinforce = c.actor_gradient == REINFORCE  # it needs no gradient of what is imagined
        with torch.no_grad() if reinforce else held(self.model, self.critic):
            states, drawn = self.imagine(starts)  # [N, H+1, ...], H+1 of [N, A]
            actions = torch.stack(drawn, 1)
            feat = states.feat
            reward = self.model.imagined_reward(feat, actions[:, :-1])  # [N, H+1]
            cont = self.model.discounted_cont(feat)
            promised = None if reinforce else self.critic(feat).mean
        feat = feat.detach()
        # How likely each state is reached at all; none is learned from beyond an ending.
        weight = torch.cumprod(cont.detach(), 1)[:, :-1]
        # Older torch keeps weights that autocast cast without gradient: nothing would learn below.
        torch.clear_autocast_cache()
        critic = self.critic(feat)
        with torch.no_grad():  # cut 3: the critic follows its targets, not they it
            value, slow = critic.mean, self.slow_critic(feat).mean
        path = lambda_return(reward, cont, value if promised is None else promised, c.lam)
        returns = path.detach()  # [N, H]
        scale = self.return_scale.update(returns)
        policy = self._policy(feat[:, :-1])
        entropy = policy.entropy()
        # Cut 2: neither features nor advantage carry gradient.
        advantage = (returns - value[:, :-1]) / scale
        about = policy, drawn[:-1], path / scale, advantage, weight, self.return_scale.ranks
        aim = actor_objective(c.actor_gradient, *about)
        gain = aim.gain + c.entropy_weight(self.optim.done) * entropy
        critic_loss = -critic_log_prob(critic, returns, slow, c.slow_scale)
        losses = {
            "actor": (1.0, -(weight * gain).mean() - aim.surrogate),
            "critic": (1.0, (weight * critic_loss).mean()),
        }
        if c.replay_value_scale:
            loss = self.replay_value_loss(batch, output, returns[:, 0], rows)
            losses["replay_value"] = (c.replay_value_scale, loss)
        metrics = aim.metrics | {
            "return_mean": returns.mean(), "return_scale": scale, "value_mean": value.mean(),
            "reward_mean": reward.detach().mean(), "cont_mean": cont.detach().mean(),
            "actor_entropy": entropy.detach().mean(), "advantage_std": advantage.std(),
        }  # fmt: skip
        return losses, metrics

    def _pick_starts(self, posterior: LatentState) -> tuple[LatentState, Tensor]:
        """All B*T posteriors [N, ...] and their row numbers [N], or `imagination_starts` of each
        sequence at random."""
        flat = posterior.map(lambda x: x.flatten(0, 1))
        batch, length = posterior.deter.shape[:2]
        keep = self.config.imagination_starts
        if not 0 < keep < length:
            return flat, torch.arange(batch * length, device=self.device)
        times = torch.rand(batch, length, device=self.device).topk(keep, 1).indices
        first = length * torch.arange(batch, device=self.device).unsqueeze(1)
        rows = (times + first).flatten()
        return flat.map(lambda x: x[rows]), rows

    def imagine(self, start: LatentState) -> tuple[LatentState, list[Tensor]]:
        """H steps under the actor from start [N, ...]: states [N, H+1, ...], and the H + 1 actions
        [N, A] that it drew in them."""
        drawn: list[Tensor] = []

        def sampled(state: LatentState) -> Tensor:
            drawn.append(self._policy(state.feat).sample())
            return drawn[-1]

        states, _ = self.model.imagine(start, sampled, self.config.horizon)
        sampled(states.map(lambda x: x[:, -1]))
        return states, drawn

    def replay_value_loss(
        self, batch: Batch, output: ModelOutput, returns: Tensor, rows: Tensor
    ) -> Tensor:
        """The critic's loss on recorded rewards; its gradient reaches the world model.

        Bootstrapped with the imagined return of each state ([N] at rows [N] of B*T), or with the
        critic's value where imagination did not start.
        """
        feat = output.states.feat
        critic = self.critic(feat)
        with torch.no_grad():  # cut 3, again
            value, slow = critic.mean, self.slow_critic(feat).mean
        bootstrap = value.flatten().index_copy(0, rows, returns).view(batch.shape)
        reward = self.model.recorded_reward(batch, output.states)
        ends = batch.is_last, batch.is_terminal
        target = replay_return(reward, *ends, bootstrap, self.model.discount, self.config.lam)
        loss = -critic_log_prob(critic, target, slow, self.config.slow_scale)
        return ((~batch.is_last[:, :-1]).float() * loss).mean()

    def join(self, ranks: Ranks) -> None:
        """Make every later update one of all ranks together, each with its part of the batch."""
        self.optim.ranks = self.return_scale.ranks = ranks  # gradient, return range
        self.model.join(ranks)
        self._alone = False

    def slow_down(self, factor: float) -> bool:
        self.optim.slow_down(factor)
        return True

    # Keeping.

    @property
    def parts(self) -> dict[str, Part]:
        return parts_of(self.module, self.config.freeze_model)

    def fitted_tensors(self, names: Collection[str], old: Agent, run: Path) -> dict[str, Tensor]:
        """Of heads that no batch teaches, those that were fitted on the run's world model."""
        return fitted_tensors(self.config.model.heads, names, old.model, run)

    def state_dict(self) -> dict[str, Any]:
        """Weights, slow critic and return range under "module"; optimizer under "optim"."""
        return {"module": self.module.state_dict(), "optim": self.optim.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put `state_dict()` back in place; ValueError where it belongs to another agent."""
        try:
            self.module.load_state_dict(state["module"])
        except RuntimeError as error:
            raise ValueError(f"The weights belong to another configuration: {error}") from error
        self.optim.load_state_dict(state["optim"])


def critic_log_prob(dist: Any, target: Tensor, slow: Tensor, slow_scale: float) -> Tensor:
    """Log likelihood [N, H] of the returns and of the slow critic's own predictions, under the
    first H of the critic's H + 1 distributions. The last state has no return to learn from."""
    padded = torch.cat([target, torch.zeros_like(target[:, -1:])], 1)
    both = dist.log_probs(torch.stack([padded, slow]).detach())
    return (both[0] + slow_scale * both[1])[:, :-1]
