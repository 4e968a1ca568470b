"""What the running code asks of every agent, and nothing more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch

from worldmodel.types import MASK_KEY, EnvSpec, ObsSpec

if TYPE_CHECKING:
    from worldmodel.envs import EnvConfig
    from worldmodel.replay import LatentSpec, Replay

MODES = ("sample", "mode")


@runtime_checkable
class Agent(Protocol):
    """An agent acts, learns from replay, and can be saved. It is ready when constructed:
    `Class(spec: EnvSpec, config: Class.Config, device: torch.device)`.

    Config: the dataclass of its settings; its field `name` is the name in `agents.AGENTS`.
    latent_spec: shapes of the latents it hands out in extras["latent"], or None.
    model: its learned world (a `Dynamics`), or None.
    batch_size, batch_length: rows of experience in one update, [B, T].
    min_rows: rows that replay must hold before the first update.

    state_dict holds everything that decides what the agent does next, its own random generators
    included, as numbers, strings, lists, dicts and tensors.

    An agent may also have `slow_down(factor)`, which lowers its learning rate for good, and
    `join(ranks)`, without which it learns in one process alone: every later update is then one of
    all ranks together, after which all hold the same weights and statistics. `batch_size` of its
    Config is set to this rank's part of the batch.

    An agent that decides from the states of its model may also offer these two, for whoever looks
    at its dreams; both take a `LatentState` [B, ...] on the agent's device:

        imagine_action(latent, mode) -> Tensor [B, A]    encoded actions in imagined states
        value(latent) -> Tensor [B]                      the discounted return that it expects
    """

    Config: ClassVar[type]
    latent_spec: LatentSpec | None
    model: Any

    @property
    def batch_size(self) -> int: ...

    @property
    def batch_length(self) -> int: ...

    @property
    def min_rows(self) -> int: ...

    def initial(self, batch_size: int) -> Any:
        """The state of the policy before anything was seen, for B environments."""
        ...

    def act(
        self, obs: Mapping[str, Any], state: Any = None, mode: str = "sample"
    ) -> tuple[np.ndarray, Any, dict[str, Any]]:
        """Encoded float32 actions [B, A] for observations [B, ...], the next state, and extras.

        `obs` may hold `is_first` [B]; where it is True the state of that row starts anew. A
        missing `is_first` means False, a missing state means `initial`. mode is "sample" or
        "mode" (the likeliest action). extras["latent"] goes to replay, where there is one.
        """
        ...

    def update(self, replay: Replay) -> dict[str, Any]:
        """One gradient update on a batch drawn from replay; metrics as numbers or scalar tensors.

        Raises FloatingPointError where a loss is not finite; its attribute `batch`, where it
        has one, is the batch that made it. An agent may only begin the update, and return and
        raise what belongs to the one before (the error's `under_way` says that one has begun
        since); it then has a method `settle(replay)`, which brings to its end what has begun, and
        is called before anything is saved.
        """
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


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
        episode. Raises ValueError where a key is missing or has another shape.
        """
        check_mode(mode)
        arrays, single = self._batched(obs)
        action, state, _ = self.agent.act(arrays, state, mode)
        if self.spec.action.kind == "continuous":
            action = np.clip(action, -1.0, 1.0)
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
