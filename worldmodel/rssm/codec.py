"""Encoder and decoder: images through convolutions, vectors through symlog and an MLP."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from worldmodel.accel import fused
from worldmodel.accel.ranks import Ranks
from worldmodel.distributions import FactoredOneHot, Point, symlog
from worldmodel.losses import image_loss
from worldmodel.nets import (
    MLP,
    BlockLinear,
    ChannelNormSiLU,
    Conv2d,
    Linear,
    NormSiLU,
    PoolStage,
    Unpatch,
    UpConv2d,
    UpsampleConv2d,
)
from worldmodel.rssm.state import LatentState
from worldmodel.types import MASK_KEY, EnvSpec

CONVOLUTIONS = ("pool", "strided", "patch")


def image_shape(spec: EnvSpec, factor: int = 16) -> tuple[int, int, int]:
    """(H, W, all channels) of the image keys, to be made `factor` times smaller; ValueError on
    sizes that cannot be coded."""
    multiple = max(16, factor)
    shapes = {k: spec.obs[k].shape for k in spec.keys("image")}
    sizes = {s[:2] for s in shapes.values()}
    if len(sizes) > 1:
        raise ValueError(f"All images must have one size, got {shapes}. Resize them alike.")
    height, width = next(iter(sizes))
    if height % multiple or width % multiple or min(height, width) < 32:
        raise ValueError(
            f"Images of {height}x{width} cannot be encoded: both sides must be multiples of "
            f"{multiple}, at least 32. Set env.image_size, for example to [64, 64]."
        )
    return height, width, sum(s[2] for s in shapes.values())


def factors(convolution: str, stages: int) -> list[int]:
    """How many times smaller each stage makes an image, beginning at the image."""
    if convolution not in CONVOLUTIONS:
        raise ValueError(f"Unknown convolution '{convolution}'. Known: {', '.join(CONVOLUTIONS)}.")
    return [4 if convolution == "patch" and stage == 0 else 2 for stage in range(stages)]


def _down(convolution: str, factor: int, cin: int, cout: int, kernel: int) -> nn.Sequential:
    """Make the size `factor` times smaller: conv, (max-pool,) norm, SiLU."""
    if convolution == "pool":
        return PoolStage(cin, cout, kernel)
    return nn.Sequential(Conv2d(cin, cout, 4, stride=factor), ChannelNormSiLU(cout))


def _up(convolution: str, factor: int, cin: int, cout: int, kernel: int) -> nn.Sequential:
    """Make the size `factor` times larger."""
    if convolution == "pool":
        return nn.Sequential(nn.Identity(), UpsampleConv2d(cin, cout, kernel))
    return nn.Sequential(UpConv2d(cin, cout) if factor == 2 else Unpatch(cin, cout, factor))


class ImageCentre(nn.Module):
    """The image that encoder and decoder measure from: one shared buffer [H, W, C] in [0, 1].

    It is 0.5 everywhere unless `update` is called: then it is the mean of the images seen in the
    first `batches` calls, and fixed after. The encoder subtracts it and the decoder adds its
    logit, so that a static background is known from the start and only what moves is learned.
    From scratch the model otherwise spends its first updates on the background alone, learns to
    ignore its latents meanwhile, and takes long to discover them again (docs/RESULTS.md).
    ranks: of those that train together; the mean is that of all their images.
    """

    mean: Tensor
    count: Tensor
    ranks: Ranks | None = None

    def __init__(self, shape: tuple[int, int, int], batches: int = 100) -> None:
        super().__init__()
        self.batches = batches
        self.register_buffer("mean", torch.full(shape, 0.5))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, images: Tensor) -> None:
        """Take in uint8 images [..., H, W, C]; a no-op after the first `batches` calls."""
        self.count.add_(1)
        if self.count.is_cpu and int(self.count) > self.batches:
            return  # elsewhere the answer would have to be waited for
        rate = torch.where(self.count <= self.batches, 1.0 / self.count, 0.0)
        mean = images.float().flatten(0, -4).mean(0) / 255.0
        if self.ranks is not None:
            self.ranks.all_reduce_mean(mean)
        self.mean.lerp_(mean, rate)

    @property
    def logit(self) -> Tensor:
        """[H, W, C]; bounded, so that the sigmoid keeps a gradient on black and on white."""
        return torch.logit(self.mean.clamp(0.02, 0.98))


class Encoder(nn.Module):
    """Observations -> embedding [..., E].

    Images (uint8 [..., H, W, C], concatenated on channels) pass one stage per entry of `mults`,
    smaller each time (`factors`); vectors (symlog) and one-hots pass an MLP; both are
    concatenated.
    """

    def __init__(
        self,
        spec: EnvSpec,
        depth: int,
        units: int,
        mults: Sequence[int] = (2, 3, 4, 4),
        kernel: int = 5,
        layers: int = 3,
        convolution: str = "pool",
    ) -> None:
        super().__init__()
        self.images, self.vectors = spec.keys("image"), spec.keys("vector")
        self.flat = spec.keys("discrete") + ([MASK_KEY] if spec.has_mask else [])
        self.out_features = 0
        if self.images:
            smaller = factors(convolution, len(mults))
            height, width, channels = image_shape(spec, math.prod(smaller))
            self.centre = ImageCentre((height, width, channels))
            widths = [channels] + [depth * m for m in mults]
            pairs = zip(smaller, itertools.pairwise(widths), strict=True)
            self.conv = nn.Sequential(*(_down(convolution, f, a, b, kernel) for f, (a, b) in pairs))
            self.out_features += height * width // math.prod(smaller) ** 2 * widths[-1]
        if self.vectors or self.flat:
            size = sum(math.prod(spec.obs[k].shape) for k in self.vectors + self.flat)
            self.mlp = MLP(size, units, layers)
            self.out_features += units
        if not self.out_features:
            raise ValueError(
                "The observation has no image and no vector to encode; keys: "
                f"{sorted(spec.obs) or 'none'}. Give the environment one, or set env.pixels=true."
            )

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        out = []
        if self.images:
            images = torch.cat([obs[k] for k in self.images], -1)
            lead = images.shape[:-3]
            x = fused.image_input(images.flatten(0, -4), self.centre.mean)
            # [N, C, H, W] in channels-last memory, and back to [N, h, w, c]
            x = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            out.append(x.reshape(*lead, -1))
        if self.vectors or self.flat:
            parts = [symlog(obs[k].float()) for k in self.vectors]
            parts += [obs[k].float() for k in self.flat]
            out.append(self.mlp(torch.cat(parts, -1)))
        return torch.cat(out, -1)


class Decoder(nn.Module):
    """Latent state -> images in [0, 1] [..., H, W, C], and distributions of vector keys.

    The smallest map is the sum of a block-linear view of deter and a two-layer view of stoch.
    """

    def __init__(
        self,
        spec: EnvSpec,
        centre: ImageCentre | None,
        deter: int,
        stoch: int,
        blocks: int,
        depth: int,
        units: int,
        mults: Sequence[int] = (2, 3, 4, 4),
        kernel: int = 5,
        layers: int = 3,
        convolution: str = "pool",
    ) -> None:
        super().__init__()
        self.images = spec.keys("image")
        self._centre = [centre]  # the encoder's; in a list, so that it is not registered twice
        self.vectors = {k: math.prod(spec.obs[k].shape) for k in spec.keys("vector")}
        self.discretes = {k: spec.obs[k].sizes for k in spec.keys("discrete")}
        self.blocks = blocks
        if self.images:
            larger = factors(convolution, len(mults))[::-1]
            factor = math.prod(larger)
            height, width, channels = image_shape(spec, factor)
            self.channels = [spec.obs[k].shape[-1] for k in self.images]
            self.smallest = (height // factor, width // factor, depth * mults[-1])
            size = math.prod(self.smallest)
            self.from_deter = BlockLinear(deter, size, blocks)
            self.from_stoch = nn.Sequential(
                Linear(stoch, 2 * units), NormSiLU(2 * units), Linear(2 * units, size)
            )
            self.smallest_norm = NormSiLU(self.smallest[-1])
            widths = [depth * m for m in reversed(mults)] + [channels]
            pairs = list(itertools.pairwise(widths))
            self.conv = nn.ModuleList(
                _up(convolution, f, a, b, kernel) for f, (a, b) in zip(larger, pairs, strict=True)
            )
            self.norms = nn.ModuleList(ChannelNormSiLU(cout) for _, cout in pairs[:-1])
        if self.vectors or self.discretes:
            self.mlp = MLP(deter + stoch, units, layers)
            sizes = self.vectors | {k: sum(s) for k, s in self.discretes.items()}
            # Prefixed: a ModuleDict has no room for keys such as "type" or "values".
            self.heads = nn.ModuleDict({f"to_{k}": Linear(units, n) for k, n in sizes.items()})

    def decode_images(self, state: LatentState) -> dict[str, Tensor]:
        """Images [..., H, W, C] in [0, 1] by key."""
        if not self.images:
            return {}
        x, blocks, centre = self._image_blocks(state)
        x = torch.sigmoid(fused.unblock(x, blocks).float() + centre)
        x = x.reshape(*state.deter.shape[:-1], *x.shape[1:])
        return dict(zip(self.images, x.split(self.channels, -1), strict=True))

    def image_losses(self, state: LatentState, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Squared errors [B, T] of the decoded images, summed over pixels and channels, by key."""
        if not self.images:
            return {}
        target = torch.cat([obs[k] for k in self.images], -1).flatten(0, -4)
        loss = image_loss(*self._image_blocks(state), target)  # [N, C]
        loss = loss.reshape(*state.deter.shape[:-1], -1)
        return {
            key: part.sum(-1)
            for key, part in zip(self.images, loss.split(self.channels, -1), strict=True)
        }

    def _image_blocks(self, state: LatentState) -> tuple[Tensor, int, Tensor]:
        """What the last stage gives [N, h, w, s * s * C] for all images side by side, s, and what
        is added to it before the sigmoid [H, W, C]."""
        h, w, c = self.smallest
        deter = state.deter.reshape(-1, self.blocks, state.deter.shape[-1] // self.blocks)
        a = self.from_deter(deter).view(-1, self.blocks, h, w, c // self.blocks)
        a = a.permute(0, 2, 3, 1, 4).reshape(-1, h, w, c)
        b = self.from_stoch(state.stoch.flatten(0, -3).flatten(1)).view(-1, h, w, c)
        x = self.smallest_norm(a + b).permute(0, 3, 1, 2)  # [N, c, h, w], channels-last memory
        *ups, last = (stage[-1] for stage in self.conv)  # type: ignore[index]
        for up, norm in zip(ups, self.norms, strict=True):
            x = norm.unblocked(up.in_blocks(x), up.blocks)  # type: ignore[operator]
        centre = self._centre[0]
        assert centre is not None
        return last.in_blocks(x), last.blocks, centre.logit

    def decode_vectors(self, state: LatentState) -> dict[str, Point | FactoredOneHot]:
        """Distributions of the vector and discrete keys."""
        if not (self.vectors or self.discretes):
            return {}
        x = self.mlp(state.feat)
        out: dict[str, Point | FactoredOneHot] = {}
        for name, head in self.heads.items():
            key, y = name.removeprefix("to_"), head(x)
            out[key] = (
                Point(y, symlog_target=True)
                if key in self.vectors
                else FactoredOneHot(y.float(), self.discretes[key])
            )
        return out


__all__ = ["Decoder", "Encoder", "image_shape"]
