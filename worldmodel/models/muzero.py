"""MuZero's world: hidden states that must predict rewards, values and policies, and nothing else.

    h  representation   observation -> state
    g  dynamics         state, action -> next state, reward, whether the episode goes on

No state is ever decoded: what an observation shows beyond what decides rewards may be forgotten.
Schrittwieser et al., "Mastering Atari, Go, chess and shogi by planning with a learned model"
(2020); with `projection` and `prefix`: Ye et al., EfficientZero (2021). Policies and values of the
states are the agent's (agents/muzero).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.config import ConfigError, check_ranges
from worldmodel.distributions import Support, symlog
from worldmodel.models.frames import Frames
from worldmodel.types import PLAYER_KEY, Batch, EnvSpec, Prediction


@dataclass
class MuZeroModelConfig:
    """latent: entries of a state made of vectors. units: of hidden layers. layers: hidden layers of
    the representation. channels, blocks: of states made of images or a board, and residual blocks
    at each size. board: [height, width] of the planes that the observed vector holds; [] where it
    is no board. scaled: states are brought to [0, 1] by their own least and greatest entries.
    support, bins: rewards and values are categories from -support to support of their square roots
    (worldmodel.distributions.Support). ends: the model says whether the episode goes on; published
    ones do not. frames: images that are seen together. projection: units of the consistency loss;
    0: none. prefix: units of the LSTM that sums up rewards; 0: each is predicted by itself.
    prefix_steps: after which it begins anew."""

    latent: int = 64
    units: int = 128
    layers: int = 1
    channels: int = 64
    blocks: int = 1
    board: list[int] = field(default_factory=list)
    scaled: bool = True
    support: float = 300.0
    bins: int = 601
    ends: bool = True
    frames: int = 1
    projection: int = 0
    prefix: int = 0
    prefix_steps: int = 5

    def __post_init__(self) -> None:
        wide = (1, 1 << 16)
        check_ranges(self, {
            "latent": wide, "units": wide, "layers": (0, 64), "channels": wide, "blocks": (0, 64),
            "support": (0.1, 1e6), "bins": (3, 1 << 16), "projection": (0, 1 << 16),
            "prefix": (0, 1 << 16), "frames": (1, 64), "prefix_steps": (1, 1 << 16), "board": wide,
        })  # fmt: skip
        if len(self.board) not in (0, 2):
            raise ConfigError(f"board is {self.board}; allowed: [height, width], or [] for none.")


class MuZeroState(NamedTuple):
    """latent: [B, S], or [B, C, H, W] of images and boards. sums [B, 2 P + 2]: the memory of the
    LSTM that sums up rewards, their sum so far and the steps since it began; None without. recent:
    the images before the next one [B, frames - 1, H, W, C], or None."""

    latent: Tensor
    sums: Tensor | None = None
    recent: Tensor | None = None


class Step(NamedTuple):
    """One step as it is learned: logits of the reward (or of the sum so far), and of going on."""

    state: MuZeroState
    reward: Tensor
    cont: Tensor


def dense(sizes: list[int]) -> nn.Sequential:
    """Linear, LayerNorm, ReLU for each pair of sizes."""
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        parts += [nn.Linear(a, b), nn.LayerNorm(b), nn.ReLU()]
    return nn.Sequential(*parts)


def conv(channels_in: int, channels_out: int, stride: int = 1, kernel: int = 3) -> nn.Conv2d:
    """Without a bias: a norm follows."""
    return nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)


class Block(nn.Module):
    """x + two convolutions, each with a BatchNorm, and a ReLU between and after."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = conv(channels, channels), conv(channels, channels)
        self.norm_one, self.norm_two = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm_one(self.one(x)))
        return F.relu(x + self.norm_two(self.two(y)))


def blocks(channels: int, count: int) -> list[nn.Module]:
    """Residual blocks of one size."""
    return [Block(channels) for _ in range(count)]


def seen_by_board(planes: int, c: MuZeroModelConfig) -> nn.Sequential:
    """Planes [B, P, H, W] -> [B, C, H, W]."""
    first = [conv(planes, c.channels), nn.BatchNorm2d(c.channels), nn.ReLU()]
    return nn.Sequential(*first, *blocks(c.channels, c.blocks))


