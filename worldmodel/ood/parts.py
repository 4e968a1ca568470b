"""The ways in which an observation can be strange: of single pictures, and of a world's steps.

Which parts a detector has depends on what there is to look at. Those of pictures need images. Those
of steps need a learned world with the capability that each of them names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel import tree
from worldmodel.capabilities import Surprises, Uncertain
from worldmodel.ood.api import Memory
from worldmodel.ood.scorer import Look, Part, present

TINY = 1e-12  # of a mean squared error, before its logarithm
SHARE = 8  # patches in the picture's height
SELDOM = 0.99  # the share of rows whose error at a place lies below that place's unit
LEAST = 0.25  # of the typical unit: no place is so still that nothing may ever happen there
SAME = 0.5 / 255  # less than one level of one pixel
PUSH = 0.15  # of the full action
MOST_GAIN, MOST_SUM = 3.0, 30.0  # standard deviations: one tick is one tick, and sums end


# Of single pictures.


def mean_error(look: Look) -> Tensor:
    """The autoencoder's squared error [B], averaged over all pixels."""
    return present(look.error).square().flatten(1).mean(-1)


def code_length(look: Look) -> Tensor:
    """KL(q(z | x) || N(0, 1)) [B] of the autoencoder's code, in nats."""
    mean, std = present(look.mean), present(look.std)
    return 0.5 * (mean.square() + std.square() - 2 * std.log() - 1).sum(-1)


class Reconstruction(Part):
    """The baseline: the autoencoder's mean squared error."""

    name = "reconstruction"
    needs = ("error",)

    def forward(self, look: Look, memory: Memory) -> tuple[Tensor, Memory]:
        return mean_error(look), {}


class _TwoSided(Part):
    """How far a number of each row lies from its usual value, above or below.

    usual: median of held-out rows.
    """

    usual: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("usual", torch.zeros(()))

    def number(self, look: Look) -> Tensor:
        """[B]."""
        raise NotImplementedError

    def fit(self, held: Look) -> None:
        self.usual.copy_(self.number(held).median())

    def forward(self, look: Look, memory: Memory) -> tuple[Tensor, Memory]:
        return (self.number(look) - self.usual).abs(), {}


class Typicality(_TwoSided):
    """Of the log error: a frame in which there is less to draw than ever is strange because it is
    drawn too well."""

    name = "typicality"
    needs = ("error",)

    def number(self, look: Look) -> Tensor:
        return (mean_error(look) + TINY).log()


class Divergence(_TwoSided):
    """Of the autoencoder's KL in nats, apart from its error, lest the two cancel."""

    name = "kl"
    needs = ("mean", "std")

    def number(self, look: Look) -> Tensor:
        return code_length(look)


def patch_errors(error: Tensor) -> Tensor:
    """Squared error [B, h, w] of each patch of an error image [B, C, H, W], averaged."""
    side = max(2, error.shape[-2] // SHARE)
    squared = error.square().mean(1, keepdim=True)
    return F.avg_pool2d(squared, side, max(1, side // 2)).squeeze(1)


class WorstPatch(Part):
    """The worst patch of the autoencoder's error: small things vanish in the mean of all pixels.

    A patch is a square of an eighth of the picture's height, half overlapping its neighbours.
    Where the robot moves, the error of a patch is large on ordinary days too; so each place has
    its own `unit` [h, w], the error that it seldom exceeds.
    """

    name = "patch"
    needs: tuple[str, ...] = ("error",)
    unit: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("unit", torch.zeros(0, 0))

    def image(self, look: Look) -> Tensor:
        """The error image [B, C, H, W]."""
        return present(look.error)

    def fit(self, held: Look) -> None:
        errors = patch_errors(self.image(held))
        unit = torch.quantile(errors.flatten(1), SELDOM, dim=0).view(errors.shape[1:])
        self.unit = unit.clamp_min(LEAST * float(unit.median())).clamp_min(1e-9)

    def places(self, look: Look) -> Tensor:
        """How strange each place is [B, h, w], in its own unit."""
        return patch_errors(self.image(look)) / self.unit

    def forward(self, look: Look, memory: Memory) -> tuple[Tensor, Memory]:
        return self.places(look).flatten(1).amax(-1), {}


class Frozen(Part):
    """How many ticks in a row an input has been the same, to the last bit: a camera or sensor that
    stands still gives normal values, and only that they do not change gives it away.

    field: of `Look`, "image" or "vector". shape: of one row's.
    """

    name = "frozen"
    grain: ClassVar = 2.0  # one or two repetitions happen

    def __init__(self, field: str, shape: Sequence[int]) -> None:
        super().__init__()
        self.needs, self.shape = (field,), tuple(shape)
        self.least = SAME if field == "image" else 0.0

    def memory(self, batch_size: int) -> Memory:
        return {
            "last": torch.zeros(batch_size, *self.shape),
            "begun": torch.zeros(batch_size),
            "run": torch.zeros(batch_size),
        }

    def forward(self, look: Look, memory: Memory) -> tuple[Tensor, Memory]:
        value = present(getattr(look, self.needs[0]))
        change = (value - memory["last"]).abs().flatten(1).amax(-1)
        same = (change <= self.least).to(value.dtype) * memory["begun"]
        run = same * (memory["run"] + 1)
        return run, {"last": value, "begun": torch.ones_like(run), "run": run}


# Of a world's steps.


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
    load, an action that comes late or turned round."""

    name = "weaker"
    allowance = 0.5

    def __init__(self, world: Surprises[Any]) -> None:
        super().__init__(world, 1)

    def others(self, action: Tensor) -> Tensor:
        return 0.9 * action.unsqueeze(1)


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
