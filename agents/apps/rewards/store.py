"""Fitted heads: stored beside their run, and as part of its model, which they then pay."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import agents
from agents.base import Policy
from worldmodel import config
from worldmodel.atomic import replaced
from worldmodel.capabilities import Features
from worldmodel.config import ConfigError
from worldmodel.log import write_tensors
from worldmodel.rssm import Head, HeadConfig
from worldmodel.rssm.fitted import (
    ABOUT,
    FOLDER,
    WEIGHTS,
    FittedHead,
    TakesHeads,
    digest,
    head_names,
    new_head,
    no_head,
    read_head,
)

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


def check_name(policy: Policy, run: str | Path, name: str, replace: bool) -> None:
    """ConfigError unless a new head of that name can be stored in a run, and become a part of its
    agent: that is asked of the agent itself, which is built for it."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"name='{name}' cannot name a head: use letters, digits and underscores, a letter "
            "first, at most 64. It becomes a folder, and a word in control={...}."
        )
    if (Path(run) / FOLDER / name).exists() and not replace:
        raise ConfigError(
            f"'{run}' has a head '{name}' already. Choose another name, say replace=true to fit it "
            f"anew, or remove={name} to delete it."
        )
    world = world_of(policy, run)
    if not isinstance(world, TakesHeads):
        return
    if name in world.paying:
        raise ConfigError(f"The name '{name}' is taken by the model itself. Choose another.")
    try:
        made = world.with_heads({name: new_head(world, HeadConfig(target=""))}, {name: 1.0})
        settings = policy.agent.dream_config(made, updates=1)
        if settings is not None:
            agents.make(settings.name, policy.spec, settings, policy.device)
    except ValueError as error:
        raise ConfigError(f"name='{name}' cannot name a head. {error}") from error


def write_head(
    run: str | Path, fitted: FittedHead, head: Head, files: Path | None = None
) -> FittedHead:
    """Store a head, all or nothing, in place of one of the same name; `files` is a folder whose
    contents go beside it."""
    final = Path(run) / FOLDER / fitted.name
    with replaced(final) as fresh:
        if files is not None:
            shutil.copytree(files, fresh, dirs_exist_ok=True)
        write_tensors(fresh / WEIGHTS, {k: v.cpu().clone() for k, v in head.state_dict().items()})
        stored = replace(fitted, sha256=digest(fresh / WEIGHTS), folder=final)
        (fresh / ABOUT).write_text(json.dumps(stored.plain(), indent=2) + "\n")
    return stored


def remove_head(run: str | Path, name: str) -> Path:
    """Delete a head, damaged or not; returns the folder that it was in. Raises ConfigError where
    there is none of that name."""
    folder = Path(run) / FOLDER / name
    if not NAME.fullmatch(name) or not folder.is_dir():
        raise no_head(run, name)
    shutil.rmtree(folder)
    return folder


def world_of(policy: Policy, run: str | Path) -> Any:
    """The world of a run's agent; ConfigError where it has none that heads can read."""
    if isinstance(policy.model, Features):
        return policy.model
    kind = "no world" if policy.model is None else f"a {type(policy.model).__name__} without any"
    raise ConfigError(
        f"Reward heads read the features of a learned world's states, but the agent of '{run}' has "
        f"{kind}. Train one that has, such as agent=dreamer."
    )


def with_heads(
    run: str | Path,
    control: Mapping[str, float],
    policy: Policy | None = None,
    device: str = "auto",
) -> Any:
    """A copy of a run's world whose reward is a weighted sum of heads, its own and fitted ones.

    run: the folder with the heads; policy: its trained agent, where it is loaded already. Fitted
    heads become heads of the model with the target "": no batch teaches them.

    Raises ConfigError for a world that takes no heads, names that no head has, weights that are not
    finite and heads of several numbers, and RunError for a head that is damaged or fitted on
    another state of the model.
    """
    policy = policy or agents.load(run, device)
    world = world_of(policy, run)
    if not isinstance(world, TakesHeads):
        raise ConfigError(
            f"A {type(world).__name__} has its own reward, and no head can pay in its place. Heads "
            "fitted on it serve to score policies. Use a run of agent=dreamer."
        )
    _check_control(control, [*world.paying, *head_names(run)])
    stored = head_names(run)
    heads = {name: read_head(run, name).load(world, run) for name in control if name in stored}
    try:
        return world.with_heads(heads, {name: float(value) for name, value in control.items()})
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _check_control(control: Mapping[str, float], known: list[str]) -> None:
    """ConfigError for heads that nobody knows, and for weights that are no numbers."""
    if not control:
        raise ConfigError(
            f"control names no head. Known: {', '.join(known)}. For example "
            "control={reward: 1.0}."
        )
    for name, weight in control.items():
        if name not in known:
            raise ConfigError(
                config.unknown("head", name, known)
                + " A new one is fitted with scripts/fit_reward.py."
            )
        if not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ConfigError(f"The weight of '{name}' in control is {weight}; give a number.")
