"""World Models: see (V), remember and predict (M), act (C); each learns by itself, one by one.

    collect    policies with random weights play; later ones are neighbours of C
    vae        V learns to code single images
    encode     V codes all recorded rows, into a column of the replay
    rnn        M learns to predict codes, rewards and ends
    evolve     CMA-ES evolves C: a generation an update, all its dreams in one batch; or in the
               real environment, whose episodes it then collects
    (again, `iterations` times: collect with C, learn, evolve)

Every phase is a number of updates or steps, so that a run can stop and continue within any of
them. Ha and Schmidhuber, "World Models" (2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agents.base import Agenda, Agent, Evaluation, Part, check_mode
from agents.world_models.acting import ActState, Certain, Tick
from agents.world_models.config import WorldModelsConfig
from agents.world_models.controller import Search, actions_of, dream, outputs
from agents.world_models.memory import encode_rows, first_codes, reward_moments, row_count, windows
from agents.world_models.trials import Trials
from worldmodel import tree
from worldmodel.adam import Adam
from worldmodel.config import ConfigError
from worldmodel.models.mdnrnn import VMState, VMWorld, channels_first, image_key
from worldmodel.models.vae import make_vae
from worldmodel.replay import Replay
from worldmodel.seeding import spawn
from worldmodel.types import MASK_KEY, Column, EnvSpec

PHASES = ("collect", "vae", "encode", "rnn", "evolve", "done")
CODES = "codes"  # the column of V's mean and std
STARTS = 1000  # first rows that dreams begin in


class WorldModels(Agent):
    """Raises ConfigError unless observations are one image and nothing else."""

    Config = WorldModelsConfig
    whole_episodes = True  # they are what a candidate is judged by

    def __init__(self, spec: EnvSpec, config: WorldModelsConfig, device: torch.device) -> None:
        self.spec, self.config, self.device = spec, config, device
        wrong = [i for i in config.one_sided if i >= spec.action.size]
        if wrong or (config.one_sided and spec.action.kind == "discrete"):
            raise ConfigError(
                f"one_sided={config.one_sided} are entries of a continuous action; here it is "
                f"{spec.action.kind}, of size {spec.action.size}."
            )
        try:
            _, shape = image_key(spec)
            vae = make_vae(shape, config.vae)
        except ValueError as error:
            raise ConfigError(f"agent=world_models: {error}") from error
        self.model = VMWorld(spec, vae, config.rnn).to(device)
        self.controller = torch.zeros(spec.action.size, self.model.feat_size + 1, device=device)
        self.vae_optim = Adam([("vae", self.model.vae)], config.vae_optim)
        self.rnn_optim = Adam([("rnn", self.model.rnn)], config.rnn_optim)
        for weight in self.model.rnn.parameters():
            if weight.requires_grad:  # as published: each entry of the gradient by itself
                weight.register_hook(lambda grad: grad.clamp(-1.0, 1.0))
        self.columns = {CODES: Column((2 * self.model.latent,), "float32")}
        self.batch_size, self.batch_length = config.batch_size, config.batch_length
        self.min_rows = config.batch_length
        self.phase, self.iteration, self.done = "collect", 0, 0
        self.collected = 0  # agent steps
        self.rows = 0  # that V is to encode
        # Seeded from torch's generator, which the caller seeds. On the CPU whatever the device.
        self.seed = int(torch.randint(2**31, ()).item())
        self.rng = torch.Generator().manual_seed(self.seed)
        self.search: Search | None = None
        self.trials = Trials(config.search, self.seed)
        self._starts: Tensor | None = None  # codes [S, 2 N] of first rows

    # Acting.

    def initial(self, batch_size: int) -> ActState:
        action = torch.zeros(batch_size, self.spec.action.size, device=self.device)
        return ActState(self.model.initial(batch_size), action, self.trials.nobody(batch_size))

    @torch.no_grad()
    def act(
        self, obs: Mapping[str, Any], state: ActState | None = None, mode: str = "sample"
    ) -> tuple[np.ndarray, ActState, dict[str, Any]]:
        """mode "mode": C, with the means of V's codes. "sample": what the phase asks for, a policy
        with random weights or a candidate of the search, each for a whole episode."""
        check_mode(mode)
        image = torch.as_tensor(obs[self.model.key], device=self.device)
        batch = len(image)
        state = self.initial(batch) if state is None else state
        first = torch.as_tensor(obs.get("is_first", np.zeros(batch, bool)), device=self.device)
        mean, std = self.model.encode(image)
        z, weights, job = mean, self.controller, state.job
        if mode == "sample":
            if self.config.rnn.sample:
                z = mean + std * torch.randn(mean.shape, generator=self.rng).to(self.device)
            job = self._assign(state.job, obs, first)
            weights = torch.stack([self._weights(each) for each in job.tolist()])
        latent = self.model.remember(state.latent, z, state.action, first)
        values = outputs(weights, self.model.feat(latent))
        mask = torch.as_tensor(obs[MASK_KEY], device=self.device) if MASK_KEY in obs else None
        action = actions_of(values, self.spec.action, self.config.one_sided, mask)
        codes = torch.cat([mean, std], -1).cpu().numpy()
        return action.cpu().numpy(), ActState(latent, action, job), {CODES: codes}

    def _assign(self, job: Tensor, obs: Mapping[str, Any], first: Tensor) -> Tensor:
        """Who plays from here on: a new policy where an episode begins."""
        first_rows = first.cpu().numpy().astype(bool)
        if self.phase in ("collect", "evolve"):
            self.collected += int((~first_rows).sum())
        job = self.trials.note(job, obs, first_rows)
        explore = 1.0 if self.iteration == 0 else self.config.explore
        real = self.phase == "evolve"
        return self.trials.assign(job, first_rows, real, explore)

    def _weights(self, job: int) -> Tensor:
        """Of the policy that plays a job [A, F + 1]."""
        shape = self.controller.shape
        candidate = self.trials.candidate(job)
        if candidate is not None and self.search is not None:
            chosen = self.search.ask()[candidate].reshape(shape)
            return torch.as_tensor(chosen, dtype=torch.float32, device=self.device)
        drawn = self.trials.draws(job, shape, self.config.random_scale)
        if drawn is None:
            return self.controller
        random, noise = drawn
        noise = noise.to(self.device)
        sigma = self.search.sigma if self.search is not None else self.config.search.sigma
        return noise if random else self.controller + sigma * noise

    def replace_action(self, state: ActState, action: Any) -> ActState:
        return state._replace(action=torch.as_tensor(action, device=self.device))

    def tick(self) -> nn.Module:
        return Tick(self.model, self.controller, self.spec.action, self.config.one_sided)

    def world_state(self, state: ActState) -> VMState:
        return state.latent

    @torch.no_grad()
    def evaluate(self, state: VMState) -> Evaluation:
        """C's action in states of the world; it has no values."""
        values = outputs(self.controller, self.model.feat(state))
        return Evaluation(Certain(actions_of(values, self.spec.action, self.config.one_sided)))

    # Learning.

    @property
    def agenda(self) -> Agenda:
        c, search = self.config, self.config.search
        collect = c.collect
        if search.evolve_in == "real":
            collect += search.generations * search.population * search.trials * search.dream_steps
        rows = -(-max(self.rows, c.collect) // c.encode_rows)
        updates = c.vae_updates + rows + c.rnn_updates + search.generations
        length, done = c.iterations * (collect + updates), self.phase == "done"
        return Agenda(length, self._collecting, done, self.phase, c.collect)

    @property
    def _collecting(self) -> bool:
        if self.phase == "evolve" and self.config.search.evolve_in == "real":
            return self.trials.waiting
        return self.phase == "collect" and self.collected < self.done + self.config.collect

    def update(self, replay: Replay) -> dict[str, Any]:
        """One update of the present phase; see the module."""
        if self.phase == "collect":  # it is over, or there is nothing to collect from
            windows(replay, self.batch_size, self.batch_length, self.rng)  # or V learns in vain
            self._begin("vae")
        if self.phase == "vae":
            return self._update_vae(replay)
        if self.phase == "encode":
            return self._encode(replay)
        if self.phase == "rnn":
            return self._update_rnn(replay)
        return self._evolve(replay) if self.phase == "evolve" else {}

    def _begin(self, phase: str) -> None:
        self.phase, self.done = phase, 0

    def _advance(self, limit: int, phase: str) -> None:
        """Count an update of this phase, and begin the next one after `limit` of them."""
        self.done += 1
        if self.done >= limit:
            self._begin(phase)

    def _go_on(self) -> None:
        """Collect again, where an iteration is left: in a finished run, too, that is given more."""
        if self.phase == "done" and self.iteration + 1 < self.config.iterations:
            self.iteration += 1
            self._begin("collect")
            self.done = self.collected

    def _update_vae(self, replay: Replay) -> dict[str, Any]:
        batch = replay.sample(self.config.vae_batch, 1, online=False)
        image = channels_first(batch.obs[self.model.key][:, 0].to(self.device))
        loss, metrics = self.model.vae.loss(image)
        metrics |= self._step(self.vae_optim, loss, batch)
        self._advance(self.config.vae_updates, "encode")
        if self.phase == "encode":
            self.rows = row_count(replay)
        return {f"vae/{k}": v for k, v in metrics.items()} | {"grad_norm": metrics["grad_norm"]}

    def _encode(self, replay: Replay) -> dict[str, Any]:
        start = self.done * self.config.encode_rows
        encode_rows(replay, self.model, CODES, start, self.config.encode_rows, self.device)
        self._advance(-(-self.rows // self.config.encode_rows), "rnn")
        if self.phase == "rnn":
            mean, std = reward_moments(replay)
            self.model.rnn.reward_mean.fill_(mean)
            self.model.rnn.reward_std.fill_(std)
        return {"encoded": float(min(self.rows, start + self.config.encode_rows))}

    def _update_rnn(self, replay: Replay) -> dict[str, Any]:
        index = windows(replay, self.batch_size, self.batch_length, self.rng)
        batch = replay.gather(index, columns=[CODES]).to(self.device)
        loss, metrics = self.model.memory_loss(batch.columns[CODES], batch)
        metrics |= self._step(self.rnn_optim, loss, batch)
        self._advance(self.config.rnn_updates, "evolve")
        if self.phase == "evolve":
            self._new_search()
        return {f"rnn/{k}": v for k, v in metrics.items()} | {"grad_norm": metrics["grad_norm"]}

    def _step(self, optim: Adam, loss: Tensor, batch: Any) -> dict[str, Tensor]:
        try:
            return optim.step(loss) | {"loss": loss.detach()}
        except FloatingPointError as error:
            error.batch = batch  # type: ignore[attr-defined]  # for whoever looks for the cause
            raise

    def _new_search(self) -> None:
        self._starts = None
        seed, config = spawn(self.seed, f"search {self.iteration}"), self.config.search
        if self.iteration and config.later_sigma:
            config = replace(config, sigma=config.later_sigma)
        self.search = Search(self.controller.double().cpu().numpy().ravel(), config, seed)
        self.trials.new_generation()

    def _evolve(self, replay: Replay) -> dict[str, Any]:
        """One generation: evaluated in dreams, or as the real episodes came out."""
        assert self.search is not None
        c = self.config.search
        if c.evolve_in == "real":
            returns, steps = self.trials.returns, self.trials.lengths
        else:
            returns, steps = self._dream(replay, self.search.ask())
        self.search.tell(returns.mean(1))
        mean = torch.from_numpy(self.search.mean).view_as(self.controller)
        self.controller.copy_(mean.to(self.controller))
        self.trials.new_generation()
        self._advance(c.generations, "done")
        self._go_on()
        each = returns.mean(1)
        return {
            f"{c.evolve_in}/return": float(each.mean()), f"{c.evolve_in}/best": float(each.max()),
            f"{c.evolve_in}/length": float(steps.mean()), "search/sigma": self.search.sigma,
            "search/generation": float(self.search.generation),
        }  # fmt: skip

    def _dream(self, replay: Replay, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns and lengths [P, R] of the candidates' dreams, which begin in the same states."""
        shape = -1, *self.controller.shape
        weights = torch.as_tensor(candidates, dtype=torch.float32, device=self.device).view(shape)
        start = self.dream_starts(replay, self.config.search.trials)
        c, about = self.config.search, (self.spec.action, self.config.one_sided)
        found = dream(self.model, weights, start, c.dream_steps, self.rng, *about, c.ends)
        return found.returns.cpu().numpy(), found.steps.cpu().numpy()

    def dream_starts(self, replay: Replay, count: int) -> VMState:
        """States [count, ...] of recorded episodes' first rows. Raises RunError without one."""
        if self._starts is None:
            self._starts = first_codes(replay, CODES, STARTS).to(self.device)
        picks = torch.randint(len(self._starts), (count,), generator=self.rng)
        mean, std = self._starts[picks.to(self.device)].chunk(2, -1)
        noise = torch.randn(mean.shape, generator=self.rng).to(self.device)
        return self.model.initial(count)._replace(z=mean + std * noise)

    def slow_down(self, factor: float) -> bool:
        self.vae_optim.slow_down(factor)
        self.rnn_optim.slow_down(factor)
        return True

    # Keeping.

    @property
    def parts(self) -> dict[str, Part]:
        """V, M and C."""
        named = {
            name: dict(module.state_dict(keep_vars=True))
            for name, module in (("vae", self.model.vae), ("rnn", self.model.rnn))
        }
        return {
            "vae": Part(named["vae"], same_actions=False),
            "rnn": Part(named["rnn"]),
            "controller": Part({"weights": self.controller.detach().requires_grad_()}),
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "controller": self.controller.clone(),
            "vae_optim": self.vae_optim.state_dict(),
            "rnn_optim": self.rnn_optim.state_dict(),
            "place": {
                "phase": self.phase, "iteration": self.iteration, "done": self.done,
                "collected": self.collected, "rows": self.rows, "seed": self.seed,
            },
            "rng": self.rng.get_state(),
            "search": None if self.search is None else self.search.state_dict(),
            "trials": self.trials.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = tree.to_plain(self.state_dict()) | {"search": None}
        tree.check_plain_like(own | {"trials": None}, state, "the agent")
        place = state["place"]
        numbers = ("iteration", "done", "collected", "rows", "seed")
        if place["phase"] not in PHASES or min(place[name] for name in numbers) < 0:
            raise ValueError(
                f"The agent stands in phase {place['phase']!r:.40} at {place['done']}. Known: "
                f"{', '.join(PHASES)}."
            )
        if place["phase"] == "evolve" and state["search"] is None:
            raise ValueError("The agent evolves its controller, but its search is missing.")
        self.model.load_state_dict(state["model"])
        self.controller.copy_(state["controller"])
        self.vae_optim.load_state_dict(state["vae_optim"])
        self.rnn_optim.load_state_dict(state["rnn_optim"])
        self.phase = place["phase"]
        self.iteration, self.done, self.collected, self.rows, self.seed = (
            place[name] for name in numbers
        )
        self.rng.set_state(state["rng"])
        self.trials = Trials(self.config.search, self.seed)
        self.trials.load_state_dict(state["trials"])
        self.search, self._starts = None, None
        if state["search"] is not None:
            start = self.controller.double().cpu().numpy().ravel()
            self.search = Search(start, self.config.search, 0)
            self.search.load_state_dict(state["search"])
        self._go_on()
