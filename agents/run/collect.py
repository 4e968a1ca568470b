"""Steps environments with an agent and records what arrived, one row per environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import VectorEnv

from agents.base import Agent, random_actions
from worldmodel.config import RunError
from worldmodel.envs.processes import EnvProcessError
from worldmodel.replay import Replay
from worldmodel.types import EnvSpec


class Episode(NamedTuple):
    """A finished episode: the sum of its rewards and its length in agent steps."""

    score: float
    length: int


@dataclass
class Collector:
    """Drives a vector environment (autoreset at the next step), row by row.

    One call of `step` is:  rows arrive -> agent acts on them -> rows and latents go to replay
                            -> the actions are taken, and the next rows arrive.

    A row holds the action that led to it (zeros on a first row), so the action chosen here is
    kept until its consequence arrives. Sampled actions are stored as they were drawn; the
    environment clips them at its own edge.

    seed: of the random actions; the environments were seeded when they were made.
    steps counts real transitions over all environments; the rows of a reset do not count.
    """

    envs: VectorEnv
    spec: EnvSpec
    agent: Agent
    seed: int
    mode: str = "sample"
    steps: int = 0
    rows: dict[str, np.ndarray] = field(init=False)
    seen: dict[str, np.ndarray] = field(init=False)  # all that arrived last, unknown keys included
    state: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.num_envs = self.envs.num_envs
        self.rng = np.random.default_rng(self.seed)
        self.returns = np.zeros(self.num_envs)
        self.lengths = np.zeros(self.num_envs, np.int64)
        obs = guarded(lambda: self.envs.reset()[0])
        nothing = np.zeros(self.num_envs, bool)
        self.rows = self._rows(obs, np.zeros(self.num_envs), nothing, nothing, ~nothing, None)

    def step(self, replay: Replay | None = None, explore: bool = False) -> list[Episode]:
        """Act on the rows at hand, record them, and fetch the next ones.

        explore: uniformly random actions instead of the agent's. Returns the episodes that the
        new rows ended. Raises RunError where the environment breaks its word.
        """
        rows = self.rows
        inputs = {key: rows[key] for key in (*self.spec.obs, "is_first")}
        # An exploring agent still sees every row, so that its state and latents are right.
        action, self.state, extras = self.agent.act(inputs, self.state, self.mode)
        if explore:
            action = random_actions(self.spec, inputs, self.num_envs, self.rng)
            self.state = told_action(self.state, action)
        if replay is not None:
            guarded(lambda: replay.add({**rows, **latent_rows(extras, replay)}))
        native = self.spec.action.decode(self._clipped(action))
        obs, reward, terminated, truncated, _ = guarded(lambda: self.envs.step(native))
        # With autoreset at the next step, the row after a last one begins a new episode.
        self.rows = self._rows(obs, reward, terminated, truncated, rows["is_last"], action)
        return self._count()

    def _clipped(self, action: np.ndarray) -> np.ndarray:
        return np.clip(action, -1, 1) if self.spec.action.kind == "continuous" else action

    def _rows(
        self,
        obs: Mapping[str, np.ndarray],
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        is_first: np.ndarray,
        action: np.ndarray | None,
    ) -> dict[str, np.ndarray]:
        """The rows of one moment, aligned as worldmodel.types draws them."""
        self.seen = dict(obs)
        if action is None:
            action = np.zeros((self.num_envs, self.spec.action.size), np.float32)
        return {
            **{key: np.asarray(obs[key]) for key in self.spec.obs},
            "action": np.where(is_first[:, None], 0, action).astype(np.float32),
            "reward": np.where(is_first, 0, reward).astype(np.float32),
            "is_first": is_first.copy(),
            "is_last": (terminated | truncated) & ~is_first,
            "is_terminal": terminated & ~is_first,
        }

    def _count(self) -> list[Episode]:
        """Count the new rows, and close the episodes that they ended."""
        rows = self.rows
        real = ~rows["is_first"]
        self.steps += int(real.sum())
        self.returns = np.where(real, self.returns + rows["reward"], 0)
        self.lengths = np.where(real, self.lengths + 1, 0)
        ended = np.flatnonzero(rows["is_last"])
        return [Episode(float(self.returns[i]), int(self.lengths[i])) for i in ended]


def guarded(call: Any) -> Any:
    """An environment's answer; its error, or its end, stops the run with its own words."""
    try:
        return call()
    except (ValueError, EnvProcessError) as error:
        raise RunError(f"The environment failed: {error}") from error


def latent_rows(extras: Mapping[str, Any], replay: Replay) -> dict[str, Any]:
    """The two replay columns of an agent's latent state, where both sides have one."""
    latent = extras.get("latent")
    if latent is None or replay.latent is None:
        return {}
    return {"deter": latent.deter, "stoch": latent.stoch}


def told_action(state: Any, action: np.ndarray) -> Any:
    """The agent's state, corrected for an action that somebody else chose: a state with an
    `action` field (a named tuple) remembers what it did last."""
    if hasattr(state, "_replace") and hasattr(state, "action"):
        given = type(state.action)
        if given is np.ndarray:
            return state._replace(action=action)
        return state._replace(action=state.action.new_tensor(action))
    return state
