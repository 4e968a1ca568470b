"""Small specifications, models and random rows for tests of learned worlds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel import tree
from worldmodel.rssm import ModelConfig
from worldmodel.rssm.state import LatentState
from worldmodel.types import MASK_KEY, ActionSpec, Batch, EnvSpec, ObsSpec

CONTINUOUS = ActionSpec("continuous", (2,))
DISCRETE = ActionSpec("discrete", (3,))
IMAGE = ObsSpec("image", (32, 32, 3))
VECTOR = ObsSpec("vector", (5,))
CHOICES = ObsSpec("discrete", (5,), (2, 3))
MASK = ObsSpec("vector", (3,))


def spec_of(action: ActionSpec = CONTINUOUS, **obs: ObsSpec) -> EnvSpec:
    return EnvSpec(obs or {"image": IMAGE}, action)


MIXED = spec_of(
    DISCRETE, **{"image": IMAGE, "wrist": IMAGE, "v": VECTOR, "c": CHOICES, MASK_KEY: MASK}
)
SPECS = {
    "image": spec_of(image=IMAGE),
    "vector": spec_of(v=VECTOR),
    "discrete": spec_of(DISCRETE, c=CHOICES),
    "multidiscrete": spec_of(ActionSpec("discrete", (2, 3)), v=VECTOR),
    "mixed": MIXED,
}


def tiny(**overrides: Any) -> ModelConfig:
    """A model of a few thousand weights, small in every part."""
    sizes: dict[str, Any] = {
        "deter": 16, "hidden": 8, "groups": 3, "classes": 4, "depth": 4, "units": 16, "blocks": 2,
        "mults": [1, 2, 2],
    }  # fmt: skip
    return ModelConfig(**{**sizes, **overrides})


def one_hots(generator: torch.Generator, lead: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
    parts = [
        torch.eye(n)[torch.randint(n, lead, generator=generator)]
        for n in sizes
    ]  # fmt: skip
    return torch.cat(parts, -1)


def random_batch(spec: EnvSpec, batch: int = 3, length: int = 5, seed: int = 0) -> Batch:
    """Rows of random numbers; every sequence begins an episode, and the first one holds an
    episode's end at row 2 (terminal), the second at row 3 (truncated)."""
    g = torch.Generator().manual_seed(seed)
    lead = (batch, length)
    obs: dict[str, Tensor] = {}
    for key, s in spec.obs.items():
        if s.kind == "image":
            obs[key] = torch.randint(256, (*lead, *s.shape), generator=g, dtype=torch.uint8)
        elif s.kind == "discrete":
            obs[key] = one_hots(g, lead, s.sizes)
        elif key == MASK_KEY:
            obs[key] = one_hots(g, lead, s.shape)
        else:
            obs[key] = 3 * torch.randn(*lead, *s.shape, generator=g)
    if spec.action.kind == "continuous":
        action = 2 * torch.randn(*lead, spec.action.size, generator=g)
    else:
        action = one_hots(g, lead, spec.action.sizes)
    first, last, terminal = (torch.zeros(lead, dtype=torch.bool) for _ in range(3))
    first[:, 0] = True
    if batch > 1 and length > 4:
        last[0, 2] = terminal[0, 2] = first[0, 3] = True
        last[1, 3] = first[1, 4] = True
    action = action * (~first).unsqueeze(-1)
    reward = torch.randn(lead, generator=g) * ~first
    return Batch(obs, action, reward, first, last, terminal)


def scramble(module: nn.Module, seed: int = 0, scale: float = 0.3) -> None:
    """Move every weight, so that no zero of the initialisation hides a gradient."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn(p.shape, generator=g))


def random_state(config: ModelConfig, batch: int, seed: int = 0) -> LatentState:
    """A state such as sequences leave behind."""
    g = torch.Generator().manual_seed(seed)
    deter = torch.tanh(torch.randn(batch, config.deter, generator=g))
    if config.latent == "gaussian":
        return LatentState(deter, torch.randn(batch, config.groups, 1, generator=g))
    index = torch.randint(config.classes, (batch, config.groups), generator=g)
    return LatentState(deter, torch.eye(config.classes)[index])


def double(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def learners(loss: Tensor, module: nn.Module, groups: dict[str, str]) -> set[str]:
    """The groups of weights that get gradient from a loss. groups: prefix of the weights' names
    -> name of the group, the first prefix that fits."""
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True, retain_graph=True)
    found = set()
    for (name, _), grad in zip(named, grads, strict=True):
        if grad is not None and grad.abs().max() > 0:
            found.add(next(group for prefix, group in groups.items() if name.startswith(prefix)))
    return found


def check_each_action(world: Any, state: Any, obs: dict[str, Tensor], size: int) -> None:
    """A world says of several actions at once what it says of each."""
    count = tree.batch_size(state)
    actions = 2 * torch.rand(count, 3, size) - 1
    for believed in (None, tree.map(torch.clone, world.initial(count))):
        with torch.no_grad():
            found = world.surprise(state, obs, actions, believed)
            alone = [world.surprise(state, obs, actions[:, k], believed) for k in range(3)]
        torch.testing.assert_close(found, torch.stack(alone, 1))
        assert found.std(1).max() > 0  # the actions tell
