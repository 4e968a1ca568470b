"""The V and M of World Models: a VAE sees, a recurrent mixture of Gaussians remembers and predicts.

    V    obs_t -> q(z_t)
    M    h_t+1 = LSTM([z_t, a], h_t)      h_t+1 -> P(z_t+1) = for each entry its own mixture of K
                                                -> reward_t+1, P(the episode ends at t+1);
                                                   heads="arrival": from h_t+1 and z_t+1

    row        t                    t+1
    z          from obs_t           from obs_t+1
    h          what led to t        after z_t and the action between the rows

A state is (z_t, h_t, c_t): what a controller sees of row t is z_t and h_t, and h is 0 at an
episode's first row. At temperature tau the mixture's logits are divided by tau and its noise is
multiplied by sqrt(tau): above 1 the dream is less certain than the data, at 0 it draws nothing.

Ha and Schmidhuber, "World Models" (2018); reward and end heads as in their Doom experiment and in
ctallec's reimplementation. Without both, M has the 422,368 weights of the published CarRacing one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.capabilities import for_each_action
from worldmodel.config import ConfigError, check_ranges
from worldmodel.models.vae import VAE
from worldmodel.types import Batch, EnvSpec, Prediction

LOG_STD = (-8.0, 8.0)  # of a component, in units of the latents
HEADS = ("memory", "arrival")


@dataclass
class MDNRNNConfig:
    """units: of the LSTM. mixtures: K components for each entry of z, as published; joint: for all
    of z together, so that what appears in one of many places does so in one. reward, end: whether
    these are predicted. heads: what from, "memory": h alone, as published, so that a dream can
    arrive where an episode ends and go on; "arrival": h and the z that comes, by a hidden layer.
    end_weight: of the loss of rows that end an episode, against 1 of others.
    temperature: of dreams. sample: draw z from q(z | obs), as published; else it is q's mean.
    discount: of one step, for planners."""

    units: int = 256
    mixtures: int = 5
    joint: bool = False
    reward: bool = True
    end: bool = True
    heads: str = "memory"
    end_weight: float = 1.0
    temperature: float = 1.0
    sample: bool = True
    discount: float = 0.99

    def __post_init__(self) -> None:
        sizes = {"units": (1, 1 << 16), "mixtures": (1, 1 << 10)}
        rest = {"end_weight": (0, 1e6), "temperature": (0, 100), "discount": (0, 1)}
        check_ranges(self, {**sizes, **rest})
        if self.heads not in HEADS:
            raise ConfigError(f"heads is '{self.heads}'; allowed: {', '.join(HEADS)}.")


class Mixture(NamedTuple):
    """K Gaussians for each of N entries: logits, mean and log standard deviation [..., K, N]. Or K
    for all of them together: logits [..., K, 1], so that one draw picks one component."""

    logits: Tensor
    mean: Tensor
    log_std: Tensor

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density [...] of z [..., N]."""
        error = (z.unsqueeze(-2) - self.mean) * torch.exp(-self.log_std)
        normal = -0.5 * error.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        if self.logits.shape[-1] == 1:
            normal = normal.sum(-1, keepdim=True)
        density: Tensor = torch.logsumexp(F.log_softmax(self.logits, -2) + normal, -2).sum(-1)
        return density

    def draw(self, temperature: float, noise: tuple[Tensor, Tensor]) -> Tensor:
        """z [..., N]. noise: uniform in [0, 1), which picks the components, and standard normal,
        both of a shape that broadcasts to [..., N]."""
        if temperature == 0.0:
            best = self.logits.argmax(-2, keepdim=True).expand_as(self.mean[..., :1, :])
            return self.mean.gather(-2, best).squeeze(-2)
        uniform, normal = noise
        uniform = uniform[..., : self.logits.shape[-1]]
        weights = torch.exp((self.logits - self.logits.amax(-2, keepdim=True)) / temperature)
        means, log_stds = self.mean.unbind(-2), self.log_std.unbind(-2)
        # Component k is picked where the sum of the first k weights is below the threshold, and
        # that with its own is not: one comparison each, several times as fast as cumsum and gather.
        mean, log_std = means[0], log_stds[0]
        threshold = uniform * weights.sum(-2)
        for weight, *later in zip(weights.unbind(-2), means[1:], log_stds[1:], strict=False):
            threshold = threshold - weight
            passed = threshold >= 0
            mean = torch.where(passed, later[0], mean)
            log_std = torch.where(passed, later[1], log_std)
        return mean + math.sqrt(temperature) * log_std.exp() * normal

    def expectation(self) -> Tensor:
        """[..., N]."""
        return (torch.softmax(self.logits, -2) * self.mean).sum(-2)


