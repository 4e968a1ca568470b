"""Goals by picture: the reward is how near an observation is to one that somebody likes.

Distance is measured between what the model makes of each observation alone, without a past: the
logits of its posterior after one frame that begins an episode (the means, for gaussian latents),
each group centred. It is the root of the mean squared difference. On Pendulum's pictures it orders
frames by their angle from the goal better than anything else that was tried (docs/REWARDS.md).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.apps.rewards.experience import Experience
from worldmodel.config import ConfigError
from worldmodel.types import EnvSpec

FRAME = re.compile(r"(\d+):(\d+)")
CHUNK = 512  # observations looked at together


@dataclass(frozen=True)
class Goals:
    """scale: 0 makes the reward minus the distance; otherwise it is exp(-distance / scale)."""

    scale: float = 0.0

    def reward(self, distance: np.ndarray) -> np.ndarray:
        """Of distances [...] to the nearest goal."""
        return np.exp(-distance / self.scale) if self.scale else -distance


def goal_labels(what: str, experience: Experience, model: Any, goals: Goals) -> list[np.ndarray]:
    """The reward float64 [T] of every row of every episode: its nearness to the nearest goal.

    Raises ConfigError where a goal is neither a picture nor a frame of the replay.
    """
    targets = look(model, goal_observations(what, experience))
    labels = []
    for number in range(len(experience)):
        rows = experience.episode(number)
        seen = look(model, {key: rows[key] for key in experience.spec.seen})
        apart = (seen[:, None] - targets[None]).square().mean(-1).sqrt().amin(1)
        labels.append(goals.reward(apart.double().cpu().numpy()))
    return labels


def goal_observations(what: str, experience: Experience) -> dict[str, np.ndarray]:
    """The goals' observations [G, ...] by key; pictures are scaled to the run's own size."""
    parts = [part.strip() for part in what.split(",")]
    spec = experience.spec
    found: list[dict[str, Any]] = []
    for part in parts:
        named = FRAME.fullmatch(part)
        if named:
            episode, step = (int(n) for n in named.groups())
            experience.check(episode, step, f"The goal '{part}'")
            found.append(dict(experience.observation(episode, step)))
        else:
            found.append(_picture(part, spec))
    return {key: np.stack([one[key] for one in found]) for key in spec.seen}


@torch.no_grad()
def look(model: Any, obs: dict[str, np.ndarray]) -> Tensor:
    """What the model makes of observations [N, ...] without a past: float32 [N, S * K or S]."""
    device = next(model.parameters()).device
    parts = []
    count = len(next(iter(obs.values())))
    for i in range(0, count, CHUNK):
        part = {k: torch.from_numpy(v[i : i + CHUNK]).to(device) for k, v in obs.items()}
        embed = model.encoder(part).unsqueeze(1)  # [n, 1, E]
        size = len(embed)
        action = torch.zeros(size, 1, model.spec.action.size, device=device)
        first = torch.ones(size, 1, dtype=torch.bool, device=device)
        _, params = model.core.observe(model.initial(size), embed, action, first)
        params = params.squeeze(1).float()
        params = params[..., 0] if model.core.gaussian else params - params.mean(-1, keepdim=True)
        parts.append(params.flatten(1))
    return torch.cat(parts)


def _picture(name: str, spec: EnvSpec) -> dict[str, np.ndarray]:
    """A picture as the run would have seen it, uint8 [H, W, C], by its key."""
    if list(spec.seen) != spec.keys("image") or len(spec.seen) != 1:
        raise ConfigError(
            f"The goal '{name}' is a picture, but this run sees {sorted(spec.seen)}. Name frames "
            "of its replay instead, as goal:EPISODE:STEP."
        )
    if not Path(name).is_file():
        raise ConfigError(
            f"There is no picture '{name}' (looked in '{Path.cwd()}'). A frame of the replay is "
            "named goal:EPISODE:STEP."
        )
    import cv2  # loads slowly

    picture: Any = cv2.imread(name, cv2.IMREAD_COLOR)
    if picture is None:
        raise ConfigError(f"'{name}' is no picture that can be read. Known: PNG, JPEG and others.")
    (key,) = spec.keys("image")
    height, width, channels = spec.obs[key].shape
    if channels not in (1, 3):
        raise ConfigError(
            f"The run's pictures have {channels} channels, so no file can show one. Name frames of "
            "its replay instead, as goal:EPISODE:STEP."
        )
    if picture.shape[:2] != (height, width):
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    code = cv2.COLOR_BGR2RGB if channels == 3 else cv2.COLOR_BGR2GRAY
    return {key: cv2.cvtColor(picture, code).reshape(height, width, channels)}
