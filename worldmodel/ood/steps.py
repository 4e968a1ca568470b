"""The ways in which the step that led to an observation can be strange, as a learned world sees it.
Each needs the capability of the world that it names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from worldmodel import tree
from worldmodel.capabilities import Surprises, Uncertain
from worldmodel.ood.api import Memory
from worldmodel.ood.pictures import WorstPatch
from worldmodel.ood.scorer import Look, Part, present
from worldmodel.types import ActionSpec

PUSH, WEAKER = 0.15, 0.1  # of the full action
MOST_GAIN, MOST_SUM = 3.0, 30.0  # standard deviations: one tick is one tick, and sums end


class Surprise(Part):
    """Nats that the observation told beyond what the world had predicted from the state before it
    and the action: normal frames of a world that moves otherwise."""

    name = "surprise"
    needs = ("before", "action")

    def __init__(self, world: Surprises[Any]) -> None:
        super().__init__()
        self._world = [world]  # in a list, so that its weights are not the part's own

    def forward(self, look: Look, memory: Memory) -> tuple[Tensor, Memory]:
        return self._world[0].surprise(
            look.before, dict(present(look.obs)), present(look.action)
        ), {}


class Drift(Part):
    """The same against what the world expected `steps` ticks ago, 0 before there is such a time:
    small errors of a step hide in its noise; several steps without an observation add them up.

    At every tick the world starts to imagine from the state at hand, and goes on with the actions
    that are really taken. After `steps` ticks what it expected meets what came:

        state_{t-n} --a_{t-n}--> . --> ... --a_{t-1}--> expected_t   against the observation at t

    So `steps` imaginations are under way at any time, each one tick older than the next; they step
    together, as one batch.
    """

    name = "drift"
    needs = ("before", "state", "action")

    def __init__(self, world: Any, steps: int) -> None:
        super().__init__()
        self._world, self.steps = [world], steps

    def memory(self, batch_size: int) -> Memory:
        first = self._world[0].initial(batch_size)
        many = tree.stack([first] * self.steps, 1)
        return {"states": many, "age": torch.zeros(batch_size)}

    def forward(self, look: Look, memory: Memory) -> tuple[Tensor, Memory]:
        world, n = self._world[0], self.steps
        oldest = tree.index(memory["states"], (slice(None), 0))  # at t - 1, as expected since t - n
        score = world.surprise(look.before, dict(present(look.obs)), look.action, oldest)
        known = (memory["age"] >= n).to(score.dtype)
        flat = tree.map(lambda x: x.flatten(0, 1), memory["states"])
        expected = world.expect(flat, present(look.action).repeat_interleave(n, 0)).state
        expected = tree.map(lambda x: x.unflatten(0, (-1, n))[:, 1:], expected)
        newest = tree.map(lambda x: x.unsqueeze(1), look.state)
        after = {"states": tree.cat([expected, newest], 1), "age": memory["age"] + 1}
        return score * known, after


class _Otherwise(Part):
    """Whether another action than the one that was sent would explain better what is seen.

    The surprise under the action sent, minus the surprise under others [K], in nats; usually below
    0. What exceeds the usual value by more than `allowance` adds up [K], what stays below wears off
    (a cumulative sum, so that small signs that go on count); the largest sum is the score.

    usual, spread: mean and standard deviation [K] of held-out rows.

    Page, "Continuous Inspection Schemes" (Biometrika 1954).
    """

    needs = ("before", "action")
    grain: ClassVar = 1.0
    allowance: ClassVar[float]  # in `spread`
    usual: Tensor
    spread: Tensor

    def __init__(self, world: Surprises[Any], count: int) -> None:
        super().__init__()
        self._world = [world]
        self.register_buffer("usual", torch.zeros(count))
        self.register_buffer("spread", torch.ones(count))

    def others(self, action: Tensor) -> Tensor:
        """Other actions [B, K, A] in place of one [B, A]."""
        raise NotImplementedError

    def gains(self, look: Look) -> Tensor:
        """Nats [B, K] by which each of the others explains better."""
        sent = present(look.action)
        actions = torch.cat([sent.unsqueeze(1), self.others(sent)], 1)
        nats = self._world[0].surprise(look.before, dict(present(look.obs)), actions)
        return nats[:, :1] - nats[:, 1:]

    def fit(self, held: Look) -> None:
        gains = self.gains(held)
        self.usual.copy_(gains.mean(0))
        self.spread.copy_(gains.std(0).clamp_min(1e-6))

    def memory(self, batch_size: int) -> Memory:
        return {"sums": torch.zeros(batch_size, len(self.usual)), "begun": torch.zeros(batch_size)}

    def forward(self, look: Look, memory: Memory) -> tuple[Tensor, Memory]:
        gains = (self.gains(look) - self.usual) / self.spread
        more = gains.clamp(-MOST_GAIN, MOST_GAIN) - self.allowance
        sums = memory["sums"] + more * memory["begun"].unsqueeze(-1)  # none led to row 0
        sums = sums.clamp(0.0, MOST_SUM)  # both floats, which the ONNX exporter needs
        return sums.amax(-1), {"sums": sums, "begun": torch.ones_like(memory["begun"])}


class Weaker(_Otherwise):
    """Whether an action a tenth weaker would explain better what is seen: a weaker motor, a heavier
    load, an action that comes late or turned round. Of a discrete one a tenth is spread over the
    other classes: a world of one-hot vectors answers between them, too."""

    name = "weaker"
    allowance = 0.5

    def __init__(self, world: Surprises[Any], action: ActionSpec) -> None:
        super().__init__(world, 1)
        weaker = (1 - WEAKER) * torch.eye(action.size)
        if action.kind == "discrete":
            weaker = torch.block_diag(*[
                torch.eye(n) if n == 1
                else (1 - WEAKER) * torch.eye(n) + WEAKER * (1 - torch.eye(n)) / (n - 1)
                for n in action.sizes
            ])  # fmt: skip
        self.register_buffer("weaker", weaker, persistent=False)

    def others(self, action: Tensor) -> Tensor:
        weaker: Tensor = self.weaker  # type: ignore[assignment]
        return (action @ weaker).unsqueeze(1)


class Pushed(_Otherwise):
    """Whether one that is pushed to either side in one of its entries would: a wind, a slope, a
    joint out of line."""

    name = "pushed"
    allowance = 1.0

    def __init__(self, world: Surprises[Any], size: int) -> None:
        super().__init__(world, 2 * size)
        self.register_buffer("pushes", PUSH * torch.eye(size), persistent=False)

    def others(self, action: Tensor) -> Tensor:
        pushes: Tensor = self.pushes  # type: ignore[assignment]
        return action.unsqueeze(1) + torch.cat([pushes, -pushes])


class Forecast(WorstPatch):
    """The worst patch of the picture that the world expected after the last action, against the
    one that came. keys: of the images, in the order of `Look.image`."""

    name = "forecast"
    needs = ("image", "before", "action")

    def __init__(self, world: Any, keys: Sequence[str]) -> None:
        super().__init__()
        self._world, self.keys = [world], list(keys)

    def image(self, look: Look) -> Tensor:
        world = self._world[0]
        pictures = world.decode(world.expect(look.before, look.action).state)
        shown = torch.cat([pictures[key] for key in self.keys], -1).permute(0, 3, 1, 2)
        return present(look.image) - shown


class Disagreement(Part):
    """How unsure the world was of the step that led here, in its own unit: transitions that were
    never tried."""

    name = "disagreement"
    needs = ("before", "action")

    def __init__(self, world: Uncertain[Any]) -> None:
        super().__init__()
        self._world = [world]

    def memory(self, batch_size: int) -> Memory:
        return {"begun": torch.zeros(batch_size)}

    def forward(self, look: Look, memory: Memory) -> tuple[Tensor, Memory]:
        spread = self._world[0].uncertainty(look.before, present(look.action))
        return spread * memory["begun"], {"begun": torch.ones_like(spread)}  # none led to row 0
