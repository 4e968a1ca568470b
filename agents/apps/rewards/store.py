"""Fitted heads: stored beside their run, and as part of its model, which they then pay."""

from __future__ import annotations

import copy
import json
import math
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import agents
from agents.base import Policy
from worldmodel import config
from worldmodel.atomic import replaced
from worldmodel.config import ConfigError, RunError
from worldmodel.rssm import Head, HeadConfig, ModelConfig, WorldModel
from worldmodel.rssm.fitted import (
    ABOUT,
    FOLDER,
    WEIGHTS,
    FittedHead,
    digest,
    head_names,
    no_head,
    read_head,
)

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
DISAGREEMENT = "disagreement"  # the reward of an ensemble, where the model has one


def check_name(run: str | Path, name: str, taken: Iterable[str], replace: bool) -> None:
    """ConfigError unless a new head of that name can be stored in a run.

    taken: names that the model, its observations or its agent have in use.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"name='{name}' cannot name a head: use letters, digits and underscores, a letter "
            "first, at most 64. It becomes a folder, and a word in control={...}."
        )
    if name in taken:
        raise ConfigError(
            f"The name '{name}' is taken by the model itself (its heads, losses and observations "
            f"are {', '.join(sorted(taken))}). Choose another."
        )
    if (Path(run) / FOLDER / name).exists() and not replace:
        raise ConfigError(
            f"'{run}' has a head '{name}' already. Choose another name, say replace=true to fit it "
            f"anew, or remove={name} to delete it."
        )


def write_head(
    run: str | Path, fitted: FittedHead, head: Head, files: Path | None = None
) -> FittedHead:
    """Store a head, all or nothing, in place of one of the same name; `files` is a folder whose
    contents go beside it."""
    final = Path(run) / FOLDER / fitted.name
    with replaced(final) as fresh:
        if files is not None:
            shutil.copytree(files, fresh, dirs_exist_ok=True)
        torch.save({k: v.cpu().clone() for k, v in head.state_dict().items()}, fresh / WEIGHTS)
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


@dataclass(frozen=True)
class WithHeads:
    """A model that is paid by fitted heads. config and weights: for `WorldModel(policy.spec,
    config)` and its `load_state_dict`, or for the model of any agent built with that config.
    fitted: the stored heads among those in control, by name."""

    policy: Policy
    config: ModelConfig
    weights: dict[str, Tensor]
    fitted: dict[str, FittedHead]

    def model(self) -> WorldModel:
        """The model itself, on the policy's device, its weights in place."""
        made = WorldModel(self.policy.spec, self.config)
        made.load_state_dict(self.weights)
        return made.to(self.policy.device)


def with_heads(
    run: str | Path,
    control: Mapping[str, float],
    policy: Policy | None = None,
    device: str = "auto",
) -> WithHeads:
    """The model of a run whose reward is a weighted sum of heads, its own and fitted ones.

    run: the folder with the heads; policy: its trained agent, where it is loaded already. Fitted
    heads become heads of the model with the target "": no batch teaches them.

    Raises ConfigError for names that no head has, weights that are not finite and heads of several
    numbers, and RunError for a head that is damaged or fitted on another state of the model.
    """
    policy = policy or agents.load(run, device)
    model = world_model(policy, run)
    _check(control, model, run)
    stored = head_names(run)
    fitted = {name: read_head(run, name) for name in control if name in stored}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for name, head in fitted.items():
        head.check_model(model, run)
        weights |= {f"heads.{name}.{key}": value for key, value in head.weights().items()}
    made = copy.deepcopy(model.config)
    made = replace(
        made,
        heads=made.heads | {name: head.config for name, head in fitted.items()},
        control={name: float(weight) for name, weight in control.items()},
    )
    result = WithHeads(policy, made, weights, fitted)
    try:
        result.model()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except RuntimeError as error:
        raise RunError(f"A head does not fit the model of '{run}': {error}") from error
    return result


def _check(control: Mapping[str, float], model: WorldModel, run: str | Path) -> None:
    """ConfigError for heads that nobody knows, and for weights that are no numbers."""
    known = [*model.config.heads, *head_names(run)]
    if getattr(model, "ensemble", None) is not None:
        known.append(DISAGREEMENT)
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


def world_model(policy: Policy, run: str | Path) -> WorldModel:
    """The world model of a run's agent; ConfigError where it has none that heads can read."""
    if isinstance(policy.model, WorldModel):
        return policy.model
    kind = "none" if policy.model is None else f"a {type(policy.model).__name__}"
    raise ConfigError(
        f"Reward heads read the states of a recurrent world model, but the agent of '{run}' has "
        f"{kind}. Train one that has, with agent=dreamer."
    )


def taken_names(policy: Policy, run: str | Path) -> list[str]:
    """Names that a fitted head of this run cannot bear: those of the model's own heads, losses
    and observations, and what its agent keeps for itself."""
    model = world_model(policy, run)
    return sorted(
        {*model.config.heads, *policy.spec.seen, "dyn", "rep", "action_mask", DISAGREEMENT}
    )


def check_bearable(policy: Policy, run: str | Path, name: str) -> None:
    """ConfigError where the model, or the agent that it is a part of, cannot have a head of that
    name: asked of the agent itself, which is built for it."""
    settings: Any = copy.deepcopy(policy.agent.config)  # type: ignore[attr-defined]
    settings.model.heads[name] = HeadConfig(target="")
    try:
        agents.make(settings.name, policy.spec, settings, policy.device)
    except ValueError as error:
        raise ConfigError(f"name='{name}' cannot name a head. {error}") from error
