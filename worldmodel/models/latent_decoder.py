"""What latents look like: a decoder that is trained beside a world, and teaches it nothing."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from worldmodel.distributions import symexp, symlog
from worldmodel.models.latent_nets import MLP
from worldmodel.nets import Linear, UpConv2d
from worldmodel.types import EnvSpec

DEPTHS = (64, 32, 16)  # channels of the stages, each of which doubles an image's sides


class Pictures(nn.Sequential):
    """z [N, F] to an image [N, C, H, W] around 0; sides are multiples of 8."""

    def __init__(self, latent: int, height: int, width: int, channels: int) -> None:
        small = DEPTHS[0], height // 8, width // 8
        stages = itertools.pairwise((*DEPTHS, channels))
        super().__init__(
            Linear(latent, small[0] * small[1] * small[2]),
            nn.Unflatten(1, small),
            *(nn.Sequential(nn.SiLU(), UpConv2d(a, b)) for a, b in stages),
        )


class LatentDecoder(nn.Module):
    """z [..., F] to every observation key that is seen."""

    def __init__(self, spec: EnvSpec, latent: int, units: int) -> None:
        super().__init__()
        self.spec = spec
        self.vectors, self.choices, self.images = map(spec.keys, ("vector", "discrete", "image"))
        self.sizes = [spec.obs[key].shape[0] for key in (*self.vectors, *self.choices)]
        self.flat = MLP(latent, units, sum(self.sizes)) if self.sizes else None
        self.pictures = nn.ModuleDict()
        for key in self.images:
            height, width, channels = spec.obs[key].shape
            self.pictures[key.replace(".", "/")] = Pictures(latent, height, width, channels)

    def _flat(self, z: Tensor) -> dict[str, Tensor]:
        """Symlogs of vectors, and logits of one-hots, by key."""
        if self.flat is None:
            return {}
        parts = self.flat(z).float().split(self.sizes, -1)
        return dict(zip((*self.vectors, *self.choices), parts, strict=True))

    def _picture(self, key: str, z: Tensor) -> Tensor:
        """An image [..., H, W, C] around 0.5, unbounded."""
        out = self.pictures[key.replace(".", "/")](z.reshape(-1, z.shape[-1]))
        return 0.5 + out.float().permute(0, 2, 3, 1).unflatten(0, z.shape[:-1])

    def _probs(self, key: str, logits: Tensor) -> Tensor:
        parts = logits.split(list(self.spec.obs[key].sizes), -1)
        return torch.cat([torch.softmax(part, -1) for part in parts], -1)

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        """Images in [0, 1], vectors in their own units, probabilities of one-hots."""
        shown = {key: self._picture(key, z).clamp(0, 1) for key in self.images}
        for key, x in self._flat(z).items():
            shown[key] = symexp(x) if key in self.vectors else self._probs(key, x)
        return shown

    def loss(self, z: Tensor, obs: dict[str, Tensor], weight: Tensor) -> Tensor:
        """The mean error, of z [...], of what was seen [..., *shape]; weight [...] of each."""
        z = z.detach()  # for looking alone: nothing of it reaches the latents
        total = z.new_zeros(())
        for key, x in self._flat(z).items():
            if key in self.vectors:
                error = (x - symlog(obs[key].float())).square().sum(-1)
            else:
                error = -(self._probs(key, x).clamp_min(1e-6).log() * obs[key]).sum(-1)
            total = total + (weight * error).mean()
        for key in self.images:
            error = (self._picture(key, z) - obs[key].float() / 255).square().mean((-3, -2, -1))
            total = total + (weight * error).mean()
        return total
