"""The recurrent state-space model: one step, and the scan that is a loop over it.

    h_t = f(h_{t-1}, z_{t-1}, a_{t-1})      deter, block-diagonal GRU
    z_t ~ q(z_t | h_t, o_t)                 posterior, from the embedded observation
    z_t ~ p(z_t | h_t)                      prior, in imagination

Hafner et al., "Mastering diverse control tasks through world models" (Nature 2025).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.distributions import Normal, OneHot
from worldmodel.nets import MLP, BlockLinear, Linear, NormSiLU
from worldmodel.rssm.state import LatentState


class RSSM(nn.Module):
    """Deterministic and stochastic latent dynamics.

    deter D, hidden width, groups S x classes K (K = 1 in storage for Gaussian latents), `blocks`
    of the block-diagonal recurrence, `embed` width E of the encoder, `action` size A.
    """

    def __init__(
        self,
        deter: int,
        hidden: int,
        groups: int,
        classes: int,
        blocks: int,
        embed: int,
        action: int,
        latent: str = "categorical",
        unimix: float = 0.01,
    ) -> None:
        super().__init__()
        if latent not in ("categorical", "gaussian"):
            raise ValueError(f"Unknown latent '{latent}'. Known: categorical, gaussian.")
        self.deter, self.groups, self.blocks = deter, groups, blocks
        self.gaussian = latent == "gaussian"
        self.classes = 1 if self.gaussian else classes
        self.unimix = unimix
        self.eps = 1e-4  # of every norm
        stoch = groups * self.classes
        self.numbers = 2 if self.gaussian else classes  # mean and std, or logits
        out = groups * self.numbers
        self.deter_in = nn.Sequential(Linear(deter, hidden), NormSiLU(hidden))
        self.stoch_in = nn.Sequential(Linear(stoch, hidden), NormSiLU(hidden))
        self.action_in = nn.Sequential(Linear(action, hidden), NormSiLU(hidden))
        self.mix = BlockLinear(deter + 3 * hidden * blocks, deter, blocks)
        self.mix_norm = NormSiLU(deter)
        self.gates = BlockLinear(deter, 3 * deter, blocks)
        self.prior_net = nn.Sequential(MLP(deter, hidden, 2), Linear(hidden, out))
        self.post_in = Linear(deter + embed, hidden)
        self.post_out = nn.Sequential(NormSiLU(hidden), Linear(hidden, out))

    def initial(self, batch_size: int) -> LatentState:
        """Zeros: deter [B, D], stoch [B, S, K]."""
        like = self.post_in.weight
        return LatentState(
            like.new_zeros(batch_size, self.deter),
            like.new_zeros(batch_size, self.groups, self.classes),
        )

    def embed_action(self, action: Tensor) -> Tensor:
        """[..., A] -> [..., hidden]; entries beyond [-1, 1] are scaled back to its edge."""
        out: Tensor = self.action_in(action / action.detach().abs().clamp_min(1.0))
        return out

    def recur(self, state: LatentState, action: Tensor) -> Tensor:
        """Next deter [B, D] from the state and the embedded action [B, hidden]."""
        deter = state.deter.to(action.dtype)  # the networks' precision, under autocast
        shared = torch.cat(
            [self.deter_in(deter), self.stoch_in(state.stoch.flatten(-2)), action], -1
        )
        own = deter.unflatten(-1, (self.blocks, -1))  # [B, G, D/G]
        shared = shared.unsqueeze(-2).expand(*own.shape[:-1], -1)
        x = self.mix_norm(self.mix(torch.cat([own, shared], -1)).flatten(-2))
        gates = self.gates(x.unflatten(-1, (self.blocks, -1)))  # [B, G, 3 D/G]
        reset, candidate, update = (g.flatten(-2) for g in gates.chunk(3, -1))
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        return torch.lerp(deter, candidate, torch.sigmoid(update - 1.0))

    def prior(self, deter: Tensor) -> Tensor:
        """Parameters [..., S, K or 2] of p(z | h)."""
        out: Tensor = self.prior_net(deter)
        return out.unflatten(-1, (self.groups, -1))

    def posterior(self, deter: Tensor, seen: Tensor) -> Tensor:
        """Parameters [..., S, K or 2] of q(z | h, o), of what `see` makes of the observation."""
        w_deter = self.post_in.weight[:, : self.deter]
        out: Tensor = self.post_out(seen + F.linear(deter, w_deter))
        return out.unflatten(-1, (self.groups, -1))

    def see(self, embed: Tensor) -> Tensor:
        """The part [..., hidden] of the posterior's first layer that the embedded observation
        [..., E] has: it needs no state, so that it is computed for all steps at once."""
        return F.linear(embed, self.post_in.weight[:, self.deter :], self.post_in.bias)

    def dist(self, params: Tensor | OneHot | Normal) -> OneHot | Normal:
        """The latent's distribution, from its parameters unless it is one already; kl() of a
        OneHot is per group, see `kl`."""
        if not isinstance(params, Tensor):
            return params
        if self.gaussian:
            mean, std = params.float().unbind(-1)
            return Normal(mean, 2.0 * torch.sigmoid(std / 2.0) + 0.1)
        return OneHot(params, self.unimix)

    def sample(self, params: Tensor) -> Tensor:
        """Draw z [..., S, K] with gradient to the parameters."""
        z = self.dist(params).sample()
        return z.unsqueeze(-1) if self.gaussian else z

    def mode(self, params: Tensor) -> Tensor:
        """The likeliest z [..., S, K]."""
        z = self.dist(params).mode()
        return z.unsqueeze(-1) if self.gaussian else z

    def expectation(self, params: Tensor) -> Tensor:
        """The mean of z [..., S, K]: the probabilities of the classes, or the means."""
        dist = self.dist(params)
        return dist.probs if isinstance(dist, OneHot) else dist.mean.unsqueeze(-1)

    def kl(self, posterior: Tensor | OneHot | Normal, prior: Tensor | OneHot | Normal) -> Tensor:
        """KL(posterior || prior) [...] in nats, summed over the groups; of parameters or
        distributions."""
        kl = self.dist(posterior).kl(self.dist(prior))  # type: ignore[arg-type]
        return kl if self.gaussian else kl.sum(-1)

    def entropy(self, params: Tensor | OneHot | Normal) -> Tensor:
        """[...] in nats, summed over the groups; of parameters or a distribution."""
        entropy = self.dist(params).entropy()
        return entropy if self.gaussian else entropy.sum(-1)

    def observe(
        self, state: LatentState, embed: Tensor, action: Tensor, is_first: Tensor
    ) -> tuple[LatentState, Tensor]:
        """Filter a sequence: embed [B, T, E], action [B, T, A] that led to it, is_first [B, T].

        Returns the states [B, T, ...] and the posterior's parameters [B, T, S, K or 2]. What does
        not depend on the previous state is computed for all steps at once.
        """
        first = is_first.unsqueeze(-1)  # [B, T, 1]
        actions = self.embed_action(action.to(embed.dtype).masked_fill(first, 0.0))
        return self.follow(state, actions, self.see(embed), is_first)

    def follow(
        self, state: LatentState, actions: Tensor, seen: Tensor, is_first: Tensor
    ) -> tuple[LatentState, Tensor]:
        """The part of `observe` that goes from state to state: embedded actions [B, T, hidden],
        and what was seen [B, T, hidden]."""
        each_action, each_seen, firsts = (x.unbind(1) for x in (actions, seen, is_first))
        deters, stochs, params = [], [], []
        for t in range(is_first.shape[1]):
            step = each_action[t], each_seen[t], firsts[t].unsqueeze(-1)
            state, logits = self.filter(state, *step, self.sample)
            deters.append(state.deter)
            stochs.append(state.stoch)
            params.append(logits)
        states = LatentState(torch.stack(deters, 1), torch.stack(stochs, 1))
        return states, torch.stack(params, 1)

    def filter(
        self,
        state: LatentState,
        action: Tensor,
        seen: Tensor,
        first: Tensor,
        draw: Callable[[Tensor], Tensor],
    ) -> tuple[LatentState, Tensor]:
        """One step of `observe`: embedded action and what was seen [B, hidden], first [B, 1].

        Returns the state, its z drawn from the posterior's parameters, and these.
        """
        # A new episode begins from zeros; there is no learned initial state. Filled, because a
        # NaN of the episode before would survive a product with zero.
        state = LatentState(
            state.deter.masked_fill(first, 0.0),
            state.stoch.masked_fill(first.unsqueeze(-1), 0.0),
        )
        deter = self.recur(state, action)
        params = self.posterior(deter, seen)
        return LatentState(deter, draw(params).to(deter.dtype)), params

    def stepper(
        self, start: LatentState, steps: int
    ) -> Callable[[LatentState, Tensor], LatentState]:
        """`step`, for many steps from `start` on."""
        return self.step

    def step(self, state: LatentState, action: Tensor) -> LatentState:
        """Imagine one step: action [B, A] -> state [B, ...] drawn from the prior."""
        deter = self.recur(state, self.embed_action(action.to(state.deter.dtype)))
        return LatentState(deter, self.sample(self.prior(deter)).to(deter.dtype))
