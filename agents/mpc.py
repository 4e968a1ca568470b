"""Model-predictive control: learn a world, and plan in it at every step. No actor, no critic.

    obs -> world.observe -> planner.plan (candidates, imagined in the world) -> action (+ noise)
    replay -> world.loss -> Adam

With the RSSM and CEM this is PlaNet (Hafner et al., "Learning latent dynamics for planning from
pixels", ICML 2019); `configs/experiment/planet.yaml` has its constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents.base import Agent, Part, check_mode, random_actions
from agents.planning import PLANNERS, planner_class
from agents.planning.cem import CEMConfig
from agents.planning.icem import ICEMConfig
from agents.planning.mcts import MCTSConfig
from agents.planning.mppi import MPPIConfig
from agents.planning.shooting import ShootingConfig
from worldmodel import seeding
from worldmodel.adam import Adam, AdamConfig
from worldmodel.config import ConfigError, check_ranges, free, unknown
from worldmodel.replay import Replay
from worldmodel.rssm import ModelConfig, WorldModel
from worldmodel.types import MASK_KEY, EnvSpec


@dataclass
class MPCConfig:
    """batch_size, batch_length: sequences and rows of one update. planner: one of
    `agents.planning`, with the settings of that name below. noise: while exploring, the deviation
    of what is added to a continuous action, and the share of discrete actions drawn at random.
    model: the world. optim: of its loss."""

    name: str = "mpc"
    batch_size: int = 50
    batch_length: int = 50
    planner: str = free("cem")
    noise: float = free(0.3)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: AdamConfig = field(default_factory=lambda: AdamConfig(lr=1e-3, eps=1e-4, clip=1000.0))
    cem: CEMConfig = field(default_factory=CEMConfig)
    icem: ICEMConfig = field(default_factory=ICEMConfig)
    mppi: MPPIConfig = field(default_factory=MPPIConfig)
    shooting: ShootingConfig = field(default_factory=ShootingConfig)
    mcts: MCTSConfig = field(default_factory=MCTSConfig)

    def __post_init__(self) -> None:
        at_least_one = (1, 1 << 20)
        check_ranges(self, {
            "batch_size": at_least_one, "batch_length": at_least_one, "noise": (0, 10),
        })  # fmt: skip
        if self.planner not in PLANNERS:
            raise ConfigError(unknown("planner", self.planner, PLANNERS))


class MPCState(NamedTuple):
    """The world's state, the last action [B, A], and what the next plan starts from."""

    latent: Any
    action: Tensor
    warm: Any


class MPC(Agent):
    """A world, its optimizer and a planner."""

    Config = MPCConfig

    def __init__(self, spec: EnvSpec, config: MPCConfig, device: torch.device) -> None:
        self.spec, self.config, self.device = spec, config, device
        self.model = WorldModel(spec, config.model).to(device)
        self.optim = Adam([("model", self.model)], config.optim)
        seed = seeding.spawn(torch.initial_seed() % 2**32, "planner")
        settings = getattr(config, config.planner)
        self.planner = planner_class(config.planner)(spec.action, settings, seed, device)
        self.batch_size, self.batch_length = config.batch_size, config.batch_length
        self.min_rows = config.batch_size * config.batch_length

    # Acting.

    def initial(self, batch_size: int) -> MPCState:
        """The state before the first observation."""
        action = torch.zeros(batch_size, self.spec.action.size, device=self.device)
        return MPCState(self.model.initial(batch_size), action, self.planner.initial(batch_size))

    @torch.no_grad()
    def act(
        self, obs: Mapping[str, Any], state: MPCState | None = None, mode: str = "sample"
    ) -> tuple[np.ndarray, MPCState, dict[str, Any]]:
        """See `Agent.act`; "sample" adds the noise."""
        check_mode(mode)
        tensors = {
            k: torch.as_tensor(obs[k], device=self.device)
            for k in (*self.spec.obs, "is_first")
            if k in obs
        }
        batch = len(next(iter(tensors.values())))
        state = self.initial(batch) if state is None else state
        first = tensors.pop("is_first", torch.zeros(batch, dtype=torch.bool, device=self.device))
        first = first.bool()
        latent = self.model.observe(state.latent, tensors, state.action, first)
        mask = tensors.get(MASK_KEY)
        plan = self.planner.plan(self.model, latent, None, state.warm, first, mask)
        action = self._explored(plan.action, obs) if mode == "sample" else plan.action
        return action.cpu().numpy(), MPCState(latent, action, plan.warm), {}

    def _explored(self, action: Tensor, obs: Mapping[str, Any]) -> Tensor:
        """With noise; discrete: some drawn at random."""
        noise = self.config.noise
        if self.spec.action.kind == "continuous":
            noisy: Tensor = self.spec.action.clip(action + noise * torch.randn_like(action))
            return noisy
        rng = np.random.default_rng(int(torch.randint(1 << 62, ())))
        other = torch.from_numpy(random_actions(self.spec, obs, len(action), rng)).to(self.device)
        drawn = torch.rand(len(action), 1, device=self.device) < noise
        return torch.where(drawn, other, action)

    def replace_action(self, state: MPCState, action: Any) -> MPCState:
        return state._replace(action=torch.as_tensor(action, device=self.device))

    def world_state(self, state: MPCState) -> Any:
        return state.latent

    # Learning.

    def update(self, replay: Replay) -> dict[str, Any]:
        """One gradient step of the world on a fresh batch."""
        batch = replay.sample(self.batch_size, self.batch_length).to(self.device)
        loss, metrics = self.model.loss(batch)
        try:
            metrics |= self.optim.step(loss)
        except FloatingPointError as error:
            error.batch = batch  # type: ignore[attr-defined]
            raise
        return metrics

    def slow_down(self, factor: float) -> bool:
        self.optim.slow_down(factor)
        return True

    # Keeping.

    @property
    def parts(self) -> dict[str, Part]:
        """The parts of the world."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            found.setdefault(name.split(".")[0], {})[f"model.{name}"] = tensor
        return {
            name: Part(
                tensors,
                optional=name in ("heads", "ensemble"),
                same_actions=name in ("core", "ensemble"),
                same_observations=name in ("encoder", "decoder"),
            )
            for name, tensors in found.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer, and the planner's random numbers."""
        return {
            "model": self.model.state_dict(),
            "optim": self.optim.state_dict(),
            "planner": self.planner.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put `state_dict()` back; ValueError where it belongs to another agent."""
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise ValueError(f"The weights belong to another configuration: {error}") from error
        self.optim.load_state_dict(state["optim"])
        self.planner.load_state_dict(state["planner"])
