"""Runs any agent tick by tick, with the detector of its run where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.base import Agent, check_mode
from worldmodel.ood.api import Detector, Score
from worldmodel.types import LatentState


class AgentEngine:
    """An agent of `agents.base`, as it is; satisfies `agents.deploy.brain.Engine`.

    mode: "mode" or "sample". The detector is asked after the agent has filtered the observation.
    """

    def __init__(self, agent: Agent, detector: Detector | None = None, mode: str = "mode") -> None:
        check_mode(mode)
        self.agent, self.detector, self.mode = agent, detector, mode

    def initial(self, batch_size: int) -> Any:
        """The agent's first state."""
        return self.agent.initial(batch_size)

    @torch.inference_mode()
    def step(
        self, obs: Mapping[str, np.ndarray], state: Any, is_first: np.ndarray, sent: np.ndarray
    ) -> tuple[np.ndarray, Any, Score | None]:
        """One action, and the score of what led to it."""
        seen = {key: value for key, value in obs.items() if key != "time_stamp"}
        sent = np.where(is_first[:, None], 0, sent).astype(np.float32)
        state = told(state, sent)
        action, state, extras = self.agent.act({**seen, "is_first": is_first}, state, self.mode)
        if self.detector is None:
            return action, state, None
        latent = extras.get("latent")
        score = self.detector.score({**obs, "is_first": is_first}, latent, sent)
        return action, state, score

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
    def predict(self, state: Any, sent: np.ndarray) -> dict[str, np.ndarray] | None:
        """One step of the agent's model from its latent state, where it has both."""
        latent, model = getattr(state, "latent", None), self.agent.model
        if not isinstance(latent, LatentState) or not hasattr(model, "decode"):
            return None
        foretold = model.step(latent, torch.as_tensor(sent, device=latent.deter.device))
        seen = {key: value.cpu().numpy() for key, value in model.decode(foretold.state).items()}
        return seen | {"reward": foretold.reward.cpu().numpy()}


def told(state: Any, action: np.ndarray) -> Any:
    """The state of a policy, corrected for the action that was really sent: a named tuple with a
    field `action` remembers what it did last."""
    if not hasattr(state, "_replace") or not hasattr(state, "action"):
        return state
    if isinstance(state.action, Tensor):
        return state._replace(action=torch.as_tensor(action, device=state.action.device))
    return state._replace(action=action)
