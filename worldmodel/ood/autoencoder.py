"""Trains the autoencoder of a detector on what is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from worldmodel import seeding
from worldmodel.config import RunError
from worldmodel.models.vae import VAE
from worldmodel.ood.api import Track
from worldmodel.optim import LaProp, OptimConfig

WARMUP = 50  # updates
SAYS = 10  # lines of progress


def train_vae(
    vae: VAE,
    tracks: Sequence[Track],
    keys: Sequence[str],
    updates: int,
    batch: int,
    lr: float,
    seed: int,
    say: Callable[[str], None],
) -> None:
    """Fit an autoencoder to all images of the tracks, in place.

    Draws no global random numbers. Raises RunError where its loss is not finite.
    """
    images = np.concatenate(
        [np.concatenate([track.obs[key] for key in keys], -1) for track in tracks]
    )  # uint8 [N, H, W, C]
    device = next(vae.parameters()).device
    # In float64, or the sum of many thousand frames loses its last digits.
    mean = torch.from_numpy(images.mean(0, dtype=np.float64) / 255.0).float()
    vae.usual.copy_(mean.permute(2, 0, 1))
    pixels = torch.from_numpy(images)
    optim = LaProp([("vae", vae)], OptimConfig(lr=lr, warmup=WARMUP, anneal=updates))
    with seeding.Stream(seed, device):
        for update in range(updates):
            drawn = pixels[torch.randint(len(pixels), (batch,))].to(device)
            loss, metrics = vae.loss(drawn.permute(0, 3, 1, 2).float() / 255.0)
            try:
                optim.step(loss)
            except FloatingPointError as error:
                raise RunError(
                    f"The autoencoder's training broke down at update {update}: {error} Give a "
                    "smaller lr."
                ) from error
            if (update + 1) % max(1, updates // SAYS) == 0:
                parts = ", ".join(f"{name} {float(v):.3g}" for name, v in metrics.items())
                say(f"autoencoder: update {update + 1} of {updates}, {parts}")
    vae.requires_grad_(False)
