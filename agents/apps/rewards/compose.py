"""Fitted heads as part of the model: what an actor that learns in dreams is paid by."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

import agents
from agents.apps.rewards import store
from agents.apps.rewards.store import Stored
from agents.base import Policy
from worldmodel import config
from worldmodel.checkpoint import CheckpointError
from worldmodel.config import ConfigError, RunError
from worldmodel.rssm import ModelConfig, WorldModel

DISAGREEMENT = "disagreement"  # the reward of an ensemble, where the model has one


@dataclass(frozen=True)
class WithHeads:
    """A model that is paid by fitted heads. config and weights: for `WorldModel(policy.spec,
    config)` and its `load_state_dict`, or for the model of any agent built with that config.
    fitted: the stored heads among those in control, by name."""

    policy: Policy
    config: ModelConfig
    weights: dict[str, Tensor]
    fitted: dict[str, Stored]

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
    policy = policy or load_policy(run, device)
    model = world_model(policy, run)
    _check(control, model, run)
    stored = store.names(run)
    fitted = {name: store.read(run, name) for name in control if name in stored}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    now = store.fingerprint(model)
    for name, head in fitted.items():
        if head.model != now:
            raise RunError(
                f"The head '{name}' was fitted on the model of {head.checkpoint}, but the run has "
                f"another by now ({store.checkpoint_name(run)}): it was trained on. Fit the head "
                f"again: scripts/fit_reward.py run={run} name={name} "
                f"reward='{head.source['reward']}' replace=true"
            )
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
    known = [*model.config.heads, *store.names(run)]
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


def load_policy(run: str | Path, device: str = "auto") -> Policy:
    """`agents.load`, with a RunError for a checkpoint that cannot be loaded."""
    try:
        return agents.load(run, device)
    except CheckpointError as error:
        raise RunError(str(error)) from error


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
    from worldmodel.rssm import HeadConfig

    settings: Any = copy.deepcopy(policy.agent.config)  # type: ignore[attr-defined]
    settings.model.heads[name] = HeadConfig(target="")
    try:
        agents.make(settings.name, policy.spec, settings, policy.device)
    except ValueError as error:
        raise ConfigError(f"name='{name}' cannot name a head. {error}") from error
