"""The worlds other than the RSSM, each in a file of its own; and every learned one by name."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from worldmodel.config import ConfigError, build, unknown
from worldmodel.envs.named import found

# name -> "module:Class" of worlds that learn (`Learns` or `Fits`); the module is imported only when
# the name is asked for. configs/world has a file for each.
WORLDS = {
    "gaussian": "worldmodel.models.gaussian:Gaussian",
    "planet": "worldmodel.rssm.planet:PlaNet",
    "rssm": "worldmodel.rssm:WorldModel",
}


def world_class(name: str) -> Any:
    """The class of a learned world, or of your own as "module:Class" or "file.py:Class".

    It is made with `Class(spec, settings)`, settings being of the dataclass `Class.Config`.
    Raises ConfigError where there is no such class.
    """
    if name not in WORLDS and ":" not in name:
        raise ConfigError(
            unknown("world", name, WORLDS) + " Your own world is named 'module:Class'."
        )
    cls = found(WORLDS.get(name, name), "class")
    right = isinstance(cls, type) and issubclass(cls, nn.Module)
    if not right or not is_dataclass(getattr(cls, "Config", None)):
        raise ConfigError(
            f"World '{name}' is no world that learns: it must be a subclass of torch.nn.Module "
            "with a dataclass 'Config'."
        )
    return cls


def settings_of(world: str, given: Any) -> Any:
    """The settings of a world, of its class's Config: those given, as such an object or, as a saved
    run has them, as a dict; None for the defaults. Raises ConfigError for another world's."""
    schema = world_class(world).Config
    if given is None or isinstance(given, dict):
        given = build(OmegaConf.create(given or {}), schema, saved=bool(given))
    if not isinstance(given, schema):
        raise ConfigError(
            f"agent.world is '{world}', but agent.model holds the settings of another world "
            f"({type(given).__name__}). Name it as world={world}, without 'agent.', which brings "
            "its settings, too."
        )
    return given