class MDNRNN(nn.Module):
    """M alone, over latents z [..., N] and actions [..., A].

    Rewards are predicted in units of `reward_std` around `reward_mean`, which whoever trains it
    sets from the data.
    """

    reward_mean: Tensor
    reward_std: Tensor

    def __init__(self, latent: int, actions: int, config: MDNRNNConfig) -> None:
        super().__init__()
        self.latent, self.config = latent, config
        self.lstm = nn.LSTM(latent + actions, config.units, batch_first=True)
        weights = 1 if config.joint else latent
        self.sizes = [config.mixtures * size for size in (weights, latent, latent)]
        self.out = nn.Linear(config.units, sum(self.sizes))
        names = [name for name in ("reward", "end") if vars(config)[name]]
        arrival = config.heads == "arrival"
        self.heads = nn.ModuleDict({
            name: _judge(config.units + latent, config.units) if arrival
            else nn.Linear(config.units, 1) for name in names
        })  # fmt: skip
        self.register_buffer("reward_mean", torch.zeros(()))
        self.register_buffer("reward_std", torch.ones(()))
        weight_in, weight_h, bias, second = self._lstm_weights()
        for weight in (weight_in, weight_h, self.out.weight):
            nn.init.xavier_uniform_(weight)
        # One bias, as published; its forget gates start open.
        nn.init.zeros_(bias)
        nn.init.zeros_(second).requires_grad_(False)
        with torch.no_grad():
            bias[config.units : 2 * config.units].fill_(1.0)
        nn.init.zeros_(self.out.bias)

    def _lstm_weights(self) -> tuple[Tensor, ...]:
        """Of its input, of h, its bias, and a second one that stays 0."""
        return tuple(self.lstm.parameters())

    def sequence(self, z: Tensor, action: Tensor) -> Tensor:
        """h [B, T, U] after each z [B, T, N] and the action [B, T, A] that followed it, from 0."""
        h, _ = self.lstm(torch.cat([z, action], -1))
        return h

    def cell(self, z: Tensor, action: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """One step: h and c [B, U] after z [B, N] and action [B, A]."""
        weight_in, weight_h, bias, _ = self._lstm_weights()
        gates = F.linear(torch.cat([z, action], -1), weight_in, bias)
        gates = torch.addmm(gates, h, weight_h.t())
        i, f, g, o = gates.chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    def mixture(self, h: Tensor) -> Mixture:
        """P(next z) from h [..., U]."""
        parts = self.out(h).split(self.sizes, -1)
        logits, mean, log_std = (x.unflatten(-1, (self.config.mixtures, -1)) for x in parts)
        return Mixture(logits, mean, log_std.clamp(*LOG_STD))

    def judge(self, h: Tensor, z: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The reward [...], in units of `reward_std`, and the logit [...] of the episode's end,
        after h [..., U] where z [..., N] came; None without that head."""
        seen = torch.cat([h, z], -1) if self.config.heads == "arrival" else h
        values = {name: head(seen).squeeze(-1) for name, head in self.heads.items()}
        return values.get("reward"), values.get("end")


class VMState(NamedTuple):
    """z [..., N] of the present row; h, c [..., U] of what came before it."""

    z: Tensor
    h: Tensor
    c: Tensor


class VMWorld(nn.Module):
    """V and M together as a learned world: a `Dynamics` that Decodes, with Features, which Expects,
    Surprises and Learns (M alone; V learns from its own loss).

    `step` and, with config.sample, `observe` draw from torch's global generator. Raises ValueError
    where observations are not one image and nothing else.
    """

    expects_reward = True

    def __init__(self, spec: EnvSpec, vae: VAE, config: MDNRNNConfig) -> None:
        super().__init__()
        self.key, self.shape = image_key(spec)
        self.vae, self.config = vae, config
        self.latent, self.actions = vae.config.latent, spec.action.size
        self.rnn = MDNRNN(self.latent, self.actions, config)
        self.temperature, self.discount = config.temperature, config.discount
        self.feat_size, self.feat_bound = self.latent + config.units, math.inf

    @property
    def deterministic(self) -> bool:
        """At temperature 0."""
        return self.temperature == 0.0

    def initial(self, batch_size: int) -> VMState:
        like = self.rnn.out.weight
        sizes = self.latent, self.config.units, self.config.units
        return VMState(*(like.new_zeros(batch_size, size) for size in sizes))

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """mean and std [B, N] of q(z | image), images [B, H, W, C], uint8 or in [0, 1]."""
        return self.vae.encode(channels_first(image))

    def observe(
        self, state: VMState, obs: dict[str, Tensor], action: Tensor, is_first: Tensor
    ) -> VMState:
        mean, std = self.encode(obs[self.key])
        z = mean + std * torch.randn_like(std) if self.config.sample else mean
        return self.remember(state, z, action, is_first)

    def remember(self, state: VMState, z: Tensor, action: Tensor, is_first: Tensor) -> VMState:
        """The state of a row with latents z [B, N], after `state` and the action between them."""
        h, c = self.rnn.cell(state.z, action, state.h, state.c)
        goes_on = (~is_first.bool()).to(h.dtype).unsqueeze(-1)
        return VMState(z, h * goes_on, c * goes_on)

    def step(self, state: VMState, action: Tensor) -> Prediction[VMState]:
        noise = torch.rand_like(state.z), torch.randn_like(state.z)
        return self.predict(state, action, noise)

    def predict(
        self, state: VMState, action: Tensor, noise: tuple[Tensor, Tensor]
    ) -> Prediction[VMState]:
        """As `step`, with the noise of `Mixture.draw`."""
        h, c = self.rnn.cell(state.z, action, state.h, state.c)
        z = self.rnn.mixture(h).draw(self.temperature, noise)
        return self._prediction(VMState(z, h, c))

    def expect(self, state: VMState, action: Tensor) -> Prediction[VMState]:
        h, c = self.rnn.cell(state.z, action, state.h, state.c)
        return self._prediction(VMState(self.rnn.mixture(h).expectation(), h, c))

    def _prediction(self, state: VMState) -> Prediction[VMState]:
        """Of the state that came. Without its head a reward is 0, and nothing ends."""
        said, end = self.rnn.judge(state.h, state.z)
        reward = cont = torch.zeros_like(state.z[..., 0])
        cont = cont + 1 if end is None else torch.sigmoid(-end)
        if said is not None:
            reward = self.rnn.reward_mean + self.rnn.reward_std * said
        return Prediction(state, reward, cont)

    def decode(self, state: VMState) -> dict[str, Tensor]:
        lead = state.z.shape[:-1]
        picture = self.vae.decode(state.z.reshape(-1, self.latent)).clamp(0.0, 1.0)
        return {self.key: picture.permute(0, 2, 3, 1).unflatten(0, lead)}

    def feat(self, state: VMState) -> Tensor:
        """What the controller sees: z and h, [..., F]."""
        return torch.cat([state.z, state.h], -1)

    @for_each_action
    def surprise(
        self,
        state: VMState,
        obs: dict[str, Tensor],
        action: Tensor,
        believed: VMState | None = None,
    ) -> Tensor:
        """log q(z | obs) - log P(z | state, action) at q's mean, summed over entries."""
        before = state if believed is None else believed
        mean, std = self.encode(obs[self.key])
        h, _ = self.rnn.cell(before.z, action, before.h, before.c)
        peak = -std.log() - 0.5 * math.log(2 * math.pi)
        nats: Tensor = peak.sum(-1) - self.rnn.mixture(h).log_prob(mean)
        return nats

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """M's, on the rows [B, T] of a batch; what V makes of them is no part of it."""
        with torch.no_grad():
            mean, std = self.encode(batch.obs[self.key].flatten(0, 1))
        codes = torch.cat([mean, std], -1).unflatten(0, batch.shape)
        return self.memory_loss(codes, batch)

    def memory_loss(self, codes: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """As `loss`, for images that are encoded: mean and std of q, codes [B, T, 2 N].

        z is drawn anew. What follows the first episode's end within a sequence does not count.
        """
        mean, std = codes.chunk(2, -1)
        z = mean + std * torch.randn_like(std)
        h = self.rnn.sequence(z[:, :-1], batch.action[:, 1:])
        reward, end = self.rnn.judge(h, z[:, 1:])
        counts = batch.is_first[:, 1:].cumsum(1) == 0
        metrics = {"nll": _mean_of(-self.rnn.mixture(h).log_prob(z[:, 1:]) / self.latent, counts)}
        if reward is not None:
            wanted = (batch.reward[:, 1:] - self.rnn.reward_mean) / self.rnn.reward_std
            metrics["reward"] = _mean_of((reward - wanted).square(), counts)
        if end is not None:
            weight = torch.full_like(end[0, 0], self.config.end_weight)
            ends = batch.is_terminal[:, 1:].float()
            bce = F.binary_cross_entropy_with_logits(end, ends, pos_weight=weight, reduction="none")
            metrics["end"] = _mean_of(bce, counts)
        total = torch.stack(list(metrics.values())).sum()
        return total, {name: value.detach() for name, value in metrics.items()}


def _judge(seen: int, units: int) -> nn.Module:
    """A head with one hidden layer."""
    return nn.Sequential(nn.Linear(seen, units), nn.SiLU(), nn.Linear(units, 1))


def image_key(spec: EnvSpec) -> tuple[str, tuple[int, int, int]]:
    """The name and shape of the one image that is observed; ValueError where there is another
    number of them, or anything beside it."""
    images, others = spec.keys("image"), spec.keys("vector") + spec.keys("discrete")
    if len(images) != 1 or others:
        raise ValueError(
            f"World Models sees one image and nothing else; the images are {images or 'none'}, "
            f"beside them: {others or 'nothing'}. Set env.pixels=true and env.state=false, or name "
            "the key with env.keys=[...]."
        )
    height, width, channels = spec.obs[images[0]].shape
    return images[0], (height, width, channels)


def channels_first(image: Tensor) -> Tensor:
    """Images [B, H, W, C], uint8 or in [0, 1], as float [B, C, H, W] in [0, 1]."""
    scaled = image.float() / 255.0 if image.dtype == torch.uint8 else image.float()
    return scaled.permute(0, 3, 1, 2)


def _mean_of(values: Tensor, counts: Tensor) -> Tensor:
    """The mean of values [B, T] over those that count."""
    return (values * counts).sum() / counts.sum().clamp_min(1)
