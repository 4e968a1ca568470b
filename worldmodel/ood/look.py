"""What the parts of a detector look at: computed once a tick, shared by all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.distributions import OneHot
from worldmodel.models.vae import VAE
from worldmodel.rssm.model import WorldModel
from worldmodel.rssm.state import LatentState


class Look(NamedTuple):
    """One tick of B rows, or N rows of any ticks; None where nothing tells it.

    image: [B, C, H, W] in [0, 1], all images on top of each other. mean, std: [B, N] of the
    autoencoder's code. error: [B, C, H, W], image minus reconstruction. state: the agent's latent.
    prior: parameters [B, S, K] of what the model expected before it saw the observation;
    posterior: after. foretold: [B, C, H, W], image minus the picture of that expectation.
    action: [B, A] that led here.
    """

    image: Tensor | None = None
    mean: Tensor | None = None
    std: Tensor | None = None
    error: Tensor | None = None
    state: LatentState | None = None
    prior: Tensor | None = None
    posterior: Tensor | None = None
    foretold: Tensor | None = None
    action: Tensor | None = None


class Looker(nn.Module):
    """Autoencoder and world model at work, without anything random.

    keys: of the images that the autoencoder codes, in order. vae, model: either may be None.
    foretells: whether somebody wants `Look.foretold`; the world model's decoder costs as much as
    all the rest.
    """

    def __init__(
        self,
        keys: list[str],
        vae: VAE | None,
        model: WorldModel | None,
        foretells: bool = True,
    ) -> None:
        super().__init__()
        self.keys, self.vae, self.model, self.foretells = keys, vae, model, foretells

    def pictures(self, obs: Mapping[str, Tensor]) -> Tensor:
        """[B, C, H, W] in [0, 1] of uint8 images [B, H, W, C]."""
        image = torch.cat([obs[key] for key in self.keys], -1)
        return image.permute(0, 3, 1, 2).float() / 255.0

    def forward(
        self, obs: Mapping[str, Tensor], state: LatentState | None, action: Tensor | None
    ) -> Look:
        look = Look(action=action)
        if self.vae is not None:
            image = self.pictures(obs)
            coded = self.vae(image)
            look = look._replace(
                image=image, mean=coded.mean, std=coded.std, error=image - coded.picture
            )
        if self.model is None or state is None:
            return look
        return self._expected(look, obs, state)

    def _expected(self, look: Look, obs: Mapping[str, Tensor], state: LatentState) -> Look:
        """Adds what the world model expected of this observation, and what it makes of it."""
        assert self.model is not None
        core = self.model.core
        prior = core.prior(state.deter)
        seen = self.model.encoder(dict(obs))
        logits = core.post_out(core.post_in(torch.cat([state.deter, seen], -1)))
        posterior = logits.unflatten(-1, (core.groups, -1))
        foretold = None
        if look.image is not None and self.foretells:
            expected = LatentState(state.deter, expected_stoch(core, prior))
            pictures = self.model.decoder.decode_images(expected)
            shown = torch.cat([pictures[key] for key in self.keys], -1).permute(0, 3, 1, 2)
            foretold = look.image - shown
        return look._replace(state=state, prior=prior, posterior=posterior, foretold=foretold)


def expected_stoch(core: nn.Module, params: Tensor) -> Tensor:
    """The mean latent [B, S, K] of parameters [B, S, K or 2]: probabilities, or the means."""
    dist = core.dist(params)  # type: ignore[operator]
    out: Tensor = dist.probs if isinstance(dist, OneHot) else dist.mean.unsqueeze(-1)
    return out
