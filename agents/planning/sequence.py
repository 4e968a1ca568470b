"""The loop that planners over action sequences share: draw candidates, imagine, fit to the best."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agents.planning.base import BoundsConfig, Evaluate, Meter, Plan, Planner
from agents.planning.cache import CacheConfig
from agents.planning.imagine import Imagination, Scored
from agents.planning.space import ActionSpace, Sequences, shifted, white
from worldmodel import tree
from worldmodel.config import ConfigError, check_ranges


@dataclass
class SequenceConfig:
    """horizon: imagined steps of a candidate. iterations: of drawing and fitting. candidates: in
    each. elites: of them that the next iteration is fitted to. warm_start: the mean begins where
    that of the last decision ended, one step later; its new last step repeats the one before or,
    without repeat_last, begins afresh. std, least_std: of a continuous action
    at the start, and at least, in units where its bounds are -1 and 1. momentum: share of the
    distribution before. smoothing: share of uniform in a discrete distribution. particles: draws
    of the world for each candidate. expect: imagine expectations in place of draws. value: the
    agent's value counts at the horizon, where it has one. policy_candidates: more candidates, drawn
    by its policy. cache: of what the world predicted."""

    name: str = ""
    horizon: int = 12
    iterations: int = 1
    candidates: int = 1000
    elites: int = 10
    warm_start: bool = True
    repeat_last: bool = True
    std: float = 1.0
    least_std: float = 0.0
    momentum: float = 0.0
    smoothing: float = 0.05
    particles: int = 1
    expect: bool = False
    value: bool = True
    policy_candidates: int = 0
    bounds: BoundsConfig = field(default_factory=BoundsConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)

    def __post_init__(self) -> None:
        share, count = (0, 0.999), (1, 1 << 20)
        check_ranges(self, {
            "horizon": (1, 10_000), "iterations": (1, 10_000), "candidates": count,
            "elites": count, "std": (1e-6, 1e3), "least_std": (0, 1e3), "momentum": share,
            "smoothing": share,
            "particles": (1, 10_000), "policy_candidates": (0, 1 << 20),
        })  # fmt: skip
        if self.candidates < self.least_candidates:
            raise ConfigError(
                f"candidates is {self.candidates} with elites={self.elites}. Allowed: candidates "
                f"from {self.least_candidates} on, or fewer elites."
            )
        limit, first = self.bounds.uncertainty_limit, self.bounds.least_horizon
        if limit is not None and first >= self.horizon:
            raise ConfigError(
                f"bounds.least_horizon is {first} with horizon={self.horizon}, so that "
                f"uncertainty_limit never ends a rollout. Allowed: up to {self.horizon - 1}."
            )
        budget, one = self.bounds.budget, self.horizon * self.particles
        if 0 < budget < one:
            raise ConfigError(
                f"bounds.budget is {budget} model steps; one rollout takes {one} (horizon="
                f"{self.horizon} times particles={self.particles}). Allowed: {one} or more, or 0."
            )

    @property
    def least_candidates(self) -> int:
        """So many must be drawn: the elites are some of them."""
        return self.elites


class Warm(NamedTuple):
    """What the next decision starts from: the plan's mean [B, H, A], one step later, and its best
    candidates [B, E, H, A] likewise."""

    mean: Tensor
    elites: Tensor


class SequencePlanner(Planner):
    """Draws sequences, imagines them, fits the distribution to the best, and does so again.

    What differs from planner to planner is in the methods below `plan`.
    """

    config: SequenceConfig

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.space = ActionSpace(self.action)

    @torch.no_grad()
    def plan(
        self,
        world: Any,
        state: Any,
        evaluate: Evaluate | None = None,
        warm: Any = None,
        is_first: Tensor | None = None,
        mask: Tensor | None = None,
        began: float | None = None,
    ) -> Plan:
        """See `Planner.plan`."""
        c, batch = self.config, tree.batch_size(state)
        meter = Meter(c.bounds, self.clock, began, self.pace)
        world = self.cached(world, c.cache, c.expect)
        expect = c.expect and not c.cache.size  # a cache asks for expectations itself
        with self.stream:
            dreams = Imagination(
                world, state, evaluate, self.space, c.bounds, meter, c.particles, expect, c.value
            )
            if dreams.alternates:
                raise ConfigError(
                    f"planner={c.name} chooses a sequence of moves, and here every second one is "
                    "the other player's. Use planner=mcts."
                )
            allowed = dreams.mask(state) if mask is None else mask
            start, elites = self._start(warm, is_first, batch)
            sequences, pool, iterations = self._search(dreams, state, allowed, start, elites)
            chosen = self.choose(sequences, pool, dreams.repeats)
            action = self.space.resolve(chosen[:, 0], allowed)
        stats = {
            "model_steps": meter.rows, "iterations": iterations, "ms": meter.end(),
            "nonfinite": dreams.nonfinite, "return": float(pool.returns.amax(1).mean()),
            "std": float(sequences.std.mean()), "horizon": dreams.reached,
            **self.cache_stats,
        }  # fmt: skip
        best = pool.best(self.carried).actions
        if best.shape[1] < self.carried:  # a bound left no more
            more = self.space.resolve(sequences.mean, None).unsqueeze(1)
            best = torch.cat([best, more.expand(-1, self.carried - best.shape[1], -1, -1)], 1)
        first = Sequences(sequences.mean[:, 0], sequences.std[:, 0])
        plan = torch.cat([action.unsqueeze(1), self.space.resolve(chosen[:, 1:], None)], 1)
        return Plan(action, Warm(shifted(sequences.mean), shifted(best)), stats, first, plan, pool)

    def initial(self, batch_size: int) -> Warm:
        """See `Planner.initial`."""
        c = self.config
        mean = self.space.start(batch_size, c.horizon, c.std, self.device).mean
        return Warm(mean, mean.unsqueeze(1).repeat(1, self.carried, 1, 1))

    # What planners differ in.

    @property
    def carried(self) -> int:
        """How many of the best candidates are tried again, in the next iteration and decision."""
        return 0

    def noise(self, shape: tuple[int, int, int, int]) -> Tensor:
        """Standard normal noise [B, N, H, A]."""
        return white(shape, self.device)

    def count(self, iteration: int) -> int:
        """How many candidates an iteration draws."""
        return self.config.candidates

    def candidates(self, iteration: int, sequences: Sequences) -> Tensor:
        """New raw candidates [B, N, H, A] of one iteration."""
        batch, horizon, size = sequences.mean.shape
        noise = self.noise((batch, self.count(iteration), horizon, size))
        return self.space.draw(sequences, noise)

    def fit(self, sequences: Sequences, pool: Scored) -> Sequences:
        """The distribution after an iteration: here the elites count alike."""
        c = self.config
        best = pool.best(c.elites)
        finite = best.returns.isfinite().float()
        weights = finite / finite.sum(1, keepdim=True).clamp_min(1.0)
        return self.space.fit(
            sequences, best.actions, weights, c.momentum, c.smoothing, (c.least_std, torch.inf)
        )

    def choose(self, sequences: Sequences, pool: Scored, repeats: bool) -> Tensor:
        """The plan [B, H, A] whose first action is taken, before it is resolved: here the mean.
        repeats: whether the world would give each candidate the same return again."""
        return sequences.mean

    def best_of(self, sequences: Sequences, pool: Scored) -> Tensor:
        """The best candidate; where none was finite, the mean."""
        best = pool.best(1)
        found = best.returns.isfinite()
        return torch.where(found[:, :, None], best.actions[:, 0], sequences.mean)

    # The search.

    def _start(
        self, warm: Warm | None, is_first: Tensor | None, batch: int
    ) -> tuple[Sequences, Tensor]:
        """Where the search begins [B, H, A], and candidates [B, E, H, A] to try again: those of
        the last decision, and new ones in environments where an episode begins."""
        c = self.config
        start = self.space.start(batch, c.horizon, c.std, self.device)
        fresh = self.space.draw(
            start, self.noise((batch, self.carried, c.horizon, self.action.size))
        )
        if warm is None:
            return start, fresh
        first = torch.zeros(batch, dtype=torch.bool) if is_first is None else is_first
        first = first.to(self.device)
        mean = tree.where(first, start.mean, warm.mean) if c.warm_start else start.mean
        if not c.repeat_last:
            mean = torch.cat([mean[:, :-1], start.mean[:, -1:]], 1)
        # The plan ends one step later than before: that step is new.
        again = torch.cat([warm.elites[:, :, :-1], fresh[:, :, -1:]], 2)
        return Sequences(mean, start.std), tree.where(first, fresh, again)

    def _search(
        self,
        dreams: Imagination,
        state: Any,
        mask: Tensor | None,
        sequences: Sequences,
        again: Tensor,
    ) -> tuple[Sequences, Scored, int]:
        """The distribution that the search ends with, the last candidates, and how many iterations
        the bounds allowed."""
        c = self.config
        unscored = torch.full((len(again), 1), -torch.inf, device=self.device)
        pool = Scored(unscored, self.space.resolve(sequences.mean, None).unsqueeze(1))
        policy = again[:, :0]
        if c.policy_candidates:
            proposed = dreams.propose(state, c.policy_candidates, c.horizon)
            if proposed is None:
                return sequences, pool, 0
            policy = proposed
        for iteration in range(c.iterations):
            known = pool.best(self.carried) if iteration and dreams.repeats else None
            if known is not None:  # imagining them again would tell nothing new
                again = again[:, :0]
            raw = torch.cat([again, policy, self.candidates(iteration, sequences)], 1)
            raw = raw[:, : dreams.meter.affords(c.horizon * c.particles)]
            scored = dreams.score(state, raw, mask, not iteration) if raw.shape[1] else None
            if scored is None:
                return sequences, pool, iteration
            pool = scored if known is None else scored.join(known)
            sequences = self.fit(sequences, pool)
            again = pool.best(self.carried).actions
        return sequences, pool, c.iterations


def decayed(count: int, factor: float, iteration: int) -> int:
    """Candidates of an iteration, where each draws so many times fewer than the one before."""
    for _ in range(iteration):
        count = int(count / factor)
    return count
