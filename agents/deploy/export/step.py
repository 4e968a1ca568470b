"""One tick of an agent as a pure function of tensors, for whatever runs graphs.

    step(obs, state, is_first) -> action, state, score

Nothing is drawn at random inside: latents are the likeliest ones, or drawn with noise that is one
more input, so that two programs with the same input give the same output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from agents.base import Agent
from worldmodel.config import ConfigError
from worldmodel.distributions import OneHot
from worldmodel.rssm import WorldModel
from worldmodel.rssm.state import LatentState
from worldmodel.types import MASK_KEY, EnvSpec

Tensors = dict[str, Tensor]
LATENTS = ("mode", "sample")
MEMORY = "memory."  # how the names of a detector's memory begin, within the state


class Step(nn.Module):
    """Filters, scores and acts. See `initial` and `example` for what goes in.

    state: deter [B, D], stoch [B, S, K], action [B, A] (sent at the tick before), and the
    detector's memory. The next state holds the policy's own action; put the one that was really
    sent in its place where they differ. score: value [B] and parts [B, K], where a scorer is given.
    """

    def __init__(self, agent: Any, spec: EnvSpec, latent: str = "mode", scorer: Any = None) -> None:
        super().__init__()
        self.spec, self.latent = spec, latent
        self.encoder, self.core, self.actor = agent.model.encoder, agent.model.core, agent.actor
        self.scorer = scorer

    def forward(
        self, obs: Tensors, state: Tensors, is_first: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensors, Tensors]:
        """Encoded actions [B, A], the next state, and the score; all by name, [B, ...]."""
        core, first = self.core, is_first.unsqueeze(-1)
        before = LatentState(
            state["deter"].masked_fill(first, 0.0),
            state["stoch"].masked_fill(first.unsqueeze(-1), 0.0),
        )
        sent = state["action"].masked_fill(first, 0.0)
        deter = core.recur(before, core.embed_action(sent))
        seen = torch.cat([deter, self.encoder(obs)], -1)
        params = core.post_out(core.post_in(seen)).unflatten(-1, (core.groups, -1))
        latent = LatentState(deter, drawn(core, params, noise))
        action = self.actor(latent.feat, obs.get(MASK_KEY)).mode()
        if self.spec.action.kind == "continuous":
            action = action.clamp(-1.0, 1.0)
        after = {"action": action, "deter": latent.deter, "stoch": latent.stoch}
        if self.scorer is None:
            return action, after, {}
        memory = {k.removeprefix(MEMORY): v for k, v in state.items() if k.startswith(MEMORY)}
        value, parts, memory = self.scorer(obs, latent, sent, is_first, memory)
        after = dict(sorted((after | {MEMORY + k: v for k, v in memory.items()}).items()))
        return action, after, {"value": value, "parts": parts}

    def initial(self, batch_size: int) -> Tensors:
        """The state before the first observation."""
        first = self.core.initial(batch_size)
        action = first.deter.new_zeros(batch_size, self.spec.action.size)
        state = {"action": action, "deter": first.deter, "stoch": first.stoch}
        memory = {} if self.scorer is None else self.scorer.initial(batch_size)
        # Sorted: a graph takes its dicts in the order of the example that it was traced with.
        return dict(sorted((state | {MEMORY + k: v for k, v in memory.items()}).items()))

    def example(self, batch_size: int, seed: int = 0) -> tuple[Any, ...]:
        """Arguments of a call, with observations at random."""
        rng = torch.Generator().manual_seed(seed)
        obs = example_obs(self.spec, batch_size, rng)
        is_first = torch.zeros(batch_size, dtype=torch.bool)
        args: tuple[Any, ...] = (obs, self.initial(batch_size), is_first)
        return args if self.latent == "mode" else (*args, self.noise(batch_size, rng))

    def noise(self, batch_size: int, rng: torch.Generator | None = None) -> Tensor:
        """[B, S, K] as the agent draws it: exponential for categorical latents, else normal."""
        empty = torch.empty(batch_size, self.core.groups, self.core.classes)
        return empty.normal_(generator=rng) if self.core.gaussian else empty.exponential_(
            generator=rng
        )  # fmt: skip


class Foretell(nn.Module):
    """One step of the world model without an observation: what follows a state through an action.

    foretell(state, action [B, A]) -> obs by key (images in [0, 1]), reward [B]
    """

    def __init__(self, agent: Any) -> None:
        super().__init__()
        model = agent.model
        self.core, self.decoder, self.heads = model.core, model.decoder, model.heads
        # The decoder borrows the encoder's centre in a list, which a graph cannot see.
        self.centre = model.encoder.centre if model.encoder.images else None
        self.paid = dict(model.config.control) == {"reward": 1.0}

    def forward(self, state: Tensors, action: Tensor) -> Tensors:
        """The likeliest next latent, decoded."""
        before = LatentState(state["deter"], state["stoch"])
        deter = self.core.recur(before, self.core.embed_action(action))
        latent = LatentState(deter, drawn(self.core, self.core.prior(deter), None))
        out: Tensors = dict(self.decoder.decode_images(latent))
        out |= {k: d.mode() for k, d in self.decoder.decode_vectors(latent).items()}
        if self.paid:
            out["reward"] = self.heads["reward"].predict(latent.feat)
        return out


def drawn(core: Any, params: Tensor, noise: Tensor | None) -> Tensor:
    """Latents [B, S, K]: the likeliest, or the ones that this noise draws, as `RSSM.sample`."""
    dist = core.dist(params)
    if isinstance(dist, OneHot):
        if noise is None:
            return dist.mode()
        index = (dist.probs / noise).argmax(-1, keepdim=True)
        return torch.zeros_like(dist.probs).scatter_(-1, index, 1.0)
    if noise is None:
        return dist.mean.unsqueeze(-1)
    return (dist.mean + dist.std * noise.squeeze(-1)).unsqueeze(-1)


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


def check_exportable(agent: Agent) -> None:
    """ConfigError unless the agent decides from the latent state of our world model."""
    if not isinstance(agent.model, WorldModel) or not isinstance(
        getattr(agent, "actor", None), nn.Module
    ):
        raise ConfigError(
            f"A {type(agent).__name__} cannot be exported: it needs a worldmodel.rssm.WorldModel "
            "as `model` and a policy over its states as `actor`. agents.deploy.Runtime runs any "
            "agent without an export."
        )
