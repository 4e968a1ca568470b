"""A learned world whose state is a vector: what is observed, and nothing more.

    (s, a) -> normalise -> predictor -> Gaussian of (s' - s, reward); does the episode go on?

Several opinions of the same step (`worldmodel.models.predictors`) tell what is random, which all
of them expect (aleatoric), from what is unknown, where they differ (epistemic). A step is drawn
from one opinion, and the state remembers which:

    tsinf    a state keeps the opinion that it was dealt first, for as long as it is imagined
    ts1      every step is dealt anew

Rows are dealt equally to all. Chua et al., "Deep Reinforcement Learning in a Handful of Trials"
(PETS, 2018); Janner et al., "When to Trust Your Model" (MBPO, 2019).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel.capabilities import for_each_action
from worldmodel.config import ConfigError, check_ranges, unknown
from worldmodel.models.closed_form import CLOSED, closed_form
from worldmodel.models.dealing import fresh_opinions, kept_opinions
from worldmodel.models.fitting import FitConfig, Fitter, check_rows, recorded, warn_of_few
from worldmodel.models.known import LEARNED, Known
from worldmodel.models.predictors import KINDS, Outcome, Predictor
from worldmodel.models.vectors import Rows, Vectors
from worldmodel.replay import Replay
from worldmodel.types import Batch, EnvSpec, Prediction

PARTICLES = ("tsinf", "ts1")
DOUBTS = {
    "epistemic": "variance of the opinions' means, averaged over entries of the state, each in "
    "units of its change's variance in the data",
    "largest": "the largest norm of an opinion's standard deviation, in the state's own units",
}


@dataclass
class GaussianConfig:
    """kind: of the predictor: ensemble, dropout, priors, evidential; for small data also process (a
    Gaussian process) and linear, to which `fit`, layers and members mean nothing. members:
    networks, or passes of the one with dropout. elites: of the members, those with the least error
    on held-out rows, which alone are asked. layers, units: hidden layers and width. decay: of each
    layer's weights, the output's last; one number counts for all. probabilistic: learn the noise;
    else the squared error alone counts, and a step adds no noise. dropout: share left out.
    prior_scale: of the functions that never learn.
    reward, terminal: "learned", or the name of a function that says it (worldmodel.models.known, or
    your own module:function); terminal may be "never". absolute, angles: entries of the state,
    "key.index": predicted as they are, not as changes; seen as sine and cosine. particles: tsinf or
    ts1. doubt: what `uncertainty` is: epistemic or largest. discount: of one step. fit: how it is
    trained."""

    kind: str = "ensemble"
    members: int = 7
    elites: int = 5
    layers: int = 4
    units: int = 200
    decay: list[float] = field(default_factory=lambda: [2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4])
    probabilistic: bool = True
    dropout: float = 0.05
    prior_scale: float = 3.0
    reward: str = LEARNED
    terminal: str = LEARNED
    absolute: list[str] = field(default_factory=list)
    angles: list[str] = field(default_factory=list)
    particles: str = "tsinf"
    doubt: str = "epistemic"
    discount: float = 0.99
    fit: FitConfig = field(default_factory=FitConfig)

    def __post_init__(self) -> None:
        count = (1, 1 << 12)
        check_ranges(self, {
            "members": count, "elites": count, "layers": (1, 64), "units": (1, 1 << 16),
            "decay": (0, 1e6), "dropout": (0, 0.99), "prior_scale": (0, 1e6), "discount": (0, 1),
        })  # fmt: skip
        for name, known in (
            ("kind", (*KINDS, *CLOSED)),
            ("particles", PARTICLES),
            ("doubt", list(DOUBTS)),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(unknown(name, getattr(self, name), known))
        if self.elites > self.members:
            raise ConfigError(
                f"elites is {self.elites}, but there are {self.members} members; at most all."
            )
        if len(self.decay) not in (1, self.layers + 1):
            raise ConfigError(
                f"decay has {len(self.decay)} numbers; allowed: {self.layers + 1}, one for each of "
                f"{self.layers} hidden layers and the output, or one for all."
            )


class GaussianState(NamedTuple):
    """values [..., D]: the observation's vectors side by side. member [...]: the opinion that steps
    from here are drawn from, -1 where none was dealt yet; whole numbers as float32, as everything
    that an exported graph passes on."""

    values: Tensor
    member: Tensor


class Moments(NamedTuple):
    """Of a step's change and reward [B, O], in their own units: mean, and the variance that is
    noise (aleatoric) and that is ignorance (epistemic)."""

    mean: Tensor
    aleatoric: Tensor
    epistemic: Tensor


class Gaussian(nn.Module):
    """The world. Steps draw from torch's generator.

    Raises ConfigError where the observation has no vector, or an image or a symbol that this world
    would not see; and for names that do not exist.
    """

    Config = GaussianConfig
    predictor: Any  # a module, see `worldmodel.models.predictors`
    elites: Tensor

    def __init__(self, spec: EnvSpec, config: GaussianConfig) -> None:
        super().__init__()
        self.spec, self.config, self.discount = spec, config, config.discount
        # Networks whose opinions mean nothing in the units of the data see targets in these.
        closed = config.kind in CLOSED
        scaled = closed or config.kind in ("priors", "evidential")
        self.vectors = v = Vectors(
            spec, config.angles, config.absolute, config.reward == LEARNED, scaled
        )
        self.known = Known(config.reward, config.terminal, v.size, spec.action, not closed)
        self.reward, self.ends = self.known.reward, self.known.ends
        self.feat_size, self.feat_bound = v.size, float("inf")
        if closed and self.ends is None:
            raise ConfigError(
                f"kind={config.kind} does not learn where episodes end: name model.terminal, or "
                "say never."
            )
        predictor: Any = (
            closed_form(config.kind, v.inputs_size, v.targets_size) if closed else Predictor(
                config.kind, config.members, v.inputs_size, v.targets_size, config.units,
                config.layers, config.probabilistic, config.dropout, config.prior_scale,
            )
        )  # fmt: skip
        self.predictor = predictor
        # How many opinions are asked, and the networks that give them.
        many = predictor.networks > 1
        self.opinions: int = config.elites if many else predictor.opinions
        self.register_buffer("elites", torch.arange(self.opinions))
        self.decay = config.decay * (config.layers + 1 if len(config.decay) == 1 else 1)
        doubts = self.opinions > 1 or config.kind not in ("ensemble", "priors")
        if doubts or config.doubt == "largest":
            self.uncertainty = self._uncertainty
            self.uncertainty_unit = DOUBTS[config.doubt]
        if not closed:
            self.loss = self._loss
        # Seeded from torch's generator, which the caller seeds.
        self._seed = int(torch.randint(2**31, ()).item())
        self._fitter: Fitter | None = None

    # A world (`worldmodel.types.Dynamics`).

    def initial(self, batch_size: int) -> GaussianState:
        """Zeros, [B, ...]: `step` needs a state that was observed."""
        device = self.elites.device
        member = torch.full((batch_size,), -1.0, device=device)
        return GaussianState(torch.zeros(batch_size, self.feat_size, device=device), member)

    def observe(
        self, state: GaussianState, obs: dict[str, Tensor], action: Tensor, is_first: Tensor
    ) -> GaussianState:
        """The state is what is observed; the past adds nothing."""
        values = self.vectors.flat(obs)
        return GaussianState(values, torch.full(values.shape[:-1], -1.0, device=values.device))

    def step(self, state: GaussianState, action: Tensor) -> Prediction[GaussianState]:
        """A draw from one opinion for each row."""
        outcome, kept = self._drawn_from(state, action)
        drawn = outcome.mean
        if self.config.probabilistic:
            variance = outcome.variance + outcome.doubt
            drawn = drawn + variance.sqrt() * torch.randn_like(drawn)
        return self._prediction(state.values, action, drawn, outcome.goes_on.sigmoid(), kept)

    def expect(self, state: GaussianState, action: Tensor) -> Prediction[GaussianState]:
        """The mean of all opinions."""
        outcome = self.all_opinions(state.values, action)
        goes_on = outcome.goes_on.sigmoid().mean(0)
        return self._prediction(state.values, action, outcome.mean.mean(0), goes_on, state.member)

    expects_reward = True  # the environment's own

    @property
    def deterministic(self) -> bool:
        """Whether a step draws nothing."""
        one = self.opinions == 1 and self.config.kind in ("ensemble", "priors")
        return one and not self.config.probabilistic

    def decode(self, state: GaussianState) -> dict[str, Tensor]:
        """The observation, by key, in its own units."""
        return self.vectors.by_key(state.values)

    def feat(self, state: GaussianState) -> Tensor:
        """The state's numbers [..., D]."""
        return state.values

    @for_each_action
    def surprise(
        self, state: GaussianState, obs: dict[str, Tensor], action: Tensor,
        believed: GaussianState | None = None,
    ) -> Tensor:  # fmt: skip
        """Nats [B] by which the observation is less likely than the likeliest one, under a Gaussian
        with the moments of all opinions together."""
        before = state if believed is None else believed
        found = self.moments(before, action)
        variance = (found.aleatoric + found.epistemic)[..., : self.feat_size].clamp_min(1e-12)
        mean = self.vectors.base * before.values + found.mean[..., : self.feat_size]
        return 0.5 * ((self.vectors.flat(obs) - mean).square() / variance).sum(-1)

    def moments(self, state: GaussianState, action: Tensor) -> Moments:
        """Of all opinions together, for states [B] and actions [B, A]."""
        outcome = self.all_opinions(state.values, action)
        epistemic = outcome.mean.var(0, correction=0) + outcome.doubt.mean(0)
        return Moments(outcome.mean.mean(0), outcome.variance.mean(0), epistemic)

    def _uncertainty(self, state: GaussianState, action: Tensor) -> Tensor:
        """[B], in `uncertainty_unit`."""
        if self.config.doubt == "largest":
            outcome = self.all_opinions(state.values, action)
            return (outcome.variance + outcome.doubt).sum(-1).sqrt().amax(0)
        epistemic = self.moments(state, action).epistemic / self.vectors.change_variance
        return epistemic[..., : self.feat_size].mean(-1)

    def all_opinions(self, values: Tensor, action: Tensor) -> Outcome:
        """[K, B, ...] in the targets' own units."""
        x = self.vectors.inputs(values, action)
        return self._ask(x.expand(self.opinions, *x.shape))

    # Learning.

    @property
    def fitter(self) -> Fitter:
        """What trains it; made when it is first asked for, where the weights then lie."""
        if self._fitter is None:
            about = self.predictor, self.vectors, self.loss_of, self.config.fit
            self._fitter = Fitter(*about, self._seed)
        return self._fitter

    def fit(self, replay: Replay) -> dict[str, float]:
        """One training on all that is recorded, with which named functions are compared; no metrics
        where that is too little yet."""
        rows = recorded(self.vectors, replay)
        if rows is None or len(rows.reward) < self.least_rows:
            if rows is not None and self.config.kind not in CLOSED:
                warn_of_few(self.config.fit)
            return {}
        metrics = self.fit_rows(rows)
        self.known.compare(rows)
        return metrics

    def fit_rows(self, rows: Rows) -> dict[str, float]:
        """One training on these rows, see `Fitter.fit`; then the members with the least errors on
        what was held out are the elites."""
        if self.config.kind in CLOSED:
            check_rows(rows, self.least_rows)
            self.vectors.normalise(rows)
            x, target = self.vectors.inputs(rows.values, rows.action), self.vectors.targets(rows)
            return {"model/rows": float(len(x)), **self.predictor.fit(x, target)}
        metrics, errors = self.fitter.fit(rows)
        if self.predictor.networks > 1:
            best = np.argsort(errors, kind="stable")[: self.opinions]
            self.elites.copy_(torch.from_numpy(np.sort(best)))
        return metrics

    @property
    def least_rows(self) -> int:
        """Transitions without which nothing is learned."""
        return 3 if self.config.kind in CLOSED else self.config.fit.least_rows

    def get_extra_state(self) -> dict[str, Any]:
        """What trains it, as a part of `state_dict`."""
        return {} if self.config.kind in CLOSED else self.fitter.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Put it back."""
        if state:
            self.fitter.load_state_dict(state)

    def _loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Of recorded sequences, all networks on the same rows; see `worldmodel.models.fitting` for
        what a careful training does."""
        inside = ~batch.is_first[:, 1:]
        values = self.vectors.flat(batch.obs)
        goes_on = 1.0 - batch.is_terminal[:, 1:].float()
        rows = Rows(
            values[:, :-1][inside], batch.action[:, 1:][inside], batch.reward[:, 1:][inside],
            goes_on[inside], values[:, 1:][inside],
        )  # fmt: skip
        x, target = self.vectors.inputs(rows.values, rows.action), self.vectors.targets(rows)
        loss = self.loss_of(x, target, rows.goes_on)
        return loss, {"loss/model": loss.detach()}

    def loss_of(self, x: Tensor, target: Tensor, goes_on: Tensor) -> Tensor:
        """The predictor's loss and the decay of its weights: x, target, goes_on [N, ...], or
        [M, N, ...] where each network has rows of its own."""
        if x.ndim == 2:
            many = self.predictor.networks
            x, target, goes_on = (v.expand(many, *v.shape) for v in (x, target, goes_on))
        ends = goes_on if self.ends is None else None
        return self.predictor.loss(x, target, ends) + self.predictor.decay(self.decay)

    # Inside.

    def _drawn_from(self, state: GaussianState, action: Tensor) -> tuple[Outcome, Tensor]:
        """What one opinion says of each row [B, ...], in the targets' own units; and what the next
        state remembers of it."""
        x = self.vectors.inputs(state.values, action)
        if self.config.particles == "tsinf":
            return kept_opinions(x, state.member, self.opinions, self._ask)
        return fresh_opinions(x, self.opinions, self._ask), state.member

    def _ask(self, x: Tensor) -> Outcome:
        """x [K, N, in] -> `Outcome` in the targets' own units."""
        chosen = self.elites if self.opinions < self.predictor.networks else None
        outcome: Outcome = self.predictor(x, chosen)
        v = self.vectors
        if not v.scaled:
            return outcome
        square = v.target_std.square()
        mean = outcome.mean * v.target_std + v.target_mean
        return Outcome(mean, outcome.variance * square, outcome.doubt * square, outcome.goes_on)

    def _prediction(
        self, values: Tensor, action: Tensor, drawn: Tensor, goes_on: Tensor, member: Tensor
    ) -> Prediction[GaussianState]:
        action = self.spec.action.clip(action)
        after = self.vectors.base * values + drawn[..., : self.feat_size]
        reward = drawn[..., -1] if self.reward is None else self.reward(values, action, after)
        if self.ends is not None:
            goes_on = 1.0 - self.ends(values, action, after).to(after.dtype)
        return Prediction(GaussianState(after, member), reward, goes_on)
