"""TD-MPC2's world: what an observation means and what an action leads to, without any picture.

    z_t = encoder(o_t)      z' = dynamics(z, a)      reward(z, a)      P(the episode ends) = end(z')

    rows         o_0            o_1            o_2
                  |              |              |
                 z_0 --a_0,r_1- [z_1] -a_1,r_2- [z_2]        [ ]: encoded without gradient
                  |      |       |      |        |
    rollout      z_0 ----------> ẑ_1 ---------> ẑ_2         consistency: |ẑ_t - [z_t]|^2

Latents are groups of numbers that sum to 1 (SimNorm). Nothing is drawn: the world is deterministic.
Hansen, Su and Wang, "TD-MPC2: Scalable, Robust World Models for Continuous Control" (ICLR 2024).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel import seeding
from worldmodel.distributions import Support, symexp, symlog
from worldmodel.models.frames import Frames
from worldmodel.models.latent_decoder import LatentDecoder
from worldmodel.models.latent_nets import MLP, LatentConfig, LatentEncoder, shifted, sim_norm
from worldmodel.types import MASK_KEY, Batch, EnvSpec, Prediction

LIMIT = 10.0  # of the symlog of rewards and values
SURE = -4.0  # the first logit of an ending: an untrained head must not end what is imagined


class Latent(NamedTuple):
    """z: [..., F]. recent: the images before the present one and it, [..., frames - 1, H, W, C],
    for a world that sees several together; else None. first: what z adds to the first layers of
    dynamics and reward [..., 2 M], where it was computed before (`LatentWorld.prepared`)."""

    z: Tensor
    recent: Tensor | None = None
    first: Tensor | None = None


class Learned(NamedTuple):
    """What the losses of a batch leave for whoever learns values on it, [H, B, ...] each.

    losses: scalars, weighted. z: [H+1, B, F], the rollout, with gradient. seen: latents of the
    rows that were reached, without. weight: of each step, rho^t, and 0 from an episode's end on.
    """

    losses: dict[str, Tensor]
    z: Tensor
    seen: Tensor
    action: Tensor
    reward: Tensor
    terminal: Tensor
    weight: Tensor


class LatentWorld(nn.Module):
    """Satisfies `Dynamics`, `Features`, `Deterministic`, `Masks` and `Learns`."""

    deterministic = True
    feat_bound = 1.0

    def __init__(self, spec: EnvSpec, config: LatentConfig) -> None:
        super().__init__()
        self.spec, self.config, c = spec, config, config
        self.feat_size, self.discount = c.latent, c.discount
        both = c.latent + spec.action.size
        self.encoder = LatentEncoder(spec, c)
        self.dynamics, self.dynamics_norm = MLP(both, c.units, c.latent), nn.LayerNorm(c.latent)
        self.reward = MLP(both, c.units, c.bins)
        nn.init.zeros_(self.reward.last.weight)
        self.bins = Support(LIMIT, c.bins, symlog, symexp)  # of rewards, and of values
        self.end = MLP(c.latent, c.units, 1) if c.ends else None
        if self.end is not None:
            nn.init.constant_(self.end.last.bias, SURE)
        self.mask = MLP(c.latent, c.units, spec.action.size) if spec.has_mask else None
        self.frames = Frames(spec, self.encoder.images, c.frames)
        self.decoder: LatentDecoder | None = None
        if c.decoder:
            with seeding.Stream(0):  # so that all else begins as it would without
                self.decoder = LatentDecoder(spec, c.latent, c.units)
            self.decode = self._decode  # a world without a decoder has no such method

    @property
    def context(self) -> int:
        """Rows of a batch before the first one that is learned from."""
        return self.frames.context

    # As a world.

    def initial(self, batch_size: int) -> Latent:
        """Before anything was seen: every number of a group alike."""
        like = self.reward.last.bias
        z = like.new_full((batch_size, self.config.latent), 1.0 / self.config.group)
        return Latent(z, self.frames.initial(batch_size, like.device))

    def observe(
        self, state: Latent, obs: dict[str, Tensor], action: Tensor, is_first: Tensor
    ) -> Latent:
        """What obs [B, ...] means; of the past only images count."""
        flat, picture = self._inputs(obs)
        if picture is None:
            return Latent(self.encoder(flat, None))
        picture, recent = self.frames.add(state.recent, picture, is_first)
        return Latent(self.encoder(flat, picture), recent)

    def step(self, state: Latent, action: Tensor) -> Prediction[Latent]:
        """Where action [B, A] leads."""
        if state.first is None:
            both = torch.cat([state.z, action.to(state.z.dtype)], -1)
            moves, pays = self.dynamics.first.linear(both), self.reward.first.linear(both)
        else:
            size = self.config.latent
            weights = (m.first.linear.weight[:, size:] for m in (self.dynamics, self.reward))
            known = state.first.chunk(2, -1)
            moves, pays = (x + F.linear(action, w) for x, w in zip(known, weights, strict=True))
        z = sim_norm(self.dynamics_norm(self.dynamics.after(moves)), self.config.group)
        reward = self.bins.mean(self.reward.after(pays))
        cont = torch.ones_like(reward)
        if self.end is not None:
            cont = torch.sigmoid(-self.end(z).squeeze(-1).float())
        return Prediction(Latent(z, state.recent), reward, cont)

    def prepared(self, state: Latent) -> Latent:
        """The state without images and with `first`, for whoever tries many actions in it."""
        size, layers = self.config.latent, (self.dynamics.first.linear, self.reward.first.linear)
        parts = [F.linear(state.z, layer.weight[:, :size], layer.bias) for layer in layers]
        return Latent(state.z, None, torch.cat(parts, -1))

    def feat(self, state: Latent) -> Tensor:
        """z [..., F]."""
        return state.z

    def action_mask(self, state: Latent) -> Tensor | None:
        """Which actions [..., A] the state allows (0 or 1), or None where all are."""
        return None if self.mask is None else (self.mask(state.z) > 0).float()

    def _decode(self, state: Latent) -> dict[str, Tensor]:
        """What states look like, by key."""
        assert self.decoder is not None
        shown: dict[str, Tensor] = self.decoder(state.z)
        return shown

    # Learning.

    def next(self, z: Tensor, action: Tensor) -> Tensor:
        """z' [..., F] after an action [..., A]."""
        out = self.dynamics_norm(self.dynamics(torch.cat([z, action], -1)))
        return sim_norm(out, self.config.group)

    def _inputs(self, obs: dict[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """Vectors [..., N] and images [..., H, W, C] side by side."""
        flat = [obs[key].float() for key in self.encoder.flat]
        images = [obs[key] for key in self.encoder.images]
        return (torch.cat(flat, -1) if flat else None), (torch.cat(images, -1) if images else None)

    def _encoded(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Latents of the first row [B, F], with gradient, and of those after it [H, B, F],
        without."""
        flat, picture = self._inputs(batch.obs)
        flat = flat[:, self.context :] if flat is not None else None
        if picture is not None:
            picture = self.frames.rows(picture, batch.is_first)[:, self.context :]
            if self.config.shift:
                lead = picture.shape[:2]
                picture = shifted(picture.flatten(0, 1), self.config.shift).unflatten(0, lead)

        def encode(rows: slice) -> Tensor:
            parts = (x if x is None else x[:, rows].transpose(0, 1) for x in (flat, picture))
            out: Tensor = self.encoder(*parts)
            return out

        with torch.no_grad():
            later = encode(slice(1, None))
        return encode(slice(0, 1)).squeeze(0), later

    def learn(self, batch: Batch) -> Learned:
        """The losses of a batch [B, context + H + 1], and what else was computed for them."""
        c, begin = self.config, self.context
        first, seen = self._encoded(batch)
        after = slice(begin + 1, None)  # rows that an action led to
        action = self.spec.action.clip(batch.action[:, after]).transpose(0, 1).contiguous()
        reward, terminal = batch.reward[:, after].t(), batch.is_terminal[:, after].t()
        # Nothing is learned from the row where another episode begins, nor from those after it.
        inside = (~batch.is_first[:, after]).t().float().cumprod(0)
        weight = inside * c.rho ** torch.arange(len(inside), device=inside.device).unsqueeze(1)
        rollout = [first]
        for a in action:
            rollout.append(self.next(rollout[-1], a))
        z = torch.stack(rollout)
        apart = (z[1:] - seen).square().mean(-1)
        pays = self.bins.loss(self.reward(torch.cat([z[:-1], action], -1)), reward)
        losses = {
            "consistency": c.consistency_scale * (weight * apart).mean(),
            "reward": c.reward_scale * (weight * pays).mean(),
        }
        if self.end is not None:
            surprise = F.binary_cross_entropy_with_logits(
                self.end(z[1:]).squeeze(-1).float(), terminal.float(), reduction="none"
            )
            losses["end"] = c.end_scale * (inside * surprise).mean()
        if self.mask is not None:
            allowed = (batch.obs[MASK_KEY][:, after] > 0.5).transpose(0, 1).float()
            surprise = F.binary_cross_entropy_with_logits(
                self.mask(z[1:]).float(), allowed, reduction="none"
            )
            losses["mask"] = (inside * surprise.mean(-1)).mean()
        return Learned(losses, z, seen, action, reward, terminal, weight)

    def decoder_loss(self, learned: Learned, batch: Batch) -> Tensor:
        """Of the decoder, for the rows of a batch and what `learn` made of them."""
        assert self.decoder is not None
        obs = {key: x[:, self.context :].transpose(0, 1) for key, x in batch.obs.items()}
        inside = torch.cat([torch.ones_like(learned.weight[:1]), (learned.weight > 0).float()])
        return self.decoder.loss(learned.z, obs, inside)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise and its parts; never steps, never calls backward."""
        losses = self.learn(batch).losses
        parts = {f"loss/{name}": loss.detach() for name, loss in losses.items()}
        return torch.stack(list(losses.values())).sum(), parts
