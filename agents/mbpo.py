"""MBPO: a learned world feeds a model-free learner with short imagined paths.

    every 250 steps    replay -> world.fit;   real states -> `agents.rollouts` -> pool
    every update       5% real transitions + 95% of the pool -> learner.learn

The learner is SAC (continuous actions) or DQN (one discrete one). The world is whatever
`world=NAME` says; it must be fitted from a replay and show its states as observations, as the
Gaussian ensemble does. Janner et al., "When to Trust Your Model" (2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from agents.base import Agent, Evaluation, Part, check_mode
from agents.dqn import DQN, DQNConfig
from agents.rollouts import RolloutConfig, branch, check_world
from agents.sac import SAC, SACConfig
from worldmodel import tree
from worldmodel.capabilities import Decodes, Fits
from worldmodel.config import ConfigError, check_ranges, unknown
from worldmodel.models import settings_of, world_class
from worldmodel.replay import Pool, Replay
from worldmodel.seeding import Stream
from worldmodel.types import ActionSpec, Dynamics, EnvSpec, Transitions

LEARNERS = ("sac", "dqn")
STALE = 1000  # updates without a new row after which paths are imagined anew: there are no steps


@dataclass
class MBPOConfig:
    """world: its name, or module:Class; on the command line `world=NAME` without "agent.", which
    brings its settings, too. model: those settings; none means the world's defaults. learner: sac
    or dqn, with the settings of that name below. batch_size: transitions of one update. rollouts:
    what is imagined, when, and how far."""

    choices: ClassVar = {"learner": LEARNERS}  # a setting that names the section which is read
    name: str = "mbpo"
    world: str = "gaussian"
    learner: str = "sac"
    batch_size: int = 256
    model: Any = None
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    sac: SACConfig = field(default_factory=SACConfig)
    dqn: DQNConfig = field(default_factory=DQNConfig)

    def __post_init__(self) -> None:
        check_ranges(self, {"batch_size": (1, 1 << 16)})
        if self.learner not in LEARNERS:
            raise ConfigError(unknown("learner", self.learner, LEARNERS))
        if self.dqn.n_step != 1 or self.dqn.priority_exponent:
            raise ConfigError(
                f"dqn.n_step is {self.dqn.n_step} and dqn.priority_exponent "
                f"{self.dqn.priority_exponent}; imagined transitions are single steps, drawn "
                "alike: 1 and 0."
            )
        self.model = settings_of(self.world, self.model)


def _check_actions(action: ActionSpec, learner: str) -> None:
    """ConfigError where this learner cannot take these actions."""
    able = "sac" if action.kind == "continuous" else "dqn" if len(action.sizes) == 1 else None
    if learner == able:
        return
    wanted = {"sac": "continuous actions", "dqn": "one discrete action"}[learner]
    advice = "No learner of agent=mbpo takes them: use agent=dreamer"
    raise ConfigError(
        f"agent.learner={learner} needs {wanted}, but the actions of this environment are "
        f"{action}. {f'Set agent.learner={able}' if able else advice}."
    )


class Tick(nn.Module):
    """The learner's step, and what the world makes of the observation; see `Agent.tick`."""

    def __init__(self, learner: nn.Module, world: Any) -> None:
        super().__init__()
        self.learner, self.world = learner, world

    def forward(self, obs: dict[str, Tensor], state: Any, is_first: Tensor) -> tuple[Tensor, Any]:
        action, _ = self.learner(obs, None, is_first)
        return action, self.world.observe(state, obs, action, is_first)


