"""How World Models acts: the state that acting carries, and a step that can be exported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from agents.world_models.controller import actions_of, outputs
from worldmodel.models.mdnrnn import VMState, VMWorld
from worldmodel.types import MASK_KEY, ActionSpec


class ActState(NamedTuple):
    """What acting carries: the world's state, the last action [B, A], and which policy plays each
    environment's episode [B] (see `Trials`)."""

    latent: VMState
    action: Tensor
    job: Tensor


class Certain:
    """A distribution over encoded actions [..., A] that always gives these."""

    def __init__(self, action: Tensor) -> None:
        self._action = action

    def sample(self) -> Tensor:
        return self._action

    def mode(self) -> Tensor:
        return self._action


class Tick(nn.Module):
    """C as a pure function of the observation and the state; see `Agent.tick`."""

    controller: Tensor

    def __init__(
        self, world: VMWorld, controller: Tensor, action: ActionSpec, one_sided: Sequence[int]
    ) -> None:
        super().__init__()
        self.world, self.action, self.one_sided = world, action, list(one_sided)
        self.register_buffer("controller", controller)

    def forward(
        self, obs: dict[str, Tensor], state: ActState, is_first: Tensor
    ) -> tuple[Tensor, ActState]:
        mean, _ = self.world.encode(obs[self.world.key])
        latent = self.world.remember(state.latent, mean, state.action, is_first)
        values = outputs(self.controller, self.world.feat(latent))
        action = actions_of(values, self.action, self.one_sided, obs.get(MASK_KEY))
        return action, ActState(latent, action, state.job)
