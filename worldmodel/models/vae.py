"""Convolutional variational autoencoders: what one observation looks like, without time.

    x -> q(z | x) = N(mean, std)      z ~ q      z -> x'
    loss = (D / 2) log MSE(x, x') + KL(q || N(0, 1))

`VAE` is the house's, for images of many sizes. With the noise of its decoder at the optimum, the
likelihood of D pixels is the log of their mean squared error, so that no weight has to be chosen
between the two terms. `PublishedVAE` is that of Ha and Schmidhuber, "World Models" (2018), with a
squared error summed over pixels.

Kingma and Welling, "Auto-Encoding Variational Bayes" (ICLR 2014), equation 7; the optimal noise is
that of Rybkin, Daniilidis and Levine, "Simple and Effective VAE Training with Calibrated Decoders"
(ICML 2021), equation 6.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.config import ConfigError, check_ranges
from worldmodel.distributions import Normal
from worldmodel.nets import Conv2d, Linear, UpConv2d

LEAST_ERROR = 1e-6  # of the mean squared error in the loss: half a level of 256, squared


@dataclass
class VAEConfig:
    """latent: numbers N of z. depths: channels of the stages, each of which halves the size.
    published: the network of "World Models" instead, for 64x64 pixels; depths then mean nothing."""

    latent: int = 32
    depths: list[int] = field(default_factory=lambda: [16, 32, 64])
    published: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, {"latent": (1, 4096), "depths": (1, 4096)})
        if not 1 <= len(self.depths) <= 5:
            raise ConfigError(f"depths is {self.depths}; allowed: 1 to 5 stages.")


class Coded(NamedTuple):
    """mean, std [B, N] of q(z | x), and the picture decoded from the mean [B, C, H, W]."""

    mean: Tensor
    std: Tensor
    picture: Tensor


class VAE(nn.Module):
    """Images [B, C, H, W] in [0, 1] to a latent z [B, N] and back.

    shape: (H, W, C), both sides multiples of 2 ** stages. Raises ValueError for other sizes.
    """

    usual: Tensor

    def __init__(self, shape: tuple[int, int, int], config: VAEConfig) -> None:
        super().__init__()
        self.shape, self.config = shape, config
        self._build()

    def _build(self) -> None:
        """Make the layers: `encoder` to 2 N numbers, `decoder` back."""
        (height, width, channels), config = self.shape, self.config
        factor = 2 ** len(config.depths)
        if height % factor or width % factor:
            raise ValueError(
                f"Images of {height}x{width} cannot be halved {len(config.depths)} times. Give "
                f"sizes that are multiples of {factor}, or fewer depths."
            )
        widths = [channels, *config.depths]
        self.smallest = (widths[-1], height // factor, width // factor)
        size = widths[-1] * (height // factor) * (width // factor)
        # The mean image is known from the start, so that only what differs is learned.
        self.register_buffer("usual", torch.full((channels, height, width), 0.5))
        self.encoder = nn.Sequential(
            *(_down(a, b) for a, b in itertools.pairwise(widths)),
            nn.Flatten(),
            Linear(size, 2 * config.latent),
        )
        pairs = list(itertools.pairwise(reversed(widths)))
        self.decoder = nn.Sequential(
            Linear(config.latent, size),
            nn.Unflatten(1, self.smallest),
            *(nn.Sequential(nn.SiLU(), UpConv2d(a, b)) for a, b in pairs),
        )

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """mean and std [B, N] of q(z | x)."""
        mean, raw = self.encoder(image - self.usual).float().chunk(2, -1)
        return mean, nn.functional.softplus(raw) + 1e-3

    def decode(self, z: Tensor) -> Tensor:
        """The picture [B, C, H, W] of z [B, N]; not bounded to [0, 1]."""
        out: Tensor = self.decoder(z)
        return out + self.usual

    def forward(self, image: Tensor) -> Coded:
        """Codes and reconstruction without sampling: the same input gives the same output."""
        mean, std = self.encode(image)
        return Coded(mean, std, self.decode(mean))

    def kl(self, mean: Tensor, std: Tensor) -> Tensor:
        """KL(q || N(0, 1)) [B] in nats."""
        return Normal(mean, std).kl(Normal(torch.zeros_like(mean), torch.ones_like(std)))

    def loss(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The negative evidence bound in nats per image, up to a constant, and its parts."""
        mean, std = self.encode(image)
        picture = self.decode(Normal(mean, std).sample())
        error = (picture - image).square().mean()
        kl = self.kl(mean, std).mean()
        pixels = image[0].numel()
        total = 0.5 * pixels * error.clamp_min(LEAST_ERROR).log() + kl
        return total, {"mse": error.detach(), "kl": kl.detach()}


class PublishedVAE(VAE):
    """The VAE of "World Models": 4,348,547 weights with 3 channels and N = 32.

    loss: squared error summed over pixels, plus the KL in nats, which counts as 0.5 N where it is
    less. Raises ValueError unless images are 64x64.
    """

    def __init__(self, shape: tuple[int, int, int], config: VAEConfig) -> None:
        if shape[:2] != (64, 64):
            raise ValueError(
                f"The published VAE is for images of 64x64 pixels, not {shape[0]}x{shape[1]}. Give "
                "env.image_size=[64,64], or published=false for the house's VAE."
            )
        super().__init__(shape, config)

    def _build(self) -> None:
        channels, latent = self.shape[2], self.config.latent
        down = [channels, 32, 64, 128, 256]
        up = [(1024, 128, 5), (128, 64, 5), (64, 32, 6), (32, channels, 6)]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(down):
            layers += [nn.Conv2d(a, b, 4, 2), nn.ReLU()]
        self.encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 2 * latent))
        layers = [nn.Linear(latent, 1024), nn.Unflatten(1, (1024, 1, 1))]
        for a, b, kernel in up:
            layers += [nn.ConvTranspose2d(a, b, kernel, 2), nn.ReLU()]
        self.decoder = nn.Sequential(*layers[:-1], nn.Sigmoid())
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(image).float().chunk(2, -1)
        return mean, (0.5 * log_variance).exp()

    def decode(self, z: Tensor) -> Tensor:
        out: Tensor = self.decoder(z)
        return out

    def loss(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        mean, std = self.encode(image)
        picture = self.decode(Normal(mean, std).sample())
        error = (picture - image).square().flatten(1).sum(-1)
        kl = self.kl(mean, std)
        total = (error + kl.clamp_min(0.5 * self.config.latent)).mean()
        return total, {"mse": error.detach().mean() / image[0].numel(), "kl": kl.detach().mean()}


def make_vae(shape: tuple[int, int, int], config: VAEConfig) -> VAE:
    """The VAE that a config asks for."""
    return PublishedVAE(shape, config) if config.published else VAE(shape, config)


def _down(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(Conv2d(channels_in, channels_out, 4, 2), nn.SiLU())
