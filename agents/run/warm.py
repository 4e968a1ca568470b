"""A new run that starts with the weights of an old one: all of its parts, or some."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

import agents
from agents.base import Agent, Part, Policy
from agents.run.config import CONFIG, TrainConfig
from worldmodel import checkpoint, config, seeding
from worldmodel.config import ConfigError
from worldmodel.types import EnvSpec


def warm_start(
    settings: TrainConfig, agent: Agent, spec: EnvSpec, say: Callable[[str], None]
) -> None:
    """Load the parts that `load_parts` names from the newest checkpoint of `from_run`.

    What was fitted on that run after its training counts as its own. The optimizer starts anew.
    Raises ConfigError for unknown parts, for what does not fit, and for parts that are to stay as
    they are although nothing was loaded into them; RunError where the checkpoint cannot be read.
    """
    parts = agent.parts
    frozen = {name for name, part in parts.items() if part.frozen}
    if not settings.from_run:
        if frozen:
            raise ConfigError(
                f"With these settings {', '.join(sorted(frozen))} learn nothing, so they must come "
                "from somewhere: from_run=RUN."
            )
        return
    asked = _asked_parts(settings, parts)
    old = _load_old(settings)
    part_of = {tensor: name for name, part in parts.items() for tensor in part.tensors}
    theirs = _all_tensors(old.agent)
    wanted = {tensor for tensor, name in part_of.items() if name in asked}
    missing = wanted - theirs.keys()
    theirs |= agent.fitted_tensors(missing, old.agent, Path(settings.from_run))
    loaded = {t for t in wanted if t in theirs or not parts[part_of[t]].optional}
    ours = {name: tensor for name, tensor in _all_tensors(agent).items() if name in loaded}
    wrong = checkpoint.shape_differences(ours, theirs)
    _check_fits(settings, {name: parts[name] for name in asked}, (old.spec, spec), wrong)
    unlearned = {part_of[tensor] for tensor in part_of.keys() - loaded} & frozen
    if unlearned:
        raise ConfigError(
            f"With these settings {', '.join(sorted(unlearned))} learn nothing, but not all of "
            f"that comes from '{settings.from_run}'. Name the part in load_parts, and heads that "
            "exist there."
        )
    with torch.no_grad():
        for name, tensor in ours.items():
            tensor.copy_(theirs[name])
    begun = _describe_parts(parts, part_of.keys() - loaded)
    new = f"; new: {begun}" if begun else ""
    say(f"from '{settings.from_run}': {_describe_parts(parts, loaded)}{new}")


def _asked_parts(settings: TrainConfig, parts: Mapping[str, Part]) -> list[str]:
    if not parts:
        raise ConfigError(
            f"The agent '{settings.agent.name}' has no parts that could be loaded. Leave out "
            "from_run."
        )
    for name in settings.load_parts:
        if name not in parts:
            raise ConfigError(config.unknown("part in load_parts:", name, parts))
    return settings.load_parts or [*parts]


def _load_old(settings: TrainConfig) -> Policy:
    """The old run's agent, on the CPU; it draws no random numbers of the new run."""
    folder = Path(settings.from_run)
    name = config.section(config.read(folder / CONFIG), "agent", folder / CONFIG).get("name")
    if name != settings.agent.name:
        raise ConfigError(
            f"'{folder}' trained the agent '{name}', not '{settings.agent.name}'; its weights have "
            "no place here."
        )
    before = seeding.rng_state()
    try:
        return agents.load(folder, "cpu")
    finally:
        seeding.set_rng_state(before)


def _all_tensors(agent: Agent) -> dict[str, Tensor]:
    return {name: x for part in agent.parts.values() for name, x in part.tensors.items()}


def _check_fits(
    settings: TrainConfig, asked: Mapping[str, Part], specs: tuple[EnvSpec, EnvSpec],
    wrong: list[str],
) -> None:  # fmt: skip
    """ConfigError with every reason why an asked part cannot be loaded, all at once. specs: there
    and here. wrong: a line for each tensor of another shape."""
    (there, here), bad, lines = specs, set(), []
    if here.action != there.action:
        bad |= {name for name, part in asked.items() if part.same_actions}
        lines.append(f"actions: there {there.action}, here {here.action}")
    if here.seen != there.seen:
        bad |= {name for name, part in asked.items() if part.same_observations}
        pairs = {k: (there.seen.get(k), here.seen.get(k)) for k in {*there.seen, *here.seen}}
        lines += [
            f"observation '{key}': there {old or 'none'}, here {new or 'none'}"
            for key, (old, new) in sorted(pairs.items())
            if old != new
        ]
    tensors = {line.partition(":")[0] for line in wrong}
    bad |= {name for name, part in asked.items() if tensors & part.tensors.keys()}
    if not bad:
        return
    shown = [*lines, *wrong[:8], *([f"and {len(wrong) - 8} more"] if len(wrong) > 8 else [])]
    left = ",".join(name for name in asked if name not in bad)
    raise ConfigError(
        f"Not all of '{settings.from_run}' fits this run:\n  "
        + "\n  ".join(shown)
        + f"\nIt concerns {', '.join(sorted(bad))}. Without them: "
        + (f"load_parts=[{left}]." if left else "no from_run.")
    )


def _describe_parts(parts: Mapping[str, Part], tensors: Collection[str]) -> str:
    """The parts that these tensors are of; of one with other tensors too, what below its name."""
    words = []
    for name, part in parts.items():
        mine = [tensor.split(".") for tensor in part.tensors if tensor in tensors]
        levels = enumerate(zip(*(tensor.split(".") for tensor in part.tensors), strict=False))
        depth = next((depth for depth, level in levels if len({*level}) > 1), 0)
        below = ", ".join(dict.fromkeys(tensor[depth] for tensor in mine))
        if mine:
            words.append(name if len(mine) == len(part.tensors) else f"{name} ({below})")
    return ", ".join(words)
