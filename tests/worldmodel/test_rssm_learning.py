"""A world model that learns a tiny deterministic world by heart, and then dreams it correctly."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tests.model_batches import spec_of, tiny
from worldmodel.optim import LaProp, OptimConfig
from worldmodel.rssm import WorldModel
from worldmodel.types import ActionSpec, Batch, ObsSpec

PLACES, GOAL, SEEN, AHEAD = 6, 4, 4, 20
SPEC = spec_of(ActionSpec("discrete", (3,)), image=ObsSpec("image", (32, 32, 1)))


def walk(batch: int, length: int, generator: torch.Generator) -> Batch:
    """A bright square at one of six places in a ring; actions move it back, not at all or on.
    To arrive at the goal, or to stay there, earns 1."""
    move = torch.randint(3, (batch, length), generator=generator)
    start = torch.randint(PLACES, (batch, 1), generator=generator)
    move[:, 0] = 1
    place = (start + (move - 1).cumsum(1)) % PLACES
    image = torch.zeros(batch, length, 32, 32, 1, dtype=torch.uint8)
    for p in range(PLACES):
        row, column = 4 + 14 * (p // 3), 1 + 10 * (p % 3)
        image[place == p, row : row + 10, column : column + 10] = 255
    first = torch.zeros(batch, length, dtype=torch.bool)
    first[:, 0] = True
    never = torch.zeros_like(first)
    action = torch.eye(3)[move] * (~first).unsqueeze(-1)
    reward = (place == GOAL).float() * ~first
    return Batch({"image": image}, action, reward, first, never, never)


class Dreamt(NamedTuple):
    """Shares of what was right: images (every pixel on its side of grey) and rewards (within
    0.1), over all imagined steps and at the last one."""

    image: float
    last_image: float
    reward: float
    last_reward: float


@torch.no_grad()
def dream(model: WorldModel, truth: Batch, action: Tensor) -> Dreamt:
    """See a few rows, then imagine the rest under these actions."""
    seen = {k: v[:, :SEEN] for k, v in truth.obs.items()}
    states = model.observe(
        model.initial(truth.shape[0]), seen, truth.action[:, :SEEN], truth.is_first[:, :SEEN]
    )
    imagined, _ = model.imagine(states.map(lambda x: x[:, -1]), action, AHEAD)
    imagined = imagined.map(lambda x: x[:, 1:])
    light = model.decode(imagined)["image"] > 0.5
    image = (light == (truth.obs["image"][:, SEEN:] > 127)).flatten(2).all(-1).float()
    reward = ((model.reward(imagined.feat) - truth.reward[:, SEEN:]).abs() < 0.1).float()
    shares = (image, image[:, -1], reward, reward[:, -1])
    return Dreamt(*(x.mean().item() for x in shares))


def test_a_learned_world_is_right_20_steps_ahead() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = WorldModel(
        SPEC,
        # No free nats: this world has nothing to be unsure of but where it starts.
        tiny(deter=64, hidden=32, groups=4, classes=8, depth=8, units=32, free_nats=0.0,
             convolution="strided", centre_images=True),
    )  # fmt: skip
    optim = LaProp([("model", model)], OptimConfig(lr=4e-3, warmup=20))
    truth = walk(64, SEEN + AHEAD, torch.Generator().manual_seed(1))
    actions = truth.action[:, SEEN:]
    before = dream(model, truth, actions)
    assert before.image < 0.1
    found = before
    for _ in range(20):
        for _ in range(25):
            loss, _ = model.loss(walk(16, 10, generator))
            optim.step(loss)
        found = dream(model, truth, actions)
        if min(found) > 0.97:
            break
    assert min(found) > 0.97, found
    # It was the actions that told it: with those of other sequences it is right by chance.
    other = dream(model, truth, actions.roll(1, 0))
    assert other.image < 0.5
    assert other.last_image < 0.4
