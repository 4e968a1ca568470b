"""The ways in which a single observation can be strange; all but `Frozen` need images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.ood.api import Memory
from worldmodel.ood.scorer import Look, Part, present

TINY = 1e-12  # of a mean squared error, before its logarithm
SHARE = 8  # patches in the picture's height
SELDOM = 0.99  # the share of rows whose error at a place lies below that place's unit
LEAST = 0.25  # of the typical unit: no place is so still that nothing may ever happen there
LEVEL = 1e-3  # the least deviation of a picture's statistics, and what their logarithms begin at
SAME = 0.5 / 255  # less than one level of one pixel


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


class Statistics(Part):
    """Brightness, contrast and sharpness of a picture, each channel's for itself: how far they lie,
    taken together, from where those of held-out rows do. No autoencoder is asked, which draws a
    dim or a blurred picture as willingly as any.

    usual, inverse: mean [K] and inverse covariance [K, K] of held-out rows' numbers.
    """

    name = "statistics"
    needs = ("image",)
    usual: Tensor
    inverse: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("usual", torch.zeros(3 * channels))
        self.register_buffer("inverse", torch.eye(3 * channels))

    @staticmethod
    def numbers(image: Tensor) -> Tensor:
        """[B, 3 C]: means, and logarithms of deviations and of mean steps between neighbours."""
        across = (image[..., 1:] - image[..., :-1]).abs().mean((-2, -1))
        down = (image[..., 1:, :] - image[..., :-1, :]).abs().mean((-2, -1))
        mean = image.mean((-2, -1))
        spread = (image - mean[..., None, None]).square().mean((-2, -1)).sqrt()
        return torch.cat([mean, (spread + LEVEL).log(), (across + down + LEVEL).log()], -1)

    def fit(self, held: Look) -> None:
        numbers = self.numbers(present(held.image)).cpu().double()
        centred = numbers - numbers.mean(0)
        # Less than a thousandth is no difference, however still the pictures stand.
        covariance = centred.T @ centred / len(centred) + LEVEL**2 * torch.eye(len(self.usual))
        self.usual.copy_(numbers.mean(0))
        self.inverse.copy_(torch.linalg.inv(covariance))

    def forward(self, look: Look, memory: Memory) -> tuple[Tensor, Memory]:
        off = self.numbers(present(look.image)) - self.usual
        return (off @ self.inverse * off).sum(-1).clamp_min(0.0).sqrt(), {}


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
