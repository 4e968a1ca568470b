"""A trained world model, one step and one picture at a time, for somebody who looks at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.base import Policy, check_mode, random_actions
from agents.planning import Plan, Planner
from worldmodel import dream, seeding, tree
from worldmodel.capabilities import Decodes, Masks, Surprises
from worldmodel.config import ConfigError
from worldmodel.dream import films
from worldmodel.types import MASK_KEY, PLAYER_KEY, Batch, EnvSpec

CONTEXT = 5  # frames that the model sees before it dreams
INK, PAPER, GRID = (232, 234, 237), (24, 27, 33), (70, 75, 84)  # of numbers drawn as bars


@dataclass(frozen=True)
class Sight:
    """One imagined moment. latent: [1, ...]. picture: uint8 [H, W, 3], None where the world has no
    decoder. reward and goes_on (the probability that the episode goes on, without the discount)
    belong to the step that led here, and are None at a start. value: the critic's, None without
    one. mask: the actions allowed next, [A] zeros and ones, or None where all are."""

    latent: Any
    picture: np.ndarray | None
    reward: float | None = None
    goes_on: float | None = None
    value: float | None = None
    mask: np.ndarray | None = None


class World:
    """The model and the mind of a trained agent. Every call that draws random numbers takes a
    seed, and leaves the global generators as it found them.

    acts: whether the agent can decide from an imagined state: by its policy, or by a planner, where
    one is given or the agent's own decisions are planned. shows: whether dreams can be drawn; if
    not, walks begin in the real environment, whose pictures stand alone. duels: whether two players
    move in turn. context: frames that the model sees before a walk begins, where nobody says.

    Raises ConfigError where the agent has no model.
    """

    def __init__(self, policy: Policy, planner: Planner | None = None) -> None:
        name, self.model = policy.agent.name, policy.model
        if policy.model is None:
            raise ConfigError(
                f"The agent '{name}' of this run learned no world model, so there is no dream to "
                "step into. Give the run of an agent that learns one, such as dreamer."
            )
        self.policy, self.spec, self.device = policy, policy.spec, policy.device
        self.shows, self.duels = isinstance(policy.model, Decodes), PLAYER_KEY in policy.spec.obs
        self.context = CONTEXT if self.shows else 1
        has_policy = policy.agent.evaluate(self.model.initial(1)).prior is not None
        self.planner: Planner | None = planner or policy.agent.planner
        self.acts = has_policy or self.planner is not None

    @torch.no_grad()
    def after(self, batch: Batch, seed: int) -> Any:
        """The state [1, ...] after the last row of one sequence [1, T, ...]."""
        with seeding.Stream(seed, self.device):
            states = dream.follow(self.model, batch.to(self.device))
        return tree.index(states, (slice(None), -1))

    @torch.no_grad()
    def see(
        self, before: Any, obs: Mapping[str, np.ndarray], action: np.ndarray | None, seed: int
    ) -> Any:
        """The state [1, ...] after one real observation; action: [A] that led to it, None at an
        episode's start."""
        given = np.zeros(self.spec.action.size, np.float32) if action is None else action
        first = torch.tensor([action is None], device=self.device)
        with seeding.Stream(seed, self.device):
            return self.model.observe(before, self._tensors(obs), self._action(given), first)

    @torch.no_grad()
    def dream(self, before: Any, action: np.ndarray, seed: int) -> Sight:
        """What action [A] leads to, as the model imagines it."""
        with seeding.Stream(seed, self.device):
            state, reward, cont = self.model.step(before, self._action(action))
        return self._sight(state, float(reward), float(cont))

    @torch.no_grad()
    def look(self, latent: Any) -> Sight:
        """What a state shows, without a step."""
        return self._sight(latent, None, None)

    @torch.no_grad()
    def surprise(
        self, before: Any, obs: Mapping[str, np.ndarray], action: np.ndarray, seed: int
    ) -> float | None:
        """KL in nats between what is foretold from a state and an action, and what the real
        observation then says; None where the model cannot tell."""
        if not isinstance(self.model, Surprises):
            return None
        with seeding.Stream(seed, self.device):
            return float(self.model.surprise(before, self._tensors(obs), self._action(action)))

    def decide(self, latent: Any, mask: np.ndarray | None, mode: str, seed: int) -> np.ndarray:
        """The agent's encoded action [A] in an imagined state; random where it cannot decide."""
        if not self.acts:
            return self.random_action(mask, seed)
        check_mode(mode)
        if self.planner is not None:
            return self.plan(latent, mask, seed).action[0].cpu().numpy()
        with seeding.Stream(seed, self.device):
            prior = self.policy.agent.evaluate(latent).prior
            chosen = prior.sample() if mode == "sample" else prior.mode()
        action = chosen[0].float().cpu().numpy()
        if self.spec.action.kind == "discrete" and not allows(mask, action):
            return self.random_action(mask, seed)
        found: np.ndarray = self.spec.action.clip(action)
        return found

    @torch.no_grad()
    def plan(self, latent: Any, mask: np.ndarray | None, seed: int) -> Plan:
        """What the planner decides in an imagined state."""
        assert self.planner is not None
        self.planner.stream.seed(seed)
        allowed = None if mask is None else torch.as_tensor(mask, device=self.device)[None]
        return self.planner.plan(
            self.model, latent, self.policy.agent.evaluate, None, None, allowed
        )

    def random_action(self, mask: np.ndarray | None, seed: int) -> np.ndarray:
        """A uniform encoded action [A] among those allowed."""
        obs = {} if mask is None else {MASK_KEY: mask[None]}
        return random_actions(self.spec, obs, 1, np.random.default_rng(seed))[0]

    def picture(self, obs: Mapping[str, Any]) -> np.ndarray:
        """uint8 [H, W, 3] of one observation: its images side by side, or its numbers as bars."""
        return picture_of(obs, self.spec)

    def _sight(self, state: Any, reward: float | None, goes_on: float | None) -> Sight:
        picture = None
        if self.shows:
            decoded = self.model.decode(state)
            picture = self.picture({k: v[0].float().cpu().numpy() for k, v in decoded.items()})
        value = self.policy.agent.evaluate(state).value
        mask = self.model.action_mask(state) if isinstance(self.model, Masks) else None
        return Sight(
            state,
            picture,
            reward,
            goes_on,
            None if value is None else float(value),
            None if mask is None else allowed(mask[0].cpu().numpy(), self.spec.action.sizes),
        )

    def _tensors(self, obs: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        return {key: torch.as_tensor(obs[key], device=self.device)[None] for key in self.spec.seen}

    def _action(self, action: np.ndarray) -> Tensor:
        return torch.as_tensor(action, dtype=torch.float32, device=self.device)[None]


def allowed(mask: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """A mask [A] of factors; one with nothing allowed is a mistake and counts as free, as it does
    for policies."""
    parts = np.split(np.asarray(mask, np.float32), np.cumsum(sizes)[:-1])
    return np.concatenate([part if part.any() else np.ones_like(part) for part in parts])


def allows(mask: np.ndarray | None, action: np.ndarray) -> bool:
    """Whether a mask [A] allows an encoded discrete action [A]."""
    return mask is None or not bool(np.any((action > 0.5) & (mask < 0.5)))


def seed_of(seed: int, use: str, number: int) -> int:
    """The seed of one use of random numbers in one node."""
    return seeding.spawn(seed, f"{use} {number}")


def picture_of(values: Mapping[str, Any], spec: EnvSpec) -> np.ndarray:
    """uint8 [H, W, 3] of one observation, real (uint8 images) or decoded (images in [0, 1]):
    the images side by side or, where there is none, the numbers as bars."""
    found = films.pictures(spec, {k: torch.as_tensor(v)[None] for k, v in values.items()})
    if found:
        return found[0]
    keys = [k for k in (*spec.keys("vector"), *spec.keys("discrete")) if k in values]
    if not keys:
        return np.zeros((32, 32, 3), np.uint8)
    return bars(np.concatenate([np.ravel(values[key]) for key in keys]))


def bars_words(spec: EnvSpec) -> list[str]:
    """What the bars of `picture_of` are, in a line; none where it shows images."""
    if spec.keys("image"):
        return []
    sizes = {key: int(np.prod(spec.obs[key].shape)) for key in spec.keys("vector")}
    sizes |= dict.fromkeys(spec.keys("discrete"), 1)
    names = ", ".join(f"{key} ({size})" for key, size in sizes.items())
    return [
        f"bars from left to right: {names}; up is above 0, the edge is 20, lengths log(1 + |x|)"
    ]


def bars(numbers: np.ndarray, height: int = 64) -> np.ndarray:
    """Numbers [N] as bars up or down from the middle, uint8 [height, W, 3].

    Lengths are logarithmic, log(1 + |x|), and reach the edge at |x| = 20."""
    wide = max(2, 96 // max(1, len(numbers)))
    out = np.full((height, len(numbers) * wide, 3), PAPER, np.uint8)
    middle = height // 2
    out[middle] = GRID
    finite = np.nan_to_num(np.asarray(numbers, np.float64), nan=0.0, posinf=20.0, neginf=-20.0)
    lengths = np.sign(finite) * np.minimum(1.0, np.log1p(np.abs(finite)) / np.log1p(20.0))
    for i, length in enumerate(lengths):
        top, bottom = sorted((middle, middle - round(length * (middle - 1))))
        out[top : bottom + 1, i * wide : (i + 1) * wide - 1] = INK
    return out