def seen_by_eye(planes: int, c: MuZeroModelConfig) -> nn.Sequential:
    """Images [B, P, H, W] -> [B, C, H / 16, W / 16]."""
    half = max(c.channels // 2, 1)
    return nn.Sequential(
        conv(planes, half, 2), nn.BatchNorm2d(half), nn.ReLU(), *blocks(half, c.blocks),
        conv(half, c.channels, 2), nn.BatchNorm2d(c.channels), nn.ReLU(),
        *blocks(c.channels, c.blocks), nn.AvgPool2d(3, 2, 1), *blocks(c.channels, c.blocks),
        nn.AvgPool2d(3, 2, 1),
    )  # fmt: skip


class FlatDynamics(nn.Module):
    """Vectors: (state [B, S], action [B, A]) -> the next state's logits, and features [B, U]."""

    def __init__(self, latent: int, actions: int, c: MuZeroModelConfig) -> None:
        super().__init__()
        self.hidden = dense([latent + actions, c.units])
        self.out, self.features = nn.Linear(c.units, latent), c.units

    def forward(self, latent: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.hidden(torch.cat([latent, action], -1))
        return latent + self.out(hidden), hidden


class PlaneDynamics(nn.Module):
    """Maps: (state [B, C, H, W], action [B, A] as A planes of its entries), and features [B, U]."""

    def __init__(self, shape: tuple[int, ...], actions: int, c: MuZeroModelConfig) -> None:
        super().__init__()
        channels = shape[0]
        self.conv, self.norm = conv(channels + actions, channels), nn.BatchNorm2d(channels)
        self.blocks = nn.Sequential(*blocks(channels, max(c.blocks, 1)))
        self.head = PlaneFeatures(shape, c.units)
        self.features = c.units

    def forward(self, latent: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        planes = action[:, :, None, None].expand(-1, -1, *latent.shape[2:])
        new = F.relu(latent + self.norm(self.conv(torch.cat([latent, planes], 1))))
        new = self.blocks(new)
        return new, self.head(new)


class PlaneFeatures(nn.Sequential):
    """Maps [B, C, H, W] -> [B, U]: 1x1 convolution to 16 channels, BatchNorm, ReLU, one layer."""

    def __init__(self, shape: tuple[int, ...], units: int) -> None:
        channels, height, width = shape
        few = nn.Sequential(conv(channels, 16, kernel=1), nn.BatchNorm2d(16), nn.ReLU())
        super().__init__(few, nn.Flatten(), dense([16 * height * width, units]))


class MuZeroWorld(nn.Module):
    """A `worldmodel.types.Dynamics` of hidden states. discount: of one step. alternates: two
    players move in turn. Raises ConfigError where there is nothing to observe."""

    deterministic = True

    def __init__(
        self, spec: EnvSpec, config: MuZeroModelConfig, discount: float, alternates: bool = False
    ) -> None:
        super().__init__()
        self.spec, self.config, self.discount, self.alternates = spec, config, discount, alternates
        c, actions = config, spec.action.size
        self.images, self.flat = spec.keys("image"), spec.keys("vector") + spec.keys("discrete")
        # Whose turn it is need not be seen: observations are from the side of who moves.
        self.flat = [key for key in self.flat if key != PLAYER_KEY]
        size = sum(spec.obs[key].shape[0] for key in self.flat)
        if self.images and self.flat:
            raise ConfigError(
                f"This model sees images or vectors, not both ({self.images}, {self.flat}); "
                "name those to keep with env.keys=[...]."
            )
        if c.frames > 1 and not self.images:
            raise ConfigError(
                f"model.frames is {c.frames}, but there are no images to see together "
                f"({self.flat}). Leave it at 1."
            )
        self.frames = Frames(spec, self.images, c.frames)
        if self.images:
            height, width = spec.obs[self.images[0]].shape[:2]
            planes = c.frames * sum(spec.obs[key].shape[2] for key in self.images)
            self.represent_net: nn.Module = seen_by_eye(planes, c)
            self.shape: tuple[int, ...] = (c.channels, height // 16, width // 16)
        elif c.board:
            height, width = c.board
            if not size or size % (height * width):
                raise ConfigError(
                    f"board={c.board}: an observation of {size} numbers is no planes of "
                    f"{height * width}."
                )
            self.represent_net = seen_by_board(size // (height * width), c)
            self.shape = (c.channels, height, width)
        elif size:
            hidden = dense([size] + [c.units] * c.layers)
            self.represent_net = nn.Sequential(
                *hidden, nn.Linear(c.units if c.layers else size, c.latent)
            )
            self.shape = (c.latent,)
        else:
            raise ConfigError(
                f"The observation has no image and no vector to learn from; keys: "
                f"{sorted(spec.obs) or 'none'}."
            )
        self.dynamics: FlatDynamics | PlaneDynamics = (
            FlatDynamics(c.latent, actions, c)
            if len(self.shape) == 1
            else PlaneDynamics(self.shape, actions, c)
        )
        features = self.dynamics.features
        self.memory = nn.LSTMCell(features, c.prefix) if c.prefix else None
        self.reward = nn.Linear(c.prefix or features, c.bins)
        self.ends = nn.Linear(features, 1)
        nn.init.zeros_(self.reward.weight)
        nn.init.zeros_(self.reward.bias)
        self.support = Support(c.support, c.bins)
        self.project: nn.Module | None = None
        if c.projection:
            p, flat = c.projection, int(torch.Size(self.shape).numel())
            self.project = nn.Sequential(*dense([flat, p, p]), nn.Linear(p, p), nn.LayerNorm(p))
            self.guess = nn.Sequential(*dense([p, p]), nn.Linear(p, p))

    def initial(self, batch_size: int) -> MuZeroState:
        """Zeros."""
        weight = self.reward.weight
        latent, recent = weight.new_zeros(batch_size, *self.shape), self.frames.initial
        return MuZeroState(latent, self._fresh(batch_size), recent(batch_size, weight.device))

    def _fresh(self, batch: int) -> Tensor | None:
        size = 2 * self.config.prefix + 2
        return self.reward.weight.new_zeros(batch, size) if self.config.prefix else None

    def observe(
        self, state: MuZeroState, obs: dict[str, Tensor], action: Tensor, is_first: Tensor
    ) -> MuZeroState:
        """What the observation shows, with the images before it; nothing else is remembered."""
        x, recent = self.inputs(obs), state.recent
        if self.images:
            x, recent = self.frames.add(recent, x, is_first)
        return self.represent(x)._replace(recent=recent)

    def inputs(self, obs: dict[str, Tensor]) -> Tensor:
        """Images [..., H, W, C] or vectors [..., N] side by side."""
        parts = [obs[key] for key in self.images] or [obs[key].float() for key in self.flat]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def rows(self, batch: Batch) -> Tensor:
        """What is represented of consecutive rows, [B, T, ...]. The first frames - 1 lack what came
        before them."""
        x = self.inputs(batch.obs)
        return self.frames.rows(x, batch.is_first) if self.images else x

    def represent(self, x: Tensor) -> MuZeroState:
        """States of what was seen [B, ...]: `inputs`, of several images [B, H, W, frames * C]."""
        if self.images:
            x = x.permute(0, 3, 1, 2).float() / 255
        else:
            x = x.unflatten(-1, (-1, *self.config.board)) if self.config.board else symlog(x)
        latent = self._bounded(self.represent_net(x))
        return MuZeroState(latent, self._fresh(len(latent)))

    def _bounded(self, x: Tensor) -> Tensor:
        """[0, 1] by the least and greatest entry, of each channel of a map."""
        if not self.config.scaled:
            return x
        flat = x.flatten(2) if x.ndim == 4 else x
        low, high = flat.amin(-1, keepdim=True), flat.amax(-1, keepdim=True)
        width = high - low
        flat = (flat - low) / (width + 1e-5 * (width < 1e-5))
        return flat.view_as(x) if x.ndim == 4 else flat

    def step_logits(self, state: MuZeroState, action: Tensor) -> Step:
        """One step, for learning."""
        new, features = self.dynamics(state.latent, action)
        sums = state.sums
        told = features
        if self.memory is not None and sums is not None:
            p = self.config.prefix
            fresh = (sums[:, -1:] % self.config.prefix_steps) == 0
            before = torch.where(fresh, 0.0, sums[:, : 2 * p])
            told, cell = self.memory(features, (before[:, :p], before[:, p:]))
            sums = torch.cat([told, cell, sums[:, -2:-1], sums[:, -1:] + 1], -1)
        logits = self.reward(told)
        after = state._replace(latent=self._bounded(new), sums=sums)
        return Step(after, logits, self.ends(features).squeeze(-1))

    def step(self, state: MuZeroState, action: Tensor) -> Prediction[MuZeroState]:
        """See `Dynamics.step`."""
        after, logits, cont = self.step_logits(state, action)
        reward = self.support.mean(logits)
        if state.sums is not None and after.sums is not None:
            total = reward
            fresh = (state.sums[:, -1] % self.config.prefix_steps) == 0
            reward = torch.where(fresh, total, total - state.sums[:, -2])
            sums = torch.cat([after.sums[:, :-2], total[:, None], after.sums[:, -1:]], -1)
            after = after._replace(sums=sums)
        cont = torch.sigmoid(cont) if self.config.ends else torch.ones_like(reward)
        return Prediction(after, reward, cont)

    def consistency(self, believed: Tensor, seen: Tensor) -> Tensor:
        """-cos [B] of latents that were predicted and those that the observation then showed; only
        the prediction learns."""
        assert self.project is not None
        guess = self.guess(self.project(believed.flatten(1)))
        with torch.no_grad():  # or both would agree on a constant
            target = self.project(seen.flatten(1))
        return -F.cosine_similarity(guess, target, -1)
