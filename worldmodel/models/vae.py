"""A convolutional variational autoencoder: what one observation looks like, without time.

    x -> q(z | x) = N(mean, std)      z ~ q      z -> x'
    loss = (D / 2) log MSE(x, x') + KL(q || N(0, 1))

With the noise of the decoder at its optimum, the likelihood of D pixels is the log of their mean
squared error, so that no weight has to be chosen between the two terms.

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
    """latent: numbers N of z. depths: channels of the stages, each of which halves the size."""

    latent: int = 32
    depths: list[int] = field(default_factory=lambda: [16, 32, 64])

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
        height, width, channels = shape
        factor = 2 ** len(config.depths)
        if height % factor or width % factor:
            raise ValueError(
                f"Images of {height}x{width} cannot be halved {len(config.depths)} times. Give "
                f"sizes that are multiples of {factor}, or fewer depths."
            )
        self.shape, self.config = shape, config
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


def _down(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(Conv2d(channels_in, channels_out, 4, 2), nn.SiLU())
