"""MuZero: every action comes from a tree search in hidden states, and the search teaches the net.

    act      o_t -> h -> search with g and f -> policy p_t, root value v_t, action; both are stored
    learn    h(o_t), then g with a_t, a_{t+1}, ...: f says p, z; g says r         (targets.py)
             half of the gradient goes from each step into the one before         (cut 1)
             targets come from a copy of the network, which learns nothing        (cut 2)
    again    old rows are searched with the weights of now: p and v are replaced

Schrittwieser et al. (2020, and "Online and offline RL by planning with a learned model", 2021);
Danihelka et al., Gumbel MuZero (2022); Hubert et al., Sampled MuZero (2021); Ye et al.,
EfficientZero (2021); Wang et al., EfficientZero V2 (2024).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.base import Agent, Evaluation, Part, check_mode
from agents.muzero.compiled import Compiled
from agents.muzero.config import MuZeroConfig, check_searchable
from agents.muzero.nets import Networks
from agents.muzero.targets import (
    Targets,
    bootstraps,
    check_turns,
    greatest,
    make_targets,
    warn_of,
    window,
)
from agents.planning.mcts import MCTS
from agents.planning.tree_growth import Found
from worldmodel import tree
from worldmodel.adam import Adam
from worldmodel.models.muzero import MuZeroState
from worldmodel.replay import Replay, RowIndex
from worldmodel.types import MASK_KEY, Batch, Column, EnvSpec

CHUNK = 256  # rows that are searched at once where a recording is made ready


class MuZero(Agent):
    """Raises ConfigError where there is nothing to observe, for continuous actions without
    search.samples, and for more joint actions than a search looks at."""

    Config = MuZeroConfig
    both_sides = True

    def __init__(self, spec: EnvSpec, config: MuZeroConfig, device: torch.device) -> None:
        self.spec, self.config, self.device = spec, config, device
        check_searchable(spec.action, config.search)
        self.batch_size = config.batch_size
        self.priority_exponent = config.priority_exponent
        self.networks = Networks(spec, config).to(device).eval()
        self.model = self.networks.model
        self.context = self.model.frames.context  # rows before the first one that is learned from
        self.window = self.context + 1 + config.unroll + config.n_step
        self.window_words = "agent.unroll, agent.n_step, agent.model.frames"
        self.min_rows = max(config.batch_size, self.window)
        self.target = copy.deepcopy(self.networks).requires_grad_(False)
        self.optim = Adam([("networks", self.networks)], config.optim)
        # Seeded from torch's generator, which the caller seeds.
        seed = int(torch.randint(2**31, ()).item())
        own = config.search
        if own.rule == "gumbel":
            own = replace(own, dirichlet=0.0)  # of puct, whose default it is
        self.explorer = MCTS(spec.action, own, seed, device)
        calm = replace(
            own, dirichlet=0.0, gumbel=0.0, temperature=0.0,
            simulations=config.simulations_evaluated or own.simulations,
        )  # fmt: skip
        self.planner = MCTS(spec.action, calm, 0, device)
        count = config.search.root_samples or config.search.samples
        self.drawn = bool(count)
        self.compiled = None
        if not self.drawn and Compiled.fits(self.networks):
            self.compiled = Compiled(self.networks)
        size = count or len(self.explorer.choices.encoded)
        self.columns = {"policy": Column((size,), "float32"), "value": Column((), "float32")}
        if self.drawn:
            self.columns["options"] = Column((size, spec.action.size), "float32")
        self.rng = torch.Generator().manual_seed(seed)
        self._warned = False

    # Acting.

    def initial(self, batch_size: int) -> MuZeroState:
        return self.model.initial(batch_size)

    @torch.no_grad()
    def act(
        self, obs: Mapping[str, Any], state: Any = None, mode: str = "sample"
    ) -> tuple[np.ndarray, MuZeroState, dict[str, Any]]:
        check_mode(mode)
        mask, root = self._seen(obs, state)
        if mode == "mode":
            self.planner.stream.seed(0)  # an evaluation draws nothing that another does not
            found = self._search(self.planner, root, mask)
        else:
            found = self._search(self.explorer, root, mask)
        return found.action.cpu().numpy(), root, self._columns(found)

    @torch.no_grad()
    def follow(
        self, obs: Mapping[str, Any], state: Any = None, mode: str = "sample"
    ) -> tuple[None, MuZeroState, dict[str, Any]]:
        """See `Agent.follow`: nothing is searched."""
        check_mode(mode)
        return None, self._seen(obs, state)[1], {}

    def _seen(
        self, obs: Mapping[str, Any], state: MuZeroState | None
    ) -> tuple[Tensor | None, MuZeroState]:
        """The actions allowed, and what observations represent."""
        seen = {key: torch.as_tensor(obs[key], device=self.device) for key in self.spec.seen}
        first = torch.full((tree.batch_size(seen),), state is None, device=self.device)
        if "is_first" in obs:
            first |= torch.as_tensor(obs["is_first"], device=self.device).bool()
        state = self.initial(len(first)) if state is None else state
        return seen.get(MASK_KEY), self.model.observe(state, seen, state.latent, first)

    def _search(self, planner: MCTS, root: MuZeroState, mask: Tensor | None) -> Found:
        heat = None if planner is self.planner else self.temperature
        root = root._replace(recent=None)  # no node of a tree sees another image
        about = (self.model, root, self.evaluate, mask, heat)
        return planner.search(*about, compiled=self.compiled)

    def _columns(self, found: Found) -> dict[str, Any]:
        out: dict[str, Any] = {
            "policy": found.policy.astype(np.float32), "value": found.value.astype(np.float32)
        }  # fmt: skip
        return out | ({"options": found.options.cpu().numpy()} if self.drawn else {})

    @property
    def temperature(self) -> float:
        """Of acting by visits, at the next step."""
        c = self.config
        done = self.optim.updates / c.temperature_updates
        middle = 0.5 * (c.temperature + c.temperature_end)
        return c.temperature if done < 0.5 else middle if done < 0.75 else c.temperature_end

    def world_state(self, state: MuZeroState) -> MuZeroState:
        return state

    def evaluate(self, state: MuZeroState) -> Evaluation:
        numbers, logits = self.networks.prediction(state.latent)
        return Evaluation(self.networks.policy(numbers), self.networks.support.mean(logits))

    # Learning.

    def update(self, replay: Replay) -> dict[str, Any]:
        c = self.config
        if c.reanalyse:
            rows = replay.sample(c.reanalyse, self.context + 1, online=False)
            self.search_again(replay, rows)
        beta = min(1.0, c.beta + (1 - c.beta) * self.optim.updates / c.beta_updates)
        batch = replay.sample(
            c.batch_size, self.window, online=False, columns=self.columns, beta=beta
        )
        check_turns(batch)
        first = RowIndex(batch.index.stream, batch.index.start + self.context, 1)
        counts = torch.from_numpy(replay.counts[first.stream] - first.start)
        batch = batch.to(self.device)
        loss, error, metrics = self.loss(batch, replay.num_envs * counts.to(self.device))
        try:
            metrics |= self.optim.step(loss)
        except FloatingPointError as failure:
            failure.batch = batch  # type: ignore[attr-defined]  # for whoever looks for the cause
            raise
        if c.priority_exponent:
            replay.reweigh(first, error + 1e-6)
        if self.optim.updates % c.target_every == 0:
            self.target.load_state_dict(self.networks.state_dict())
            self._warned = self._warned or warn_of(metrics["value_outside"], self.networks.support)
        return metrics

    def loss(self, batch: Batch, age: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """The loss, the error of each first value [B], and metrics. age [B]: transitions since
        each sequence began, its context left out."""
        c, nets = self.config, self.networks
        seen, batch = self.model.rows(batch)[:, self.context :], batch.since(self.context)
        targets = self._targets(batch, seen, age)
        nets.train()
        steps, latents = self._unroll(batch, seen)
        numbers, logits = nets.prediction(torch.cat(latents))
        nets.eval()
        numbers = torch.stack(numbers.chunk(c.unroll + 1), 1)  # [B, K + 1, P]
        logits = torch.stack(logits.chunk(c.unroll + 1), 1)
        value = nets.support.loss(logits, targets.value) * targets.learned
        policy, entropy = self._policy_loss(numbers, batch)
        policy = (policy - c.entropy * entropy) * targets.decides
        rewards = targets.prefix if c.model.prefix else targets.reward
        reward = nets.support.loss(torch.stack([s.reward for s in steps], 1), rewards[:, 1:])
        learned = targets.learned[:, 1:]
        ends = torch.zeros_like(reward)
        if c.model.ends:
            ends = torch.nn.functional.binary_cross_entropy_with_logits(
                torch.stack([s.cont for s in steps], 1), targets.cont[:, 1:], reduction="none"
            )
        each = c.value_weight * value + c.policy_weight * policy
        later = c.reward_weight * (reward * learned) + ends * learned + each[:, 1:]
        metrics = {
            "loss/value": value.mean(), "loss/policy": policy.mean(), "loss/reward": reward.mean(),
            "loss/ends": ends.mean(), "value_mean": targets.value.mean(),
            "value_outside": (targets.value.abs() > greatest(nets.support)).float().mean(),
            "entropy": (entropy * targets.decides).mean(),
        }  # fmt: skip
        if c.model.projection:
            alike = self._consistency(seen, latents[1:]) * targets.decides[:, 1:]
            later = later + c.consistency_weight * alike
            metrics["loss/consistency"] = alike.mean()
        whole = each[:, 0] + later.mean(1)
        weight = 1.0 if batch.weight is None else batch.weight
        with torch.no_grad():  # priorities are numbers
            error = (nets.support.mean(logits[:, 0]) - targets.value[:, 0]).abs()
        return (weight * whole).mean(), error, {k: v.detach() for k, v in metrics.items()}

    def _unroll(self, batch: Batch, seen: Tensor) -> tuple[list[Any], list[Tensor]]:
        """The model's steps, and the latents that it passes, K + 1 of them."""
        state = self.model.represent(seen[:, 0])
        steps, latents = [], [state.latent]
        actions = self._actions(batch)
        for k in range(self.config.unroll):
            # Cut 1: as much gradient as from a single step, however many follow.
            state = state._replace(latent=0.5 * state.latent + 0.5 * state.latent.detach())
            steps.append(self.model.step_logits(state, actions[:, k]))
            state = steps[-1].state
            latents.append(state.latent)
        return steps, latents

    def _actions(self, batch: Batch) -> Tensor:
        """What was done after each of the first K rows [B, K, A]; past an episode's end, anything:
        it must not matter."""
        k = self.config.unroll
        action = self.spec.action.clip(batch.action[:, 1 : k + 1])
        past = torch.arange(k, device=self.device) >= window(batch).last[:, None]
        shape = (*past.shape, self.spec.action.size)
        noise = torch.rand(shape, generator=self.rng).to(self.device)
        other = self.explorer.space.resolve(2 * noise - 1, None)
        return torch.where(past.unsqueeze(-1), other, action)

    @torch.no_grad()
    def _targets(self, batch: Batch, seen: Tensor, age: Tensor) -> Targets:
        c = self.config
        found = window(batch)
        steps = torch.full_like(age, c.n_step)
        if c.aging:
            steps = (steps - age // c.aging).clamp(1, c.n_step)
        rows = bootstraps(found, c.unroll, steps)
        if c.values == "search":
            values = batch.columns["value"].gather(1, rows)
        else:
            which = torch.arange(len(rows), device=rows.device)[:, None]
            values = self.target.value(seen[which, rows].flatten(0, 1)).view(rows.shape)
        return make_targets(
            batch, found, rows, values, -c.discount if self.model.alternates else c.discount,
            c.model.prefix_steps,
        )  # fmt: skip

    def _policy_loss(self, numbers: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross entropy to the search's policies [B, K + 1], and the policy's entropy."""
        c = self.config
        policy = self.networks.policy(numbers)
        wanted = batch.columns["policy"][:, : c.unroll + 1]
        if self.drawn:
            options = batch.columns["options"][:, : c.unroll + 1]
            if c.best_only:
                wanted = torch.nn.functional.one_hot(wanted.argmax(-1), wanted.shape[-1])
            said = self.networks.policy(numbers.unsqueeze(-2)).log_prob(options)
            return -(wanted * said).sum(-1), policy.entropy()
        if len(self.spec.action.sizes) == 1:
            return -(wanted * policy.log_probs).sum(-1), policy.entropy()
        said = torch.cat([part.log_probs for part in policy.parts], -1)
        return -(wanted * (said @ self.explorer.choices.encoded.T)).sum(-1), policy.entropy()

    def _consistency(self, seen: Tensor, latents: list[Tensor]) -> Tensor:
        """-cos [B, K] of the states that were predicted and those that were then seen."""
        k = self.config.unroll
        with torch.no_grad():
            later = seen[:, 1 : k + 1].transpose(0, 1).flatten(0, 1)
            shown = self.model.represent(later).latent
        return torch.stack(self.model.consistency(torch.cat(latents), shown).chunk(k), 1)

    def search_again(self, replay: Replay, batch: Batch) -> None:
        """Replace what is stored with the last of rows [B, frames] by what a search finds with
        weights of now."""
        index, last = batch.index, batch.shape[1] - 1
        batch = batch.to(self.device)
        mask = batch.obs.get(MASK_KEY)
        found = self._searched(self.model.rows(batch)[:, -1], None if mask is None else mask[:, -1])
        replay.rewrite(RowIndex(index.stream, index.start + last, 1), found)

    @torch.no_grad()
    def _searched(self, seen: Tensor, mask: Tensor | None) -> dict[str, Any]:
        """The columns [N, 1, ...] of what was seen in N rows."""
        found = self._search(self.explorer, self.model.represent(seen), mask)
        return {name: value[:, None] for name, value in self._columns(found).items()}

    def prepare(self, replay: Replay) -> None:
        """A recording has no searches yet: make them."""
        for stream, start, stop in replay.episodes():
            for at in range(start, stop, CHUNK):
                rows, low = np.arange(at, min(at + CHUNK, stop)), max(start, at - self.context)
                one = RowIndex(np.array([stream]), np.array([low]), int(rows[-1]) + 1 - low)
                batch = replay.gather(one).to(self.device)
                mask = batch.obs.get(MASK_KEY)
                seen = self.model.rows(batch)[0, at - low :]
                found = self._searched(seen, None if mask is None else mask[0, at - low :])
                replay.rewrite(RowIndex(np.full_like(rows, stream), rows, 1), found)

    def slow_down(self, factor: float) -> bool:
        self.optim.slow_down(factor)
        return True

    # Keeping.

    @property
    def parts(self) -> dict[str, Part]:
        groups: dict[str, dict[str, Tensor]] = {"world": {}, "prediction": {}}
        for network, module in (("networks", self.networks), ("target", self.target)):
            for name, tensor in module.state_dict(keep_vars=True).items():
                part = "world" if name.startswith("model.") else "prediction"
                groups[part][f"{network}.{name}"] = tensor
        return {name: Part(tensors) for name, tensors in groups.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "networks": self.networks.state_dict(),
            "target": self.target.state_dict(),
            "optim": self.optim.state_dict(),
            "explorer": self.explorer.state_dict(),
            "rng": self.rng.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        tree.check_plain_like(tree.to_plain(self.state_dict()), state, "the agent")
        self.networks.load_state_dict(state["networks"])
        self.target.load_state_dict(state["target"])
        self.optim.load_state_dict(state["optim"])
        self.explorer.load_state_dict(state["explorer"])
        self.rng.set_state(state["rng"])