class MBPO(Agent):
    """Its state is the world's. Raises ConfigError where world, learner and task do not fit."""

    Config = MBPOConfig

    def __init__(self, spec: EnvSpec, config: MBPOConfig, device: torch.device) -> None:
        self.spec, self.config, self.device = spec, config, device
        if spec.has_mask:
            raise ConfigError(
                "agent=mbpo imagines observations, but no world here knows which actions they "
                "allow. Set env.action_mask=false, or use agent=dqn."
            )
        _check_actions(spec.action, config.learner)
        self.learner: SAC | DQN
        if config.learner == "sac":
            self.learner = SAC(spec, replace(config.sac, batch_size=config.batch_size), device)
        else:
            self.learner = DQN(spec, replace(config.dqn, batch_size=config.batch_size), device)
        self.discount = self.learner.config.discount
        world: Any = world_class(config.world)(spec, config.model).to(device)
        if not (
            isinstance(world, Dynamics) and isinstance(world, Decodes) and isinstance(world, Fits)
        ):
            raise ConfigError(
                f"agent=mbpo trains its world between its own steps and imagines observations: "
                f"world '{config.world}' must offer Dynamics, Fits and Decodes "
                "(worldmodel/capabilities.py). world=gaussian does."
            )
        check_world(world, config.rollouts)
        self.model: Any = world
        self.batch_size = self.min_rows = config.batch_size
        self.window, self.window_words = 2, "env.num_envs"
        seed = int(torch.randint(2**31, ()).item())
        self.pool = Pool(config.rollouts.capacity(config.rollouts.length(0)), seed)
        self.stream = Stream(seed, device)  # of what is imagined
        # Rows that had arrived at the first and the last rollout, -1 before them, and at the last
        # update; updates since there was something new.
        self._began = self._imagined = -1
        self._rows = self._since = 0

    # Acting.

    def initial(self, batch_size: int) -> Any:
        """The world's initial states."""
        return self.model.initial(batch_size)

    @torch.no_grad()
    def act(
        self, obs: Mapping[str, Any], state: Any = None, mode: str = "sample"
    ) -> tuple[np.ndarray, Any, dict[str, Any]]:
        """See `Agent.act`: as the learner acts."""
        check_mode(mode)
        action, _, extras = self.learner.act(obs, None, mode)
        seen = {key: torch.as_tensor(obs[key], device=self.device) for key in self.spec.seen}
        before = self.initial(len(action)) if state is None else state
        given = obs.get("is_first", np.zeros(len(action), bool))
        first = torch.as_tensor(np.asarray(given, bool), device=self.device)
        # What led here is not asked for by a world whose states are what is observed.
        nothing = torch.zeros(action.shape, device=self.device)
        return action, self.model.observe(before, seen, nothing, first), extras

    def tick(self) -> nn.Module:
        return Tick(self.learner.tick(), self.model)

    def world_state(self, state: Any) -> Any:
        return state

    def evaluate(self, state: Any) -> Evaluation:
        return self.learner.judge(self.model.decode(state))

    # Learning.

    def update(self, replay: Replay) -> dict[str, Any]:
        """One update of the learner; before it, where they are due, a training of the world and
        new rollouts."""
        metrics: dict[str, Any] = {}
        rows = int(replay.counts.sum())
        self._since = self._since + 1 if rows == self._rows else 0
        self._rows = rows
        waited = rows - self._imagined >= self.config.rollouts.every
        if self._imagined < 0 or waited or self._since >= STALE:
            metrics = self._imagine(replay, rows)
        return metrics | self.learner.learn(self._batch(replay))

    def _imagine(self, replay: Replay, rows: int) -> dict[str, Any]:
        """Train the world on what is new, and branch paths off real states."""
        c, began = self.config.rollouts, self._imagined < 0
        metrics = self.model.fit(replay) if rows != self._imagined else {}
        if began and not metrics:
            return {}  # too little to learn a world from
        self._began = rows if began else self._began
        self._imagined, self._since = rows, 0
        length = c.length(rows - self._began)
        if self.pool.capacity != c.capacity(length):
            self.pool.resize(c.capacity(length))
        starts = self._seen(replay.transitions(c.starts, 1, self.discount)).obs
        steps = imagined = 0
        with self.stream:
            for batch, found in branch(self.model, self._policy, starts, length, self.discount, c):
                self.pool.add(batch)
                metrics |= found
                steps, imagined = steps + 1, imagined + len(batch.reward)
        reach = imagined / c.starts
        return metrics | {"rollout/length": float(length), "rollout/mean_length": reach}

    def _seen(self, batch: Transitions) -> Transitions:
        """Real transitions on the device, with what the world shows of them."""
        keys = self.spec.keys("vector")
        obs, after = ({key: one[key] for key in keys} for one in (batch.obs, batch.next_obs))
        return batch._replace(obs=obs, next_obs=after, index=None).to(self.device)

    def _policy(self, obs: dict[str, Tensor]) -> Tensor:
        """The learner's sampled actions in imagined observations."""
        if isinstance(self.learner, DQN):
            return self.learner.explore(obs)
        action: Tensor = self.learner.judge(obs).prior.sample()
        return action

    def _batch(self, replay: Replay) -> Transitions:
        """Real and imagined transitions, in the shares that the config says."""
        size = self.batch_size
        real = int(size * self.config.rollouts.real_share) if len(self.pool) else size
        parts = []
        if real:
            parts.append(self._seen(replay.transitions(real, 1, self.discount)))
        if real < size:
            parts.append(self.pool.sample(size - real))
        return tree.cat(parts) if len(parts) > 1 else parts[0]

    def slow_down(self, factor: float) -> bool:
        return self.learner.slow_down(factor)

    # Keeping.

    @property
    def parts(self) -> dict[str, Part]:
        """The learner's, and the world's modules."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if isinstance(tensor, Tensor):
                found.setdefault("world_" + name.split(".")[0], {})[f"model.{name}"] = tensor
        return self.learner.parts | {name: Part(tensors) for name, tensors in found.items()}

    def state_dict(self) -> dict[str, Any]:
        """Learner, world, everything imagined, and when the next rollout is due."""
        return {
            "learner": self.learner.state_dict(),
            "model": dict(self.model.state_dict()),
            "pool": self.pool.state_dict(),
            "stream": self.stream.state_dict(),
            "due": [self._began, self._imagined, self._rows, self._since],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put `state_dict()` back; ValueError where it belongs to another agent."""
        self.learner.load_state_dict(state["learner"])
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise ValueError(f"The world belongs to another configuration: {error}") from error
        self.pool.load_state_dict(state["pool"], self.device)
        self.stream.load_state_dict(state["stream"])
        self._began, self._imagined, self._rows, self._since = state["due"]
