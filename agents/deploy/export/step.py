"""What is exported: pure functions of named tensors, made of what the agent itself offers.

    Step        obs, state, sent, is_first -> action, next state, score      Agent.tick, a scorer
    Prediction  state, action -> obs, reward                                 Expects, Decodes

A graph takes and returns tensors in a fixed order, so that each of these knows the names of its
inputs and outputs: a state is any tree, and its leaves have the names that worldmodel.tree gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agents.base import Agent
from agents.deploy.inference import predict
from worldmodel import tree
from worldmodel.config import ConfigError
from worldmodel.types import MASK_KEY, EnvSpec

Tensors = dict[str, Tensor]


class Named(nn.Module):
    """A function of named tensors, that a graph can be traced of. names: of its inputs."""

    names: list[str]

    def run(self, given: Tensors) -> Tensors:
        """Outputs [B, ...] by name, of inputs [B, ...] by name."""
        raise NotImplementedError

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs in order, of inputs in the order of `names`."""
        return tuple(self.run(dict(zip(self.names, inputs, strict=True))).values())


class Step(Named):
    """Filters, scores and acts. Nothing is drawn at random inside.

    Inputs: "obs.KEY"; "state.policy..." and "state.memory...", of the agent and of the scorer,
    which do not matter where is_first; "sent" [B, A], the action that was sent at the tick before;
    "is_first" [B]. Outputs: "action" [B, A] encoded; "next.policy..." and "next.memory...";
    "score.value" [B] and "score.parts" [B, K] where there is a scorer.

    Raises ConfigError for an agent that cannot be exported.
    """

    def __init__(self, agent: Agent, spec: EnvSpec, scorer: Any = None) -> None:
        super().__init__()
        tick = agent.tick()
        if tick is None:
            searches = agent.planner is not None
            why = "a plan is a search, which no graph holds" if searches else "it has no tick()"
            raise ConfigError(
                f"agent={agent.name} cannot be exported: {why}. Deploy the run itself: "
                "scripts/deploy.py and agents.deploy.Runtime run any agent."
            )
        self.spec, self.tick, self.scorer = spec, tick, scorer
        # The scorer's parts use the world without owning it; a graph must know all weights.
        self.world = agent.model if isinstance(agent.model, nn.Module) else None
        self._agent = agent
        self._like = self.initial(1)
        self.names = list(self.example(1))

    def run(self, given: Tensors) -> Tensors:
        obs = {key.removeprefix("obs."): x for key, x in given.items() if key.startswith("obs.")}
        state, is_first = self._state(given), given["is_first"]
        sent = given["sent"].masked_fill(is_first.unsqueeze(-1), 0.0)
        before = self._agent.replace_action(state["policy"], sent)
        action, policy = self.tick(obs, before, is_first)
        after, score = {"policy": policy}, {}
        if self.scorer is not None:
            latent = self._agent.world_state(policy)
            value, parts, after["memory"] = self.scorer(
                obs, latent, sent, is_first, state["memory"]
            )
            score = {"score.value": value, "score.parts": parts}
        return {"action": action, **_named("next", after), **score}

    def initial(self, batch_size: int) -> Any:
        """The first state: a tree of tensors [B, ...]."""
        state = {"policy": self._agent.initial(batch_size)}
        if self.scorer is not None:
            state["memory"] = self.scorer.initial(batch_size)
        return tree.map(torch.as_tensor, state)

    def _state(self, given: Tensors) -> Any:
        """The tree of the inputs that are its leaves."""
        leaves = iter([x for name, x in given.items() if name.startswith("state.")])
        return tree.map(lambda _: next(leaves), self._like)

    def example(self, batch_size: int) -> Tensors:
        """Inputs, with observations at random."""
        obs = example_obs(self.spec, batch_size, torch.Generator().manual_seed(0))
        return {
            **{f"obs.{key}": value for key, value in obs.items()},
            **_named("state", self.initial(batch_size)),
            "sent": torch.zeros(batch_size, self.spec.action.size),
            "is_first": torch.zeros(batch_size, dtype=torch.bool),
        }


class Prediction(Named):
    """What the agent's world expects to follow a state through an action, without an observation.

    Inputs: "state.policy...", as `Step` has them, and "action" [B, A]. Outputs: "obs.KEY" (images
    in [0, 1]) and "reward" [B] where that is the environment's.
    """

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step
        self.names = [*(n for n in step.names if n.startswith("state.policy")), "action"]

    def run(self, given: Tensors) -> Tensors:
        policy = tree.map(lambda x: x, {"policy": self.step._like["policy"]})
        leaves = iter([x for name, x in given.items() if name != "action"])
        policy = tree.map(lambda _: next(leaves), policy)["policy"]
        agent = self.step._agent
        found = predict(agent.model, agent.world_state(policy), given["action"])
        return {k if k == "reward" else f"obs.{k}": x for k, x in found.items()}


def _named(name: str, state: Any) -> Tensors:
    """The tensors of a tree by dotted names."""
    return {key: leaf for key, leaf in tree.leaves(state, name) if isinstance(leaf, Tensor)}


def example_obs(spec: EnvSpec, batch_size: int, rng: torch.Generator) -> Tensors:
    """Observations [B, ...] at random: bytes for images, normal numbers, some class."""
    out = {}
    for key, one in sorted(spec.seen.items()):
        shape = (batch_size, *one.shape)
        if one.kind == "image":
            out[key] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng)
        elif one.kind == "discrete":
            hot = [torch.eye(n)[torch.randint(n, (batch_size,), generator=rng)] for n in one.sizes]
            out[key] = torch.cat(hot, -1)
        elif key == MASK_KEY:
            out[key] = torch.ones(shape)
        else:
            out[key] = torch.randn(shape, generator=rng)
    return out


def as_inputs(
    obs: Mapping[str, np.ndarray],
    state: Mapping[str, np.ndarray],
    sent: np.ndarray,
    is_first: np.ndarray,
) -> Tensors:
    """Arrays as inputs of a `Step`; `state` by the names of its inputs."""
    given = {**{f"obs.{key}": value for key, value in obs.items()}, **state}
    given |= {"sent": sent, "is_first": is_first}
    return {name: torch.from_numpy(np.array(value)) for name, value in given.items()}
