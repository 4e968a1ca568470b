"""Dreamer's weights by named groups: to be loaded from another run, frozen, counted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor, nn

from agents.base import Part
from worldmodel.rssm import HeadConfig, WorldModel
from worldmodel.rssm.fitted import read_head

WORLD = ("encoder", "core", "decoder", "heads", "ensemble")


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
