"""The world model: encoder, recurrent core, decoder and heads behind the Dynamics contract."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldmodel import tree
from worldmodel.accel.ranks import Ranks
from worldmodel.distributions import Normal
from worldmodel.models.ensemble import Ensemble
from worldmodel.rssm.adopt import TakesFittedHeads
from worldmodel.rssm.codec import Decoder, Encoder
from worldmodel.rssm.config import DISAGREEMENT, ModelConfig, check_fits
from worldmodel.rssm.heads import HeadConfig, head_size, target_of
from worldmodel.rssm.scan import FastRSSM
from worldmodel.rssm.state import LatentState, columns_of, packed, unpacked
from worldmodel.types import MASK_KEY, Batch, Column, EnvSpec, Prediction


class ModelOutput(NamedTuple):
    """losses: each [B, T], unscaled. states: the posteriors [B, T, ...] with gradient."""

    losses: dict[str, Tensor]
    states: LatentState
    metrics: dict[str, Tensor]


class WorldModel(TakesFittedHeads):
    """Learns latent dynamics from pixels and vectors; satisfies `worldmodel.types.Dynamics`."""

    Config = ModelConfig

    def __init__(self, spec: EnvSpec, config: ModelConfig) -> None:
        super().__init__()
        self.spec, self.config = spec, config
        check_fits(spec, config)
        c = config
        classes = 1 if c.latent == "gaussian" else c.classes
        self.feat_size = c.deter + c.groups * classes
        shared = (c.depth, c.units, c.mults, c.kernel, c.layers, c.convolution)
        self.encoder = Encoder(spec, *shared)
        self.core = FastRSSM(
            c.deter, c.hidden, c.groups, c.classes, c.blocks,
            self.encoder.out_features, spec.action.size, c.latent, c.unimix,
        )  # fmt: skip
        centre = self.encoder.centre if self.encoder.images else None
        self.decoder = Decoder(spec, centre, c.deter, c.groups * classes, c.blocks, *shared)
        heads = {name: self.new_head(h, head_size(spec, h)) for name, h in c.heads.items()}
        if spec.has_mask:
            heads[MASK_KEY] = self.new_head(HeadConfig(MASK_KEY, "bernoulli"), spec.action.size)
        for head in heads.values():
            if not head.config.target:
                head.requires_grad_(False)  # no batch teaches it
        self.heads = nn.ModuleDict(heads)
        self.ensemble = None
        if c.ensemble.members:
            sizes = self.feat_size, spec.action.size, c.groups * classes
            self.ensemble = Ensemble(*sizes, c.ensemble)
            self.uncertainty = self._uncertainty  # a world without one has no such method
        self._sizes = c.deter, c.groups, classes, self.core.gaussian

    @property
    def control(self) -> dict[str, float]:
        """Weights of the heads whose sum is the reward."""
        return self.config.control

    @property
    def discount(self) -> float:
        """1 - 1/discount_horizon."""
        return 1.0 - 1.0 / self.config.discount_horizon

    @property
    def feat_bound(self) -> float:
        """1 for categorical latents (means of tanh, and one-hots), infinite for gaussian ones."""
        return math.inf if self.core.gaussian else 1.0

    def feat(self, state: LatentState) -> Tensor:
        """Features [..., F] of states: both parts side by side."""
        return state.feat

    @property
    def columns(self) -> dict[str, Column]:
        """What replay stores of one state (see `worldmodel.rssm.state`)."""
        return columns_of(*self._sizes)

    def pack(self, state: LatentState) -> dict[str, Tensor]:
        """States [..., ...] as values of `columns`."""
        return packed(state, *self._sizes[2:])

    def unpack(self, columns: Mapping[str, Tensor]) -> LatentState:
        """The states that values of `columns` hold."""
        return unpacked(columns, *self._sizes[2:])

    def initial(self, batch_size: int) -> LatentState:
        """The state before anything was seen: zeros [B, ...]."""
        return self.core.initial(batch_size)

    def observe(
        self, state: LatentState, obs: dict[str, Tensor], action: Tensor, is_first: Tensor
    ) -> LatentState:
        """Filter one step (obs [B, ...], action [B, A], is_first [B]) or a sequence
        ([B, T, ...]); `action` is the one that led to `obs`. Returns [B, ...] or [B, T, ...]."""
        if is_first.dim() == 1:
            one = {k: v.unsqueeze(1) for k, v in obs.items()}
            states = self.observe(state, one, action.unsqueeze(1), is_first.unsqueeze(1))
            return states.map(lambda x: x.squeeze(1))
        return self.core.observe(state, self.encoder(obs), action, is_first)[0]

    def observe_mode(
        self, state: LatentState, obs: dict[str, Tensor], action: Tensor, is_first: Tensor
    ) -> LatentState:
        """As `observe` for one step, with the likeliest latents in place of drawn ones."""
        first, seen = is_first.unsqueeze(-1), self.core.see(self.encoder(obs))
        embedded = self.core.embed_action(action.masked_fill(first, 0.0))
        return self.core.filter(state, embedded, seen, first, self.core.mode)[0]

    def step(self, state: LatentState, action: Tensor) -> Prediction:
        """What action [B, A] leads to: next state, reward [B] (weighted by `control`), and the
        probability [B] that the episode goes on."""
        return self._arrived(state, action, self.core.step(state, action))

    def expect(self, state: LatentState, action: Tensor) -> Prediction:
        """As `step`, with the mean of the prior in place of a draw."""
        deter = self.core.recur(state, self.core.embed_action(action.to(state.deter.dtype)))
        mean = self.core.expectation(self.core.prior(deter)).to(deter.dtype)
        return self._arrived(state, action, LatentState(deter, mean))

    @property
    def expects_reward(self) -> bool:
        """Whether `control` is the recorded reward alone."""
        return dict(self.config.control) == {"reward": 1.0}

    def _arrived(self, before: LatentState, action: Tensor, state: LatentState) -> Prediction:
        feat = state.feat
        reward = self.reward(feat) + self.curiosity(before.feat, action)
        cont = (self.discounted_cont(feat) / self.discount).clamp(0.0, 1.0)
        return Prediction(state, reward, cont)

    def surprise(
        self,
        state: LatentState,
        obs: dict[str, Tensor],
        action: Tensor,
        believed: LatentState | None = None,
    ) -> Tensor:
        """KL(posterior || prior) [B] in nats: what obs [B, ...] tells beyond what was predicted
        for it from the state before it, or from `believed`, and the action [B, A] that led to it;
        [B, K] for K actions [B, K, A] that may have.
        """
        seen = self.core.see(self.encoder(obs))
        if action.dim() == 3:
            count = action.shape[1]
            state, seen, believed = tree.map(
                lambda x: x.repeat_interleave(count, 0), (state, seen, believed)
            )
            found = self._divergence(state, seen, action.flatten(0, 1), believed)
            return found.unflatten(0, (-1, count))
        return self._divergence(state, seen, action, believed)

    def _divergence(
        self, state: LatentState, seen: Tensor, action: Tensor, believed: LatentState | None
    ) -> Tensor:
        """KL(posterior || prior) [B] in nats, for what `core.see` made of an observation."""
        embedded = self.core.embed_action(action)
        deter = self.core.recur(state, embedded)
        other = deter if believed is None else self.core.recur(believed, embedded)
        return self.core.kl(self.core.posterior(deter, seen), self.core.prior(other))

    @property
    def uncertainty_unit(self) -> str:
        """What `uncertainty` is measured in."""
        return "the ensemble's disagreement on recorded steps"

    def _uncertainty(self, state: LatentState, action: Tensor) -> Tensor:
        """The disagreement [B] of the ensemble about action [B, A]."""
        assert self.ensemble is not None
        return self.ensemble.disagreement(state.feat, action)

    def imagine(
        self, state: LatentState, policy: Tensor | Callable[[LatentState], Tensor], horizon: int
    ) -> tuple[LatentState, Tensor]:
        """Roll out H steps from state [B, ...] under a policy or given actions [B, H, A].

        Returns H + 1 states [B, H+1, ...], the start included, and the actions [B, H, A]; the
        action at index h leads from state h to state h + 1. Rewards are the heads' to read: for
        all steps at once, which is why this is not a loop over `step`.
        """
        states, actions = [state], []
        step = self.core.stepper(state, horizon)
        for h in range(horizon):
            action = policy(state) if callable(policy) else policy[:, h]
            state = step(state, action)
            states.append(state)
            actions.append(action)
        return tree.stack(states, 1), torch.stack(actions, 1)

    def unroll(self, state: LatentState, actions: Tensor) -> Prediction:
        """`step` for each of actions [B, H, A] in turn, [B, H, ...] each; the heads read all states
        at once."""
        states, _ = self.imagine(state, actions, actions.shape[1])
        feat, after = states.feat, states.map(lambda x: x[:, 1:])
        cont = (self.discounted_cont(feat[:, 1:]) / self.discount).clamp(0.0, 1.0)
        return Prediction(after, self.imagined_reward(feat, actions)[:, 1:], cont)

    def reward(self, feat: Tensor) -> Tensor:
        """The sum of the controlled heads' predictions [...], each times its weight."""
        total = feat.new_zeros(feat.shape[:-1], dtype=torch.float32)
        for name, weight in self.config.control.items():
            if weight and name != DISAGREEMENT:
                total = total + weight * self.heads[name].predict(feat)  # type: ignore[operator]
        return total

    def curiosity(self, feat: Tensor, action: Tensor) -> Tensor:
        """What the ensemble's disagreement about an action [..., A] in a state with features
        [..., F] adds to the reward [...] of the step: 0 where it is not controlled."""
        weight = self.config.control.get(DISAGREEMENT, 0.0)
        if not weight or self.ensemble is None:
            return feat.new_zeros(feat.shape[:-1], dtype=torch.float32)
        return weight * self.ensemble.disagreement(feat, action)

    def imagined_reward(self, feat: Tensor, action: Tensor) -> Tensor:
        """The reward [..., H+1] of arriving in each state of a rollout: features [..., H+1, F],
        and the actions [..., H, A] between them. The step into the first state is not known."""
        steps = self.curiosity(feat[..., :-1, :], action)
        return self.reward(feat) + nn.functional.pad(steps, (1, 0))

    def recorded_reward(self, batch: Batch, states: LatentState) -> Tensor:
        """What was to be maximised, as it was recorded [B, T].

        Neither a head without a target nor disagreement was ever recorded: there it is their own
        prediction in the posterior states [B, T, ...], and 0 on first rows, to which no action led.
        """
        feat = states.feat.detach()
        guessed = self.curiosity(feat[:, :-1], batch.action[:, 1:])
        guessed = nn.functional.pad(guessed, (1, 0))  # the row before the first is not here
        recorded = torch.zeros_like(batch.reward)
        for name, weight in self.config.control.items():
            target = self.config.heads[name].target if name != DISAGREEMENT else None
            if target:
                recorded = recorded + weight * target_of(batch, target, self.discount)
            elif target is not None:
                guessed = guessed + weight * self.heads[name].predict(feat)  # type: ignore[operator]
        return recorded + guessed.masked_fill(batch.is_first, 0.0)

    def discounted_cont(self, feat: Tensor) -> Tensor:
        """P(the episode goes on) times the discount [...]: that product is what the head learns."""
        out: Tensor = self.heads["cont"].predict(feat)  # type: ignore[operator]
        return out

    def action_mask(self, state: LatentState) -> Tensor | None:
        """Which actions [..., A] the state allows (0 or 1), or None where all are."""
        return self.allowed(state.feat)

    def allowed(self, feat: Tensor) -> Tensor | None:
        """`action_mask` of features [..., F]."""
        if MASK_KEY not in self.heads:
            return None
        return (self.heads[MASK_KEY].predict(feat) > 0.5).float()  # type: ignore[operator]

    def decode(self, state: LatentState) -> dict[str, Tensor]:
        """What the state looks like: images in [0, 1] [..., H, W, C], vectors in their units."""
        out = self.decoder.decode_images(state)
        for key, dist in self.decoder.decode_vectors(state).items():
            out[key] = dist.mode()
        return out

    def losses(self, batch: Batch) -> ModelOutput:
        """Every loss of the world model, [B, T] each, and the posterior states."""
        if self.config.centre_images and self.encoder.images:
            images = [batch.obs[k] for k in self.encoder.images]
            self.encoder.centre.update(torch.cat(images, -1))
        start = self.unpack(batch.context) if batch.context else self.initial(batch.shape[0])
        embed = self.encoder(batch.obs)
        states, params = self.core.observe(start, embed, batch.action, batch.is_first)
        posterior, prior = self.core.dist(params), self.core.dist(self.core.prior(states.deter))
        kl = self.core.kl(posterior.detach(), prior)  # teaches the prior alone
        free = self.config.free_nats
        losses = {
            "dyn": kl.clamp_min(free),
            # Makes the posterior predictable, without moving the prior.
            "rep": self.core.kl(posterior, prior.detach()).clamp_min(free),
        }
        losses |= self.decoder.image_losses(states, batch.obs)
        for key, dist in self.decoder.decode_vectors(states).items():
            losses[key] = -dist.log_prob(batch.obs[key])
        feat = states.feat
        for name, head in self.heads.items():
            if not head.config.target:  # type: ignore[union-attr]
                continue  # fitted elsewhere
            target = target_of(batch, head.config.target, self.discount)  # type: ignore[union-attr, arg-type]
            losses[name] = head.loss(feat, target)  # type: ignore[operator]
        metrics = {
            "kl": kl.detach().mean(),
            "prior_entropy": self.core.entropy(prior.detach()).mean(),
            "posterior_entropy": self.core.entropy(posterior.detach()).mean(),
        }
        if self.ensemble is not None:
            latent = posterior.detach()
            expected = latent.mean if isinstance(latent, Normal) else latent.probs.flatten(-2)
            losses[DISAGREEMENT] = self.ensemble.loss(feat, expected, batch.action, batch.is_first)
            metrics["disagreement"] = self.ensemble.typical.clone()
        return ModelOutput(losses, states, metrics)

    def scale(self, name: str) -> float:
        """The weight of a loss by its name in `losses`."""
        c = self.config
        fixed = {"dyn": c.dyn_scale, "rep": c.rep_scale, DISAGREEMENT: c.ensemble.scale}
        fixed |= {MASK_KEY: 1.0} | {key: head.scale for key, head in c.heads.items()}
        if name in fixed:
            return fixed[name]
        return c.image_scale if self.spec.obs[name].kind == "image" else c.vector_scale

    def join(self, ranks: Ranks) -> None:
        """Take the statistics that learning needs over the data of all ranks."""
        if self.encoder.images:
            self.encoder.centre.ranks = ranks
        if self.ensemble is not None:
            self.ensemble.ranks = ranks

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise and its parts; never steps, never calls backward."""
        output = self.losses(batch)
        parts = {f"loss/{k}": v.detach().mean() for k, v in output.losses.items()}
        return self._total(output), parts | output.metrics

    def loss_and_feat(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The scalar to minimise, and the features [B, T, F] of the posteriors."""
        output = self.losses(batch)
        return self._total(output), output.states.feat

    def _total(self, output: ModelOutput) -> Tensor:
        return torch.stack([self.scale(k) * v.mean() for k, v in output.losses.items()]).sum()
