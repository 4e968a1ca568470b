"""Model-predictive control: learn a world, and plan in it at every step. No actor, no critic.

    obs -> world.observe -> planner.plan (candidates, imagined in the world) -> action (+ noise)
    replay -> world.loss -> Adam        or        replay -> world.fit

The world is whatever `world=NAME` says. It is a torch.nn.Module `Class(spec, settings)`, settings
of the dataclass `Class.Config`, and it offers

- `Dynamics` (worldmodel/types.py): initial, observe, step, discount; with more of
  worldmodel/capabilities.py the planners do more (`Uncertain`: caution; `Masks`; `Expects`);
- `Learns`: the loss of a batch of sequences, whose gradient step is made here; or `Fits`: it learns
  from all of the replay by itself, as often as `train_ratio` earns an update of batch_size x
  batch_length rows;
- a `state_dict` that holds all it needs to go on: normalisers, its own optimizer and generators.

A new one is a file in worldmodel/models, a line in WORLDS (worldmodel/models/__init__.py) and a
file in configs/world, which begins with `/world_schema: NAME`; `world=module:Class` needs none.

With the RSSM and CEM this is PlaNet (Hafner et al., "Learning latent dynamics for planning from
pixels", ICML 2019); `configs/experiment/planet.yaml` has its constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from agents.base import Agent, Part, check_mode, random_actions
from agents.planning import PLANNERS, planner_class
from agents.planning.cem import CEMConfig
from agents.planning.icem import ICEMConfig
from agents.planning.mcts import MCTSConfig
from agents.planning.mppi import MPPIConfig
from agents.planning.shooting import ShootingConfig
from worldmodel.adam import Adam, AdamConfig
from worldmodel.capabilities import Controls, Fits, Learns
from worldmodel.config import ConfigError, check_ranges, free, unknown
from worldmodel.models import settings_of, world_class
from worldmodel.replay import Replay
from worldmodel.seeding import Stream
from worldmodel.types import MASK_KEY, Dynamics, EnvSpec

CLOCKS = ("ms", "cache_saved_s", "cache_gain")  # differ from run to run


@dataclass
class MPCConfig:
    """world: its name, or module:Class; on the command line `world=NAME` without "agent.", which
    brings its settings, too. model: those settings; none means the world's defaults.
    batch_size, batch_length: sequences and rows of one update. planner: one of `agents.planning`,
    with the settings of that name below. noise: while exploring, the deviation of what is added to
    a continuous action, and the share of discrete actions drawn at random. optim: of the loss of a
    world that does not fit itself."""

    choices: ClassVar = {"planner": PLANNERS}  # a setting that names the section which is read
    name: str = "mpc"
    world: str = "rssm"
    batch_size: int = 50
    batch_length: int = 50
    planner: str = free("cem")
    noise: float = free(0.3)
    model: Any = None
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
        self.model = settings_of(self.world, self.model)

    @property
    def planner_settings(self) -> Any:
        """Those of the planner that is named."""
        sections = {
            "cem": self.cem, "icem": self.icem, "mppi": self.mppi, "shooting": self.shooting,
            "mcts": self.mcts,
        }  # fmt: skip
        return sections[self.planner]


class MPCState(NamedTuple):
    """The world's state, the last action [B, A], and what the next plan starts from."""

    latent: Any
    action: Tensor
    warm: Any


