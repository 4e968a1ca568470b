"""What the running code asks of every agent, and nothing more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel.types import MASK_KEY, Column, EnvSpec, ObsSpec

if TYPE_CHECKING:
    from worldmodel.accel.ranks import Ranks
    from worldmodel.envs import EnvConfig
    from worldmodel.replay import Replay
    from worldmodel.seeding import Stream

MODES = ("sample", "mode")


class Evaluation(NamedTuple):
    """What an agent thinks of states of its world.

    prior: a distribution over encoded actions, with `sample()` and `mode()` -> [..., A]; None
    where it has no policy over such states. value: the discounted return [...] that it expects
    from them; None where it has no values.
    """

    prior: Any = None
    value: Tensor | None = None


@dataclass(frozen=True)
class Part:
    """A named group of an agent's weights: to be loaded from another run, frozen, counted.

    tensors: by name, those in use: who writes into them changes the agent. frozen: it learns
    nothing with these settings, so that it must come from another run. optional: a run that it
    is loaded from may lack it; it then starts anew. same_actions, same_observations: it fits no
    run with others, whatever the shapes of its tensors.
    """

    tensors: Mapping[str, Tensor]
    frozen: bool = False
    optional: bool = False
    same_actions: bool = True
    same_observations: bool = True


class Agenda(NamedTuple):
    """What an agent that learns in phases does next; it decides itself when steps and updates come.

    length: steps and updates of the whole run, about. collecting: whether it needs a step in the
    environment next, or an update. finished: whether it has learned all it was to learn. phase: its
    name. prefill: agent steps that it collects before its first update.
    """

    length: int
    collecting: bool
    finished: bool
    phase: str
    prefill: int


class Agent(ABC):
    """An agent acts, learns from replay, and can be saved. It is ready when constructed:
    `Class(spec: EnvSpec, config: Class.Config, device: torch.device)`.

    Config: the dataclass of its settings; its field `name` is the name in `agents.AGENTS`.
    learns: whether it ever updates. control: the rewards whose weighted sum it maximises, by name;
    "reward" is the recorded one. joins: whether it can learn as one of several ranks.
    columns: what replay stores beside each row; `act` hands out their values in `extras`.
    priority_exponent: replay draws rows with probabilities p^this; 0 draws them uniformly.
    model: its learned world, or None. planner: what searches it for actions (agents.planning), or
    None. stats: numbers about the last decision, of a search.
    batch_size, batch_length: rows of experience in one update, [B, T].
    min_rows: rows that replay must hold before the first update. window: how many of them in a row,
    of one environment, where those are more than batch_length; window_words: its settings.
    both_sides: whether it knows what it is to play for two players in turn (`to_play`).
    whole_episodes: whether it needs episodes that end, so that one that nothing ends is cut off
    after `env.longest_episode` steps.

    What has a body here may be left as it is: an agent overrides what it offers.
    """

    Config: ClassVar[type]
    learns: ClassVar[bool] = True
    joins: ClassVar[bool] = False
    both_sides: ClassVar[bool] = False
    whole_episodes: ClassVar[bool] = False

    # Set on instances (or as properties) by those that have them.
    columns: Mapping[str, Column] = MappingProxyType({})
    priority_exponent: float = 0.0
    control: Mapping[str, float] = MappingProxyType({"reward": 1.0})
    model: Any = None
    planner: Any = None
    stats: Mapping[str, float] = MappingProxyType({})
    batch_size: int = 1
    batch_length: int = 1
    min_rows: int = 1
    window: int = 0
    window_words: str = "agent.batch_length"

    @property
    def in_a_row(self) -> int:
        """Rows of one environment that one update takes."""
        return max(self.window, self.batch_length)

    @property
    def name(self) -> str:
        """Its name in `agents.AGENTS`."""
        return str(self.Config().name)

    # Acting.

    @abstractmethod
    def initial(self, batch_size: int) -> Any:
        """The state of the policy before anything was seen, for B environments: a tree
        (worldmodel.tree) of tensors and arrays [B, ...], or None."""

    @abstractmethod
    def act(
        self, obs: Mapping[str, Any], state: Any = None, mode: str = "sample"
    ) -> tuple[np.ndarray, Any, dict[str, Any]]:
        """Encoded float32 actions [B, A] for observations [B, ...], the next state, and extras.

        `obs` may hold `is_first` [B]; where it is True the state of that row starts anew. In
        training it holds `reward` and `is_last` of these rows, too. A missing `is_first` means
        False, a missing state means `initial`. mode is "sample" or
        "mode" (the likeliest action). extras: the values [B, ...] of all `columns`.
        """

    def follow(
        self, obs: Mapping[str, Any], state: Any = None, mode: str = "sample"
    ) -> tuple[np.ndarray | None, Any, dict[str, Any]]:
        """As `act`, for whoever decides in its place and then calls `replace_action`: the action
        may be None, with no extras, where finding one takes a plan."""
        return self.act(obs, state, mode)

    @property
    def streams(self) -> tuple[Stream, ...]:
        """Random numbers of its own that acting draws from, beside PyTorch's global ones: an
        evaluation lends it others."""
        return ()

    def replace_action(self, state: Any, action: Any) -> Any:
        """The state that `act` returned, where another action [B, A] was taken than its own: an
        array, or a tensor on the state's device (an exported step calls this while it is traced).
        """
        return state

    def tick(self) -> nn.Module | None:
        """One deployable step as a pure module, or None where the agent cannot be exported:
        (obs, state, is_first [B]) -> (encoded action [B, A], state).

        state is that of `initial`; the action is the policy's mode, clipped. Draws nothing.
        """
        return None

    # About its world, where it has one.

    def world_state(self, state: Any) -> Any:
        """The state of `model` within a state of the agent; None without."""
        return None

    def plan_in(self) -> Any:
        """The world to plan in, whose states are those of `model`."""
        return self.model

    def evaluate(self, state: Any) -> Evaluation:
        """What it thinks of states of `model`."""
        return Evaluation()

    def dream_config(self, world: Any, updates: int) -> Any:
        """Settings of an agent like this one that learns to act in `world`, a copy of its own with
        other rewards, which stays as it is, for some updates; None where it cannot."""
        return None

    # Learning.

    @property
    def agenda(self) -> Agenda | None:
        """Its phases, where it has some: the run's train_ratio then means nothing, and its clock
        counts steps and updates. None where every step earns updates."""
        return None

    @abstractmethod
    def update(self, replay: Replay) -> dict[str, Any]:
        """One gradient update on a batch drawn from replay; metrics as numbers or scalar tensors.

        Raises FloatingPointError where a loss is not finite; its attribute `batch`, where it
        has one, is the batch that made it. An agent may only begin the update, and return and
        raise what belongs to the one before (the error's `under_way` says that one has begun
        since); `settle` then ends what has begun.
        """

    def settle(self, replay: Replay) -> dict[str, Any]:
        """End an update that has only begun; its metrics. Called before anything is saved."""
        return {}

    def prepare(self, replay: Replay) -> None:  # noqa: B027
        """Make a replay that was filled from files ready for updates."""

    def slow_down(self, factor: float) -> bool:
        """Multiply the learning rate of all later updates; False where there is none."""
        return False

    def join(self, ranks: Ranks) -> None:
        """Make every later update one of all ranks together (where `joins`), after which all hold
        the same weights and statistics; `Config.batch_size` is this rank's part of the batch."""
        raise NotImplementedError(f"{type(self).__name__} learns in one process alone")

    # Keeping.

    @property
    def parts(self) -> dict[str, Part]:
        """Its weights by named groups."""
        return {}

    def fitted_tensors(self, names: Collection[str], old: Agent, run: Path) -> dict[str, Tensor]:
        """Tensors of its parts, among these names, that were fitted on a run after its training
        and lie in that run's folder. old: the run's own agent, of the same class.

        Raises ConfigError where one is not there, and RunError where it cannot be used.
        """
        return {}

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what the agent does next, its own random generators included,
        as numbers, strings, lists, dicts and tensors."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put `state_dict()` back; ValueError where it belongs to another agent."""


