"""What should I do? Agents by name, and trained ones from their run folder."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from agents.base import Agent, Policy
from worldmodel import checkpoint, config
from worldmodel.accel.devices import out_of_memory
from worldmodel.types import EnvSpec

if TYPE_CHECKING:
    from worldmodel.replay import Replay

# name -> "module:Class"; the module is imported only when the name is asked for.
AGENTS = {
    "dqn": "agents.dqn:DQN",
    "dreamer": "agents.dreamer:Dreamer",
    "dyna_2": "agents.dyna:Dyna2",
    "dyna_q": "agents.dyna:DynaQ",
    "dyna_q_plus": "agents.dyna:DynaQPlus",
    "mbpo": "agents.mbpo:MBPO",
    "mpc": "agents.mpc:MPC",
    "muzero": "agents.muzero:MuZero",
    "prioritized_sweeping": "agents.dyna:PrioritizedSweeping",
    "q_learning": "agents.dyna:QLearning",
    "random": "agents.random:Random",
    "sac": "agents.sac:SAC",
    "tdmpc2": "agents.tdmpc2:TDMPC2",
    "world_models": "agents.world_models:WorldModels",
}

__all__ = ["AGENTS", "Agent", "Policy", "agent_class", "load", "load_replay", "make"]


def agent_class(name: str) -> type[Agent]:
    """The class of a registered agent, or of your own as "module:Class"."""
    where = AGENTS.get(name, name)
    if ":" not in where:
        raise config.ConfigError(
            config.unknown("agent", name, AGENTS) + " Your own agent is named 'module:Class'."
        )
    module, _, attribute = where.partition(":")
    if not all(word.isidentifier() for word in (*module.split("."), attribute)):
        raise config.ConfigError(f"Agent '{name}' is no name of a class: write 'module:Class'.")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise  # the module exists, but something that it needs does not
        raise config.ConfigError(
            f"Agent '{name}': there is no module '{module}'. It must be importable from here."
        ) from error
    except AttributeError as error:
        raise config.ConfigError(
            f"Agent '{name}': the module '{module}' has no '{attribute}'."
        ) from error
    agent = isinstance(found, type) and issubclass(found, Agent)
    if not agent or not is_dataclass(getattr(found, "Config", None)):
        raise config.ConfigError(
            f"Agent '{name}': '{attribute}' is no agent. It must be a subclass of "
            "agents.base.Agent with a dataclass 'Config'."
        )
    missing = sorted(found.__abstractmethods__)
    if missing:
        raise config.ConfigError(
            f"Agent '{name}': the class {attribute} lacks {', '.join(missing)}. Every agent has "
            "them: docs/ADD_AN_AGENT.md says what each does."
        )
    cls: type[Agent] = found
    return cls


def make(name: str, spec: EnvSpec, settings: Any, device: torch.device) -> Agent:
    """A new agent, ready to act and learn.

    Raises ConfigError where the name is unknown, or the memory too small.
    """
    try:
        cls: Any = agent_class(name)
        agent: Agent = cls(spec, settings, device)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise config.ConfigError(
            f"The memory is too small for agent '{name}' with these settings "
            f"({config.first_line(error)}). Choose a smaller size=..."
        ) from error
    return agent


def load(run_folder: str | Path, device: str = "auto") -> Policy:
    """The trained agent of a run folder.

    Raises ConfigError where the folder is not a run, and CheckpointError where its checkpoint is
    missing, damaged or of another shape.
    """
    from worldmodel.accel.devices import pick_device
    from worldmodel.envs import EnvConfig

    folder = Path(run_folder)
    path = folder / "config.yaml"
    saved = config.read(path)
    chosen = config.section(saved, "agent", path)
    name = str(chosen.get("name"))
    settings: Any = config.build(chosen, agent_class(name).Config, saved=True)
    env = config.build(config.section(saved, "env", path), EnvConfig)
    state = checkpoint.load(folder, warnings.warn)
    spec = checkpoint.spec_from_dict(state.get("spec"))
    where = pick_device(device)
    agent = make(name, spec, settings, where)
    checkpoint.restore(agent, state.get("agent"), folder)
    return Policy(agent, spec, env, where)


def load_replay(run_folder: str | Path) -> Replay:
    """The experience that a run recorded, for reading, also while the run goes on; its files are
    not changed. Of a run of several ranks it is that of rank 0.

    Raises ConfigError where the folder is not a run or has no replay, or where it is damaged.
    """
    from worldmodel.replay import Replay, ReplayConfig

    folder = Path(run_folder)
    path = folder / "config.yaml"
    settings = config.build(config.section(config.read(path), "replay", path), ReplayConfig)
    try:
        return Replay.open(settings.directory or folder / "replay")
    except (ValueError, FileNotFoundError) as error:
        raise config.ConfigError(f"The replay of '{folder}' cannot be read: {error}") from error
