"""Runs any agent tick by tick, with the detector of its run where there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents.base import Agent, check_mode
from worldmodel.config import RunError
from worldmodel.ood.api import Detector, Memory, Score
from worldmodel.rssm.state import LatentState


class Mind(NamedTuple):
    """The states of the policy and of the detector's scorer, [B, ...]."""

    policy: Any
    memory: Memory


class AgentEngine:
    """An agent of `agents.base`, as it is; satisfies `agents.deploy.brain.Engine`.

    mode: "mode" or "sample". The detector's scorer is asked after the agent has filtered the
    observation; time stamps are the runtime's to judge. Raises RunError for a detector that is not
    calibrated.
    """

    def __init__(self, agent: Agent, detector: Detector | None = None, mode: str = "mode") -> None:
        check_mode(mode)
        self.agent, self.mode = agent, mode
        self.scorer: Any = None if detector is None else detector.scorer
        if detector is not None and not getattr(detector, "calibration", True):
            raise RunError(
                "The detector is not calibrated, so its scores mean nothing: "
                "scripts/fit_detector.py run=RUN fits and calibrates one."
            )

    def initial(self, batch_size: int) -> Mind:
        """The first state."""
        memory = {} if self.scorer is None else self.scorer.initial(batch_size)
        return Mind(self.agent.initial(batch_size), memory)

    @torch.inference_mode()
    def step(
        self, obs: Mapping[str, np.ndarray], state: Mind, is_first: np.ndarray, sent: np.ndarray
    ) -> tuple[np.ndarray, Mind, Score | None]:
        """One action, and the score of what led to it."""
        sent = np.where(is_first[:, None], 0, sent).astype(np.float32)
        before = told(state.policy, sent)
        action, policy, extras = self.agent.act({**obs, "is_first": is_first}, before, self.mode)
        if self.scorer is None:
            return action, Mind(policy, state.memory), None
        value, parts, memory = self.scorer(
            {key: torch.from_numpy(array) for key, array in obs.items()},
            extras.get("latent"), torch.from_numpy(sent), torch.from_numpy(is_first), state.memory,
        )  # fmt: skip
        score = scored(value.numpy(), parts.numpy(), self.scorer.names, self.scorer.threshold)
        return action, Mind(policy, memory), score

    def blend(self, old: Any, new: Any, keep: np.ndarray) -> Any:
        """Row by row, through tuples, dicts, arrays and tensors; anything else is the new one's."""
        if isinstance(new, tuple):
            parts = [self.blend(a, b, keep) for a, b in zip(old, new, strict=True)]
            return type(new)(*parts) if hasattr(new, "_fields") else tuple(parts)
        if isinstance(new, dict):
            return {key: self.blend(old[key], new[key], keep) for key in new}
        if isinstance(new, Tensor):
            mask = torch.from_numpy(keep).to(new.device)
            return torch.where(mask.reshape(-1, *[1] * (new.dim() - 1)), old, new)
        if isinstance(new, np.ndarray):
            return np.where(keep.reshape(-1, *[1] * (new.ndim - 1)), old, new)
        return new

    @torch.inference_mode()
    def predict(self, state: Mind, sent: np.ndarray) -> dict[str, np.ndarray] | None:
        """One step of the agent's model from its latent state, where it has both."""
        latent, model = getattr(state.policy, "latent", None), self.agent.model
        if not isinstance(latent, LatentState) or not hasattr(model, "decode"):
            return None
        foretold = model.step(latent, torch.as_tensor(sent, device=latent.deter.device))
        seen = {key: value.cpu().numpy() for key, value in model.decode(foretold.state).items()}
        control = getattr(getattr(model, "config", None), "control", {"reward": 1.0})
        if dict(control) != {"reward": 1.0}:  # it foretells another reward than the task's
            return seen
        return seen | {"reward": foretold.reward.cpu().numpy()}


def scored(value: np.ndarray, parts: np.ndarray, names: Sequence[str], threshold: float) -> Score:
    """A scorer's numbers, value [B] and parts [B, K], as a Score."""
    named = {n: parts[:, k] for k, n in enumerate(names) if not np.isnan(parts[0, k])}
    # Not `value > threshold`: that would let a NaN pass.
    return Score(value, float(threshold), ~(value <= threshold), named)


def told(state: Any, action: np.ndarray) -> Any:
    """The state of a policy, corrected for the action that was really sent: a named tuple with a
    field `action` remembers what it did last."""
    if not hasattr(state, "_replace") or not hasattr(state, "action"):
        return state
    if isinstance(state.action, Tensor):
        return state._replace(action=torch.as_tensor(action, device=state.action.device))
    return state._replace(action=action)
