"""Dreamer's networks, and their weights by named groups: to be loaded from another run, frozen,
counted; and whether there is memory for them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from agents.base import Part
from agents.dreamer.acting import Actor
from agents.dreamer.config import DreamerConfig
from agents.dreamer.gradient import REINFORCE
from worldmodel.config import ConfigError
from worldmodel.rssm import Head, HeadConfig, WorldModel
from worldmodel.rssm.fitted import read_head
from worldmodel.types import EnvSpec

WORLD = ("encoder", "core", "decoder", "heads", "ensemble")


def check_fits(spec: EnvSpec, config: DreamerConfig) -> None:
    """ValueError for a name that stands for a loss; ConfigError for actions without a gradient."""
    ours = {"actor", "critic", "replay_value", "disagreement"}
    if clash := ours & {*config.model.heads, *spec.obs}:
        raise ValueError(
            f"'{min(clash)}' names one of Dreamer's own losses, so no head or observation can "
            "bear it. Rename that key."
        )
    if config.actor_gradient != REINFORCE and spec.action.kind != "continuous":
        raise ConfigError(
            f"agent.actor_gradient={config.actor_gradient} is for continuous actions; here they "
            f"are {spec.action}. Set agent.actor_gradient=reinforce."
        )


def networks(spec: EnvSpec, config: DreamerConfig) -> tuple[WorldModel, Actor, Head]:
    """World model, actor and critic with fresh weights."""
    units, bins = config.model.units, config.model.bins
    model = WorldModel(spec, config.model)
    actor = Actor(spec.action, model.feat_size, units, config.actor_layers, config.actor_unimix)
    critic = HeadConfig("return", "twohot", config.critic_layers, outscale=0.0)
    return model, actor, Head(critic, model.feat_size, units, bins)


def parts_of(module: nn.Module, frozen: bool) -> dict[str, Part]:
    """The parts of the world model (a new run may have heads and an ensemble that an old one
    lacks), the actor, and the critic with its slow copy and the range of returns.

    module: of all networks. frozen: whether the world model is.
    """
    found: dict[str, dict[str, Tensor]] = {name: {} for name in (*WORLD, "actor", "critic")}
    for name, tensor in module.state_dict(keep_vars=True).items():
        first, second = name.split(".")[:2]
        part = second if first == "model" else "actor" if first == "actor" else "critic"
        found[part][name] = tensor
    return {
        name: Part(
            tensors,
            frozen=frozen and name in WORLD,
            optional=name in ("heads", "ensemble"),
            same_actions=name in ("core", "ensemble", "actor"),
            same_observations=name in ("encoder", "decoder"),
        )
        for name, tensors in found.items()
    }


def fitted_tensors(
    heads: Mapping[str, HeadConfig], names: Collection[str], old: WorldModel, run: Path
) -> dict[str, Tensor]:
    """Of these heads those that no batch teaches, as they were fitted on a run's world model.

    names: of the tensors that are wanted.
    """
    found: dict[str, Tensor] = {}
    for name, head in heads.items():
        prefix = f"model.heads.{name}."
        if not head.target and any(n.startswith(prefix) for n in names):
            fitted = read_head(run, name).load(old, run).state_dict()
            found |= {f"{prefix}{key}": value for key, value in fitted.items()}
    return found


def check_memory(build: Callable[[], Iterable[nn.Module]], free: int | None) -> None:
    """ConfigError where what `build` makes could not be trained in `free` bytes (None: nobody
    knows), before any of them is taken."""
    with torch.device("meta"):
        numbers = sum(p.numel() for module in build() for p in module.parameters())
    need = 4 * 4 * numbers  # weights, gradients and two moments of four bytes
    if free is not None and need > free:
        raise ConfigError(
            f"{numbers:,} parameters and their optimizer need {need / 1e9:.3g} GB of memory, "
            f"{free / 1e9:.3g} are free. Choose a smaller size=..., agent.model.deter or units."
        )
