"""A new run that starts with the weights of an old one: all of its parts, or some."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import agents
from agents.base import Agent, Part
from agents.run.config import CONFIG, TrainConfig
from worldmodel import checkpoint, config
from worldmodel.config import ConfigError, RunError
from worldmodel.rssm.fitted import read_head
from worldmodel.types import EnvSpec

# Parts that the actions, or the observations, of the old run are built into.
ACTS, SEES = {"core", "ensemble", "actor"}, {"encoder", "decoder"}


def warm_start(
    settings: TrainConfig, agent: Agent, spec: EnvSpec, say: Callable[[str], None]
) -> None:
    """Load the parts that `load_parts` names from the newest checkpoint of `from_run`.

    Heads fitted on that run (scripts/fit_reward.py) count as its heads. The optimizer starts anew.
    Raises ConfigError for unknown parts, for what does not fit, and for parts that are to stay as
    they are although nothing was loaded into them; RunError where the checkpoint cannot be read.
    """
    frozen = {name for name, part in agent.parts.items() if part.frozen}
    if not settings.from_run:
        if frozen:
            raise ConfigError(
                f"With these settings {', '.join(sorted(frozen))} learn nothing, so they must come "
                "from somewhere: from_run=RUN."
            )
        return
    parts = _known_parts(settings, agent)
    settings = replace(settings, load_parts=settings.load_parts or [*parts])
    ours = {name: tensor for part in parts.values() for name, tensor in part.tensors.items()}
    theirs, old = _source(settings, ours)
    chosen = {name: part for part, group in parts.items() for name in group.tensors}
    wanted = {name for name, part in chosen.items() if part in settings.load_parts}
    missing = {n for n in wanted if n not in theirs and parts[chosen[n]].optional}
    _check_fits(settings, spec, old, {n: ours[n] for n in wanted - missing}, theirs, chosen)
    unlearned = {chosen[n] for n in chosen if n not in wanted - missing} & frozen
    if unlearned:
        raise ConfigError(
            f"With these settings {', '.join(sorted(unlearned))} learn nothing, but not all of "
            f"that comes from '{settings.from_run}'. Name the part in load_parts, and heads that "
            "exist there."
        )
    with torch.no_grad():
        for name in wanted - missing:
            ours[name].copy_(theirs[name])
    say(_told(settings, chosen, wanted - missing))


def _known_parts(settings: TrainConfig, agent: Agent) -> Mapping[str, Part]:
    parts = agent.parts
    if not parts:
        raise ConfigError(
            f"The agent '{settings.agent.name}' has no parts that could be loaded. Leave out "
            "from_run."
        )
    for name in settings.load_parts:
        if name not in parts:
            raise ConfigError(config.unknown("part in load_parts:", name, parts))
    return parts


def _source(settings: TrainConfig, ours: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], EnvSpec]:
    """The old run's weights, those of heads that were fitted on it included, and its spec."""
    folder = Path(settings.from_run)
    saved = config.read(folder / CONFIG)
    if saved.agent.name != settings.agent.name:
        raise ConfigError(
            f"'{folder}' trained the agent '{saved.agent.name}', not '{settings.agent.name}'; its "
            "weights have no place here."
        )
    try:
        state = checkpoint.load(folder)
    except checkpoint.CheckpointError as error:
        raise RunError(str(error)) from error
    weights = dict(state["agent"]["module"])
    model = getattr(settings.agent, "model", None)
    fitted = [n for n, head in getattr(model, "heads", {}).items() if not head.target]
    held = {n for n in fitted if any(k.startswith(f"model.heads.{n}.") for k in weights)}
    new = [name for name in fitted if name not in held]
    if new and "heads" in settings.load_parts:
        old = agents.load(folder, "cpu").model
        for name in new:
            head = read_head(folder, name)
            head.check_model(old, folder)
            weights |= {f"model.heads.{name}.{k}": v for k, v in head.weights().items()}
    return weights, checkpoint.spec_from_dict(state["spec"])


def _check_fits(
    settings: TrainConfig,
    spec: EnvSpec,
    old: EnvSpec,
    wanted: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    chosen: Mapping[str, str],
) -> None:
    """ConfigError with every reason why a wanted part cannot be loaded, all at once."""
    parts, bad, lines = set(settings.load_parts), set(), []
    if spec.action != old.action and parts & ACTS:
        bad |= parts & ACTS
        lines.append(f"actions: there {old.action}, here {spec.action}")
    if spec.seen != old.seen and parts & SEES:
        bad |= parts & SEES
        lines += [
            f"observation '{key}': there {old.seen.get(key, 'none')}, here "
            f"{spec.seen.get(key, 'none')}"
            for key in sorted({*spec.seen, *old.seen})
            if spec.seen.get(key) != old.seen.get(key)
        ]
    wrong = checkpoint.shape_differences(wanted, theirs)
    bad |= {chosen[line.partition(":")[0]] for line in wrong}
    if not bad:
        return
    shown = [*lines, *wrong[:8], *([f"and {len(wrong) - 8} more"] if len(wrong) > 8 else [])]
    left = [part for part in settings.load_parts if part not in bad]
    raise ConfigError(
        f"Not all of '{settings.from_run}' fits this run:\n  "
        + "\n  ".join(shown)
        + f"\nIt concerns {', '.join(sorted(bad))}. Without them: load_parts=[{','.join(left)}]."
    )


def _told(settings: TrainConfig, chosen: Mapping[str, str], loaded: set[str]) -> str:
    """Which parts were loaded and which start anew, heads by name."""
    old: dict[str, None] = {}
    new: dict[str, None] = {}
    for name, part in chosen.items():
        words = name.split(".")
        label = f"head {words[2]}" if part == "heads" else part
        (old if name in loaded else new)[label] = None
    fresh = f"; new: {', '.join(n for n in new if n not in old)}" if set(new) - set(old) else ""
    return f"from '{settings.from_run}': {', '.join(old)}{fresh}"