def parameters_count(agent: Agent) -> int:
    """Trained numbers of all parts."""
    tensors = (t for part in agent.parts.values() for t in part.tensors.values())
    return sum(tensor.numel() for tensor in tensors if tensor.requires_grad)


def check_mode(mode: str) -> None:
    """ValueError unless mode is "sample" or "mode"."""
    if mode not in MODES:
        raise ValueError(f"Unknown action mode '{mode}'. Known: {', '.join(MODES)}.")


def random_actions(
    spec: EnvSpec, obs: Mapping[str, Any], batch: int, rng: np.random.Generator
) -> np.ndarray:
    """Uniform encoded actions [B, A]; a discrete action is drawn among those allowed."""
    action = spec.action
    if action.kind == "continuous":
        return rng.uniform(-1, 1, (batch, action.size)).astype(np.float32)
    scores = rng.random((batch, action.size))
    if MASK_KEY in obs:
        scores = scores - 2 * (np.asarray(obs[MASK_KEY]) == 0)
    parts = np.split(scores, np.cumsum(action.sizes)[:-1], axis=-1)
    return np.concatenate([np.eye(p.shape[-1], dtype=np.float32)[p.argmax(-1)] for p in parts], -1)


@dataclass
class Policy:
    """A trained agent behind one call: `action, state = policy.act(obs, state)`.

    `obs` is what the environment returned: one observation or a batch of them, as a dict (or the
    bare array where the specification has a single key). `action` is what `env.step` takes.
    `worldmodel.envs.make_env(policy.env)` makes an environment as in training.
    """

    agent: Agent
    spec: EnvSpec
    env: EnvConfig
    device: torch.device

    @property
    def model(self) -> Any:
        """The agent's learned world, or None."""
        return self.agent.model

    def act(self, obs: Any, state: Any = None, mode: str = "mode") -> tuple[np.ndarray, Any]:
        """An action for one observation (or [B] actions for [B] of them), and the next state.

        Pass the returned state back with the next observation, and None at the start of an
        episode. Raises ValueError where a key is missing, has another shape, or holds what is no
        observation: an image that is not uint8, a number that is not finite.
        """
        check_mode(mode)
        arrays, single = self._batched(obs)
        action, state, _ = self.agent.act(arrays, state, mode)
        native = self.spec.action.decode(action)
        return (native[0] if single else native), state

    def _batched(self, obs: Any) -> tuple[dict[str, np.ndarray], bool]:
        """Observations with a batch axis, and whether it had to be added."""
        if not isinstance(obs, Mapping):
            if len(self.spec.seen) != 1:
                raise ValueError(
                    f"This agent was trained on the observation keys {sorted(self.spec.seen)}, "
                    f"but a bare {type(obs).__name__} came. Pass a dict with those keys."
                )
            obs = {next(iter(self.spec.seen)): obs}
        ranks = {}
        arrays: dict[str, np.ndarray] = {}
        for key, spec in self.spec.seen.items():
            if key not in obs:
                raise ValueError(
                    f"The observation lacks the key '{key}'. Given: {sorted(obs)}; needed: "
                    f"{sorted(self.spec.seen)}. Make the environment as in training: "
                    "worldmodel.envs.make_env(policy.env)."
                )
            arrays[key] = np.asarray(obs[key])
            ranks[key] = _batch_rank(key, spec, arrays[key])
            if fault := spec.fault(arrays[key]):
                raise ValueError(
                    f"Observation '{key}': {fault}. Pass what worldmodel.envs.make_env(policy.env) "
                    "gives: images as uint8 from 0 to 255, everything else as finite numbers."
                )
        if len(set(ranks.values())) > 1:
            raise ValueError(f"Some observations have a batch axis and some have not: {ranks}.")
        single = not any(ranks.values())
        if "is_first" in obs:
            arrays["is_first"] = np.asarray(obs["is_first"], bool)
        if single:
            arrays = {k: v[None] for k, v in arrays.items()}
        return arrays, single


def _batch_rank(key: str, spec: ObsSpec, array: np.ndarray) -> int:
    """0 for one observation, 1 for a batch of them."""
    for rank in (0, 1):
        if array.ndim == len(spec.shape) + rank and array.shape[rank:] == spec.shape:
            return rank
    raise ValueError(
        f"Observation '{key}' has shape {array.shape}; allowed: {spec.shape}, or "
        f"[B, {', '.join(map(str, spec.shape))}] for a batch."
    )