class MPC(Agent):
    """A world, its optimizer and a planner. Raises ConfigError where the world cannot be planned in
    or does not learn, and where the planner cannot search these actions."""

    Config = MPCConfig

    def __init__(self, spec: EnvSpec, config: MPCConfig, device: torch.device) -> None:
        self.spec, self.config, self.device = spec, config, device
        learner: nn.Module = world_class(config.world)(spec, config.model).to(device)
        world: Any = learner
        if not (isinstance(world, Dynamics) and isinstance(world, Learns | Fits)):
            raise ConfigError(
                f"World '{config.world}' must be a Dynamics (worldmodel/types.py), and Learns or "
                "Fits (worldmodel/capabilities.py)."
            )
        if isinstance(world, Controls):
            self.control = world.control
        self.fits = isinstance(world, Fits)
        self.optim = None if self.fits else Adam([("model", learner)], config.optim)
        self.model: Any = learner
        settings = config.planner_settings
        # Seeded from torch's generator, which the caller seeds.
        seed = int(torch.randint(2**31, ()).item())
        self.planner = planner_class(config.planner)(spec.action, settings, seed, device)
        self.updates = 0
        self.stats: dict[str, float] = {}  # of the last plan
        self.batch_size, self.batch_length = config.batch_size, config.batch_length
        self.min_rows = config.batch_size * config.batch_length

    # Acting.

    @property
    def streams(self) -> tuple[Stream, ...]:
        """See `Agent.streams`."""
        return (self.planner.stream,)

    def initial(self, batch_size: int) -> MPCState:
        """The state before the first observation."""
        action = torch.zeros(batch_size, self.spec.action.size, device=self.device)
        return MPCState(self.model.initial(batch_size), action, self.planner.initial(batch_size))

    @torch.no_grad()
    def act(
        self, obs: Mapping[str, Any], state: MPCState | None = None, mode: str = "sample"
    ) -> tuple[np.ndarray, MPCState, dict[str, Any]]:
        """See `Agent.act`; "sample" adds the noise, and acts at random before the first
        update."""
        check_mode(mode)
        began = self.planner.clock()
        state, tensors, first = self._seen(obs, state)
        latent, batch = state.latent, len(first)
        if mode == "sample" and not self.updates:  # a world that knows nothing is not worth a plan
            action = self._random(obs, batch)
            return action.cpu().numpy(), state._replace(action=action), {}
        mask = tensors.get(MASK_KEY)
        plan = self.planner.plan(self.model, latent, None, state.warm, first, mask, began)
        self.stats = {f"plan/{k}": float(v) for k, v in plan.stats.items() if k not in CLOCKS}
        action = self._explored(plan.action, obs) if mode == "sample" else plan.action
        return action.cpu().numpy(), MPCState(latent, action, plan.warm), {}

    def follow(
        self, obs: Mapping[str, Any], state: MPCState | None = None, mode: str = "sample"
    ) -> tuple[None, MPCState, dict[str, Any]]:
        """See `Agent.follow`: nothing is planned."""
        check_mode(mode)
        return None, self._seen(obs, state)[0], {}

    def _seen(
        self, obs: Mapping[str, Any], state: MPCState | None
    ) -> tuple[MPCState, dict[str, Tensor], Tensor]:
        """The state with the observation taken in, the observation as tensors, and `is_first`."""
        tensors = {
            k: torch.as_tensor(obs[k], device=self.device)
            for k in (*self.spec.obs, "is_first")
            if k in obs
        }
        batch = len(next(iter(tensors.values())))
        begins = torch.full((batch,), state is None, device=self.device)
        state = self.initial(batch) if state is None else state
        first = tensors.pop("is_first", begins).bool() | begins
        latent = self.model.observe(state.latent, tensors, state.action, first)
        return state._replace(latent=latent), tensors, first

    def _explored(self, action: Tensor, obs: Mapping[str, Any]) -> Tensor:
        """With noise; discrete: some drawn at random."""
        noise = self.config.noise
        if self.spec.action.kind == "continuous":
            noisy: Tensor = self.spec.action.clip(action + noise * torch.randn_like(action))
            return noisy
        drawn = torch.rand(len(action), 1, device=self.device) < noise
        return torch.where(drawn, self._random(obs, len(action)), action)

    def _random(self, obs: Mapping[str, Any], batch: int) -> Tensor:
        """Uniform actions [B, A]."""
        rng = np.random.default_rng(int(torch.randint(1 << 62, ())))
        return torch.from_numpy(random_actions(self.spec, obs, batch, rng)).to(self.device)

    def replace_action(self, state: MPCState, action: Any) -> MPCState:
        return state._replace(action=torch.as_tensor(action, device=self.device))

    def world_state(self, state: MPCState) -> Any:
        return state.latent

    # Learning.

    def update(self, replay: Replay) -> dict[str, Any]:
        """One gradient step of the world on a fresh batch, or one fit on all of the replay."""
        self.updates += 1
        self.planner.forget()
        if self.fits:
            return self.model.fit(replay) | self.stats
        batch = replay.sample(self.batch_size, self.batch_length).to(self.device)
        loss, metrics = self.model.loss(batch)
        assert self.optim is not None
        try:
            metrics |= self.optim.step(loss)
        except FloatingPointError as error:
            error.batch = batch  # type: ignore[attr-defined]  # for whoever looks for the cause
            raise
        return metrics | self.stats

    def slow_down(self, factor: float) -> bool:
        if self.optim is not None:
            self.optim.slow_down(factor)
        return self.optim is not None

    # Keeping.

    @property
    def parts(self) -> dict[str, Part]:
        """The world's modules."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if isinstance(tensor, Tensor):
                found.setdefault(name.split(".")[0], {})[f"model.{name}"] = tensor
        return {
            name: Part(
                tensors,
                optional=name in ("heads", "ensemble"),
                same_actions=name not in ("encoder", "decoder", "heads"),
                same_observations=name not in ("core", "heads", "ensemble"),
            )
            for name, tensors in found.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer, and the planner's random numbers and last counters."""
        return {
            "model": self.model.state_dict(),
            "optim": {} if self.optim is None else self.optim.state_dict(),
            "planner": self.planner.state_dict(),
            "stats": self.stats,
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put `state_dict()` back; ValueError where it belongs to another agent."""
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise ValueError(f"The weights belong to another configuration: {error}") from error
        if self.optim is not None:
            self.optim.load_state_dict(state["optim"])
        self.planner.load_state_dict(state["planner"])
        self.stats, self.updates = dict(state["stats"]), int(state["updates"])
