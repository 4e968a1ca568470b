"""The true equations of some environments as worlds, for checking planners: no planner can blame
its model here, and every other world can be compared with what is right.

Tables of any environment that has one (worldmodel.envs.table), Pendulum-v1 and CartPole-v1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel.envs.table import WorldTable
from worldmodel.models.tabular import TabularState, discrete_sizes, index_of
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec, Prediction


class TableOracle:
    """The true table of a small world that never changes; `step` draws an outcome of each pair
    with torch's generator.

    spec: one discrete observation of S classes and one discrete action of A. Raises ValueError
    where the table is of another size, or has several phases.
    """

    def __init__(
        self,
        spec: EnvSpec,
        table: WorldTable,
        discount: float = 1.0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.key, self.feat_size, self.actions = discrete_sizes(spec)
        given, wanted = table.next.shape[:3], (1, self.feat_size, self.actions)
        if given != wanted:
            raise ValueError(
                f"The table has {tuple(given)} phases, states and actions; needed: {wanted}."
            )
        self.discount, self.feat_bound = discount, 1.0
        self.deterministic = bool((table.probability.max(-1) == 1.0).all())
        arrays = (table.next, table.probability, table.reward, table.terminal)
        # [S A, K] each.
        self.next, self.probability, self.reward, self.terminal = (
            torch.from_numpy(x[0]).flatten(0, 1).to(device) for x in arrays
        )

    def initial(self, batch_size: int) -> TabularState:
        """No state yet: `step` needs one that was observed."""
        return TabularState(torch.zeros(batch_size, self.feat_size, device=self.next.device))

    def observe(
        self, state: TabularState, obs: dict[str, Tensor], action: Tensor, is_first: Tensor
    ) -> TabularState:
        """The state that the observation [B, S] shows; it hides nothing."""
        return TabularState(obs[self.key].to(state.place))

    def step(self, state: TabularState, action: Tensor) -> Prediction[TabularState]:
        """One outcome of each action [B, A]. After an end the state stays where it ended."""
        pairs = index_of(state) * self.actions + action.argmax(-1)
        chosen = torch.multinomial(self.probability[pairs], 1)  # [B, 1]
        after, reward, ends = (
            x[pairs].gather(-1, chosen).squeeze(-1) for x in (self.next, self.reward, self.terminal)
        )
        place = torch.nn.functional.one_hot(after.long(), self.feat_size)
        values = (x.to(state.place) for x in (place, reward, ~ends))
        new, reward, cont = values
        return Prediction(TabularState(new), reward, cont)

    def decode(self, state: TabularState) -> dict[str, Tensor]:
        """The observation that belongs to a state, one-hot [..., S]."""
        return {self.key: state.place}

    def feat(self, state: TabularState) -> Tensor:
        """The same [..., S]."""
        return state.place


class Motion(NamedTuple):
    """values: [..., N] positions and speeds, as the equations of an environment have them."""

    values: Tensor


class Pendulum:
    """gymnasium's Pendulum-v1 with its numbers as the vector "state": cos, sin and speed.

    Motion: angle (0 is upright) and angular velocity. It never ends.
    """

    spec = EnvSpec({"state": ObsSpec("vector", (3,))}, ActionSpec("continuous", (1,)))
    feat_size, feat_bound = 3, 8.0
    deterministic = True

    def __init__(self, discount: float = 1.0, device: torch.device | str = "cpu") -> None:
        self.discount, self.device = discount, torch.device(device)

    def initial(self, batch_size: int) -> Motion:
        """Upright and at rest, [B, 2]."""
        return Motion(torch.zeros(batch_size, 2, device=self.device))

    def observe(
        self, state: Motion, obs: dict[str, Tensor], action: Tensor, is_first: Tensor
    ) -> Motion:
        """The motion that the observation [B, 3] shows."""
        cos, sin, speed = obs["state"].unbind(-1)
        return Motion(torch.stack([torch.atan2(sin, cos), speed], -1))

    def step(self, state: Motion, action: Tensor) -> Prediction[Motion]:
        """An action of 1 is the greatest torque, 2."""
        angle, speed = state.values.unbind(-1)
        torque = 2.0 * self.spec.action.clip(action).squeeze(-1)
        turned = torch.remainder(angle + torch.pi, 2 * torch.pi) - torch.pi
        cost = turned.square() + 0.1 * speed.square() + 0.001 * torque.square()
        speed = (speed + 0.05 * (15.0 * torch.sin(angle) + 3.0 * torque)).clamp(-8.0, 8.0)
        motion = Motion(torch.stack([angle + 0.05 * speed, speed], -1))
        return Prediction(motion, -cost, torch.ones_like(cost))

    def decode(self, state: Motion) -> dict[str, Tensor]:
        """The observation [..., 3] of a motion."""
        return {"state": self.feat(state)}

    def feat(self, state: Motion) -> Tensor:
        """The same."""
        angle, speed = state.values.unbind(-1)
        return torch.stack([torch.cos(angle), torch.sin(angle), speed], -1)


class CartPole:
    """gymnasium's CartPole-v1 with its numbers as the vector "state".

    Motion: position, velocity, the pole's angle (0 is upright) and angular velocity. Each step is
    worth 1, the one that ends the episode included.
    """

    spec = EnvSpec({"state": ObsSpec("vector", (4,))}, ActionSpec("discrete", (2,)))
    feat_size, feat_bound = 4, float("inf")
    deterministic = True

    def __init__(self, discount: float = 1.0, device: torch.device | str = "cpu") -> None:
        self.discount, self.device = discount, torch.device(device)

    def initial(self, batch_size: int) -> Motion:
        """Upright and at rest, [B, 4]."""
        return Motion(torch.zeros(batch_size, 4, device=self.device))

    def observe(
        self, state: Motion, obs: dict[str, Tensor], action: Tensor, is_first: Tensor
    ) -> Motion:
        """The motion is the observation [B, 4]."""
        return Motion(obs["state"])

    def step(self, state: Motion, action: Tensor) -> Prediction[Motion]:
        """Action 0 pushes to the left with 10 N, action 1 to the right, for 0.02 s. Barto, Sutton
        and Anderson (1983), with the masses and lengths of gymnasium."""
        x, velocity, angle, turn = state.values.unbind(-1)
        force = 10.0 * (action[..., 1] - action[..., 0])
        cos, sin = torch.cos(angle), torch.sin(angle)
        push = (force + 0.05 * turn.square() * sin) / 1.1
        turning = (9.8 * sin - cos * push) / (0.5 * (4.0 / 3.0 - 0.1 * cos.square() / 1.1))
        pushing = push - 0.05 * turning * cos / 1.1
        new = (x + 0.02 * velocity, velocity + 0.02 * pushing, angle + 0.02 * turn)
        motion = torch.stack([*new, turn + 0.02 * turning], -1)
        stands = (new[0].abs() <= 2.4) & (new[2].abs() <= 12 * torch.pi / 180)
        return Prediction(Motion(motion), torch.ones_like(x), stands.to(x))

    def decode(self, state: Motion) -> dict[str, Tensor]:
        """The observation [..., 4]."""
        return {"state": state.values}

    def feat(self, state: Motion) -> Tensor:
        """The same."""
        return state.values
