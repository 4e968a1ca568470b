"""A square that moves over a grey ground, and a small world model with random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from worldmodel import seeding
from worldmodel.models.vae import VAEConfig
from worldmodel.ood.api import Track
from worldmodel.ood.config import DetectorConfig
from worldmodel.rssm import ModelConfig, WorldModel
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec

SPEC = EnvSpec({"image": ObsSpec("image", (32, 32, 3))}, ActionSpec("continuous", (1,)))
STEPS = 12


def tiny_model(seed: int = 0, members: int = 0) -> WorldModel:
    with seeding.Stream(seed):
        config = ModelConfig(
            deter=16, hidden=8, groups=2, classes=4, depth=8, units=8, mults=[1, 1, 1]
        )
        config.ensemble.members = members
        return WorldModel(SPEC, config).requires_grad_(False)


def tiny_config(**changes: Any) -> DetectorConfig:
    given: dict[str, Any] = {
        "vae": VAEConfig(latent=4, depths=[8, 8, 8]), "updates": 300, "rows": 512,
        "lr": 3e-3, "confidence": 0.0,
    }  # fmt: skip
    return DetectorConfig(**(given | changes))


def frame(row: float, column: float, rng: np.random.Generator) -> np.ndarray:
    image = np.full((32, 32, 3), 90.0) + rng.normal(0, 2, (32, 32, 3))
    image[int(row) : int(row) + 8, int(column) : int(column) + 8] = (220, 60, 60)
    return np.clip(image, 0, 255).astype(np.uint8)


def tracks(count: int, seed: int, model: WorldModel | None = None) -> list[Track]:
    """Episodes in which the square moves to the right as the action says, with a model's states."""
    rng = np.random.default_rng(seed)
    out = []
    for number in range(count):
        action = rng.uniform(-1, 1, (STEPS, 1)).astype(np.float32)
        action[0] = 0
        place = np.clip(rng.uniform(4, 20) + np.cumsum(3 * action), 0, 24)
        row = rng.integers(4, 20)
        images = np.stack([frame(row, column, rng) for column in place])
        state = None
        if model is not None:
            first = torch.arange(STEPS)[None] == 0
            with seeding.Stream(number):
                states = model.observe(
                    model.initial(1),
                    {"image": torch.from_numpy(images)[None]},
                    torch.from_numpy(action)[None],
                    first,
                )
            state = states.map(lambda x: x[0])
        out.append(Track({"image": images}, action, state))
    return out
