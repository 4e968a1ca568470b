"""PlaNet's world: a recurrent state-space model with a GRU and gaussian latents, from images.

    h_t = GRU(relu(W [s_{t-1}, a_{t-1}]), h_{t-1})
    s_t ~ q(s_t | h_t, o_t)                 posterior, from the encoded image
    s_t ~ p(s_t | h_t)                      prior, in imagination
    loss = squared error of the image / 2 + scale * squared error of the reward / 2
         + max(0, KL(q || p) - free nats)   summed over pixels and latents, mean over rows

Hafner et al., "Learning latent dynamics for planning from pixels" (ICML 2019), with the constants
of the authors' code. What `worldmodel.rssm.model` has instead is DreamerV3's: a block-diagonal GRU,
RMSNorm and SiLU, other convolutions, two-hot rewards, a continue head, and a balanced KL.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel import tree
from worldmodel.capabilities import for_each_action
from worldmodel.config import ConfigError, check_ranges
from worldmodel.distributions import Normal
from worldmodel.rssm.state import LatentState
from worldmodel.types import Batch, EnvSpec, Prediction

SIDE = 64  # pixels of an image, which the unpadded convolutions need


@dataclass
class PlaNetConfig:
    """deter, stoch, hidden: widths. depth: channels of the first convolution. min_std: of a latent.
    free_nats: of the KL of one step. reward_layers, reward_units: of the reward head;
    reward_scale: of its loss. bits: to which colours are rounded. discount: of a step, when
    planning; the paper sums rewards as they are."""

    deter: int = 200
    stoch: int = 30
    hidden: int = 200
    depth: int = 32
    min_std: float = 0.1
    free_nats: float = 3.0
    reward_layers: int = 3
    reward_units: int = 300
    reward_scale: float = 10.0
    bits: int = 5
    discount: float = 1.0

    def __post_init__(self) -> None:
        wide = (1, 1 << 16)
        check_ranges(self, {
            **dict.fromkeys(("deter", "stoch", "hidden", "depth", "reward_units"), wide),
            "min_std": (1e-6, 1e3), "free_nats": (0, 1e6), "reward_layers": (0, 64),
            "reward_scale": (0, 1e6), "bits": (1, 8), "discount": (0, 1),
        })  # fmt: skip


class PlaNet(nn.Module):
    """Satisfies `worldmodel.types.Dynamics`; no episode ever ends in it.

    Raises ConfigError unless there are images of 64x64 pixels, and continuous actions or one-hot.
    """

    Config = PlaNetConfig

    def __init__(self, spec: EnvSpec, config: PlaNetConfig) -> None:
        super().__init__()
        self.config, self.discount = config, config.discount
        self.images = spec.keys("image")
        if not self.images or {spec.obs[k].shape[:2] for k in self.images} != {(SIDE, SIDE)}:
            shapes = {k: spec.obs[k].shape for k in self.images}
            raise ConfigError(
                f"world=planet sees images of {SIDE}x{SIDE} pixels and nothing else; given: "
                f"{shapes or 'no image'}. Set env.pixels=true env.image_size=[{SIDE},{SIDE}], or "
                "use world=rssm."
            )
        c, self.channels = config, [spec.obs[k].shape[-1] for k in self.images]
        self.feat_size, self.feat_bound = c.deter + c.stoch, math.inf
        widths = [sum(self.channels), c.depth, 2 * c.depth, 4 * c.depth, 8 * c.depth]
        convolutions = [nn.Conv2d(a, b, 4, stride=2) for a, b in itertools.pairwise(widths)]
        self.encoder = nn.Sequential(*(m for conv in convolutions for m in (conv, nn.ReLU())))
        self.embed = 4 * widths[-1]  # 2x2 pixels are left
        self.core = nn.ModuleDict({
            "enter": nn.Linear(c.stoch + spec.action.size, c.deter),
            "gru": nn.GRUCell(c.deter, c.deter),
            "prior": _two_layers(c.deter, c.hidden, 2 * c.stoch),
            "posterior": _two_layers(c.deter + self.embed, c.hidden, 2 * c.stoch),
        })  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(self.feat_size, self.embed),
            nn.Unflatten(-1, (self.embed, 1, 1)),
            nn.ConvTranspose2d(self.embed, 4 * c.depth, 5, stride=2), nn.ReLU(),
            nn.ConvTranspose2d(4 * c.depth, 2 * c.depth, 5, stride=2), nn.ReLU(),
            nn.ConvTranspose2d(2 * c.depth, c.depth, 6, stride=2), nn.ReLU(),
            nn.ConvTranspose2d(c.depth, widths[0], 6, stride=2),
        )  # fmt: skip
        layers = [self.feat_size, *[c.reward_units] * c.reward_layers]
        hidden = [m for a, b in itertools.pairwise(layers) for m in (nn.Linear(a, b), nn.ReLU())]
        self.heads = nn.ModuleDict({"reward": nn.Sequential(*hidden, nn.Linear(layers[-1], 1))})

    # The parts of a step.

    def pixels(self, obs: dict[str, Tensor], noise: bool = True) -> Tensor:
        """Images of all keys as what is predicted, [..., H, W, C] in [-0.5, 0.5): rounded to
        `bits`, with uniform noise (or its mean) in place of what was rounded off."""
        levels = 2**self.config.bits
        x = torch.cat([obs[k] for k in self.images], -1)
        x = torch.floor(x.float() * (levels / 256.0))
        return (x + (torch.rand_like(x) if noise else 0.5)) / levels - 0.5

    def encode(self, pixels: Tensor) -> Tensor:
        """[..., H, W, C] -> [..., E]."""
        flat = self.encoder(pixels.flatten(0, -4).movedim(-1, 1)).flatten(1)
        return flat.unflatten(0, pixels.shape[:-3])

    def recur(self, state: LatentState, action: Tensor) -> Tensor:
        """The next deter [B, D]."""
        x = self.core["enter"](torch.cat([state.stoch.flatten(-2), action], -1))
        out: Tensor = self.core["gru"](F.relu(x), state.deter)
        return out

    def prior(self, deter: Tensor) -> Normal:
        """p(s | h)."""
        return self._normal(self.core["prior"](deter))

    def posterior(self, deter: Tensor, embed: Tensor) -> Normal:
        """q(s | h, o)."""
        return self._normal(self.core["posterior"](torch.cat([deter, embed], -1)))

    def _normal(self, numbers: Tensor) -> Normal:
        mean, std = numbers.chunk(2, -1)
        return Normal(mean, F.softplus(std) + self.config.min_std)

    # As a world.

    def initial(self, batch_size: int) -> LatentState:
        """Zeros: deter [B, D], stoch [B, S, 1]."""
        where = next(self.parameters()).device
        shapes = (batch_size, self.config.deter), (batch_size, self.config.stoch, 1)
        return LatentState(*(torch.zeros(shape, device=where) for shape in shapes))

    def observe(
        self, state: LatentState, obs: dict[str, Tensor], action: Tensor, is_first: Tensor
    ) -> LatentState:
        """The posterior state after obs [B, ...], drawn."""
        return self._filter(state, self.encode(self.pixels(obs)), action, is_first)[0]

    def _filter(
        self, state: LatentState, embed: Tensor, action: Tensor, is_first: Tensor
    ) -> tuple[LatentState, Normal]:
        # Filled, because a NaN of the episode before would survive a product with zero.
        state = tree.where(is_first, self.initial(len(is_first)), state)
        deter = self.recur(state, action.masked_fill(is_first.unsqueeze(-1), 0.0))
        posterior = self.posterior(deter, embed)
        return LatentState(deter, posterior.sample().unsqueeze(-1)), posterior

    def step(self, state: LatentState, action: Tensor) -> Prediction[LatentState]:
        """One draw of the prior."""
        return self._arrived(state, action, Normal.sample)

    def expect(self, state: LatentState, action: Tensor) -> Prediction[LatentState]:
        """As `step`, with the mean of the prior in place of a draw."""
        return self._arrived(state, action, Normal.mode)

    @property
    def expects_reward(self) -> bool:
        """The reward is the environment's own."""
        return True

    def _arrived(
        self, state: LatentState, action: Tensor, draw: Callable[[Normal], Tensor]
    ) -> Prediction[LatentState]:
        deter = self.recur(state, action)
        after = LatentState(deter, draw(self.prior(deter)).unsqueeze(-1))
        reward = self.reward(after.feat)
        return Prediction(after, reward, torch.ones_like(reward))

    def reward(self, feat: Tensor) -> Tensor:
        """The mean of the reward [...] of arriving in states with features [..., F]."""
        out: Tensor = self.heads["reward"](feat).squeeze(-1)
        return out

    def feat(self, state: LatentState) -> Tensor:
        """[..., D + S]."""
        return state.feat

    def decode(self, state: LatentState) -> dict[str, Tensor]:
        """Images [..., H, W, C] in [0, 1] by key."""
        images = (self._decoded(state.feat) + 0.5).clamp(0.0, 1.0)
        return dict(zip(self.images, images.split(self.channels, -1), strict=True))

    def _decoded(self, feat: Tensor) -> Tensor:
        x = self.decoder(feat.flatten(0, -2)).movedim(1, -1)
        return x.reshape(*feat.shape[:-1], *x.shape[1:])

    @for_each_action
    def surprise(
        self,
        state: LatentState,
        obs: dict[str, Tensor],
        action: Tensor,
        believed: LatentState | None = None,
    ) -> Tensor:
        """KL(posterior || prior) [B] in nats, see `worldmodel.capabilities.Surprises`."""
        embed = self.encode(self.pixels(obs, noise=False))
        deter = self.recur(state, action)
        other = deter if believed is None else self.recur(believed, action)
        return self.posterior(deter, embed).kl(self.prior(other))

    # Learning.

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See the top of this file; a sequence begins from zeros."""
        target = self.pixels(batch.obs)
        embed = self.encode(target)
        state, states, means, stds = self.initial(batch.shape[0]), [], [], []
        for t in range(batch.shape[1]):
            now = (x[:, t] for x in (embed, batch.action, batch.is_first))
            state, posterior = self._filter(state, *now)
            states.append(state)
            means.append(posterior.mean)
            stds.append(posterior.std)
        feat = torch.stack([s.feat for s in states], 1)
        prior = self.prior(feat[..., : self.config.deter])
        kl = Normal(torch.stack(means, 1), torch.stack(stds, 1)).kl(prior)
        parts = {
            "image": 0.5 * (self._decoded(feat) - target).square().sum((-3, -2, -1)).mean(),
            "reward": 0.5 * (self.reward(feat) - batch.reward).square().mean(),
            "kl": (kl - self.config.free_nats).clamp_min(0.0).mean(),
        }
        total = parts["image"] + self.config.reward_scale * parts["reward"] + parts["kl"]
        metrics = {f"loss/{name}": part.detach() for name, part in parts.items()}
        return total, metrics | {"kl": kl.detach().mean()}


def _two_layers(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, out))
