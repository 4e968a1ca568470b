"""The networks of `worldmodel.models.latent`: SimNorm, blocks, and the encoder of observations."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldmodel.accel.mish import norm_mish
from worldmodel.config import ConfigError, check_ranges
from worldmodel.types import EnvSpec


@dataclass
class LatentConfig:
    """latent: F, the numbers of z. group: how many of them sum to 1. encoder_units,
    encoder_layers: of the MLP from vectors to z, its last layer included. units: M, of the two
    hidden layers of every other MLP. channels: of the convolutions. frames: images that are seen
    together. shift: pixels by which an image is moved at random while learning. bins: of predicted
    rewards. ends: whether episodes may terminate; where they never do, a head is saved. discount:
    of one step; published: (L/5 - 1) / (L/5) within [0.95, 0.995] for episodes of L agent steps.
    rho: weight of each step of a rollout compared with the one before. consistency_scale,
    reward_scale, end_scale: weights of the losses. decoder: one that shows what latents look like
    is trained beside the world, which learns nothing from it."""

    latent: int = 512
    group: int = 8
    encoder_units: int = 256
    encoder_layers: int = 2
    units: int = 512
    channels: int = 32
    frames: int = 3
    shift: int = 3
    bins: int = 101
    ends: bool = True
    discount: float = 0.99
    rho: float = 0.5
    consistency_scale: float = 20.0
    reward_scale: float = 0.1
    end_scale: float = 1.0
    decoder: bool = False

    def __post_init__(self) -> None:
        width, weight = (1, 1 << 16), (0, 1e6)
        check_ranges(self, {
            "latent": width, "group": width, "encoder_units": width, "units": width,
            "encoder_layers": (1, 64), "channels": width, "frames": (1, 64), "shift": (0, 64),
            "bins": (2, 1 << 12), "discount": (0, 1), "rho": (0, 1),
            "consistency_scale": weight, "reward_scale": weight, "end_scale": weight,
        })  # fmt: skip
        if self.latent % self.group:
            raise ConfigError(
                f"latent is {self.latent} and group {self.group}: z is made of whole groups. Give "
                "a latent that is a multiple of the group."
            )


def sim_norm(x: Tensor, group: int) -> Tensor:
    """The softmax of each group of neighbours in [..., F]."""
    # In small groups PyTorch's own softmax takes five times as long on a CPU.
    x = x.float().unflatten(-1, (-1, group))
    e = (x - x.detach().amax(-1, keepdim=True)).exp()
    return (e / e.sum(-1, keepdim=True)).flatten(-2)


def linear(features_in: int, features_out: int) -> nn.Linear:
    """Weights of a normal distribution of deviation 0.02, biases of 0."""
    layer = nn.Linear(features_in, features_out)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """mish(LayerNorm(linear)): [..., in] -> [..., out]."""

    def __init__(self, features_in: int, features_out: int) -> None:
        super().__init__()
        self.linear, self.norm = linear(features_in, features_out), nn.LayerNorm(features_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.linear(x))

    def after(self, x: Tensor) -> Tensor:
        """What follows the linear map."""
        return norm_mish(x, self.norm.weight, self.norm.bias)


class MLP(nn.Module):
    """Two blocks of M units and a linear layer: [..., in] -> [..., out]."""

    def __init__(self, features_in: int, units: int, features_out: int) -> None:
        super().__init__()
        self.first, self.second = Block(features_in, units), Block(units, units)
        self.last = linear(units, features_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.first.linear(x))

    def after(self, x: Tensor) -> Tensor:
        """What follows the first linear map."""
        out: Tensor = self.last(self.second(self.first.after(x)))
        return out


class LatentEncoder(nn.Module):
    """Vectors and one-hots side by side [..., N], and images on top of each other
    [..., H, W, C * frames], to z; the mean of both where there are both. Raises ConfigError for
    observations with neither, and for images of several sizes."""

    def __init__(self, spec: EnvSpec, config: LatentConfig) -> None:
        super().__init__()
        self.group = config.group
        self.flat = spec.keys("vector") + spec.keys("discrete")
        self.images = spec.keys("image")
        if not self.flat and not self.images:
            raise ConfigError(
                "The observation has no image and no vector to learn from; keys: "
                f"{sorted(spec.obs) or 'none'}. Give the environment one, or set env.pixels=true."
            )
        if self.flat:
            size = sum(spec.obs[key].shape[0] for key in self.flat)
            widths = [size] + [config.encoder_units] * (config.encoder_layers - 1)
            blocks = [Block(a, b) for a, b in itertools.pairwise(widths)]
            last = linear(widths[-1], config.latent), nn.LayerNorm(config.latent)
            self.vectors = nn.Sequential(*blocks, *last)
        if self.images:
            shapes = [spec.obs[key].shape for key in self.images]
            if len({shape[:2] for shape in shapes}) > 1:
                raise ConfigError(
                    f"The images {self.images} have several sizes: {shapes}. This encoder lays "
                    "them on top of each other; leave some out with env.keys=[...]."
                )
            channels = config.frames * sum(shape[2] for shape in shapes)
            height, width = shapes[0][:2]
            self.pictures = convolutions(height, width, channels, config.channels, config.latent)

    def forward(self, flat: Tensor | None, picture: Tensor | None) -> Tensor:
        parts = []
        if flat is not None:
            parts.append(sim_norm(self.vectors(flat), self.group))
        if picture is not None:
            lead = picture.shape[:-3]
            x = picture.flatten(0, -4).permute(0, 3, 1, 2).float() / 255 - 0.5
            parts.append(sim_norm(self.pictures(x).unflatten(0, lead), self.group))
        return parts[0] if len(parts) == 1 else 0.5 * (parts[0] + parts[1])


def convolutions(height: int, width: int, channels: int, depth: int, latent: int) -> nn.Module:
    """Images [N, C, H, W] to [N, F]. From 64 x 64 pixels and 32 channels come 512 numbers, as
    published; where they are not as many as the latent has, a linear layer follows."""
    parts: list[nn.Module] = []
    for kernel, stride in ((7, 2), (5, 2), (3, 2), (3, 1)):
        if min(height, width) < kernel:
            break
        parts += [nn.Conv2d(channels, depth, kernel, stride), nn.ReLU()]
        height, width = ((side - kernel) // stride + 1 for side in (height, width))
        channels = depth
    size = channels * height * width
    parts[-1] = nn.Flatten()  # the last one has no ReLU
    if size != latent:
        parts += [linear(size, latent), nn.LayerNorm(latent)]
    return nn.Sequential(*parts)


def shifted(picture: Tensor, most: int) -> Tensor:
    """Images [N, H, W, C], each moved by up to `most` pixels both ways at random, its border
    repeated."""
    count, height, width = picture.shape[:3]
    moves = torch.randint(-most, most + 1, (2, count, 1), device=picture.device)
    rows, columns = (
        (torch.arange(side, device=picture.device) + move).clamp(0, side - 1)
        for side, move in zip((height, width), moves, strict=True)
    )
    each = torch.arange(count, device=picture.device)[:, None, None]
    return picture[each, rows[:, :, None], columns[:, None, :]]
