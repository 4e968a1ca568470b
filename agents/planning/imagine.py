"""Candidates of action sequences, imagined in a world and scored:

return = sum over t of weight_t (r_{t+1} - caution * uncertainty_t) + weight_H value(s_H)
weight_0 = 1,  weight_{t+1} = weight_t * discount * cont_{t+1}

The discount is negative where two players move in turn: what the other one earns is lost.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from agents.planning.base import BoundsConfig, Evaluate, Meter
from agents.planning.space import ActionSpace
from worldmodel import tree
from worldmodel.capabilities import Alternates, Deterministic, Expects, Masks, Uncertain, Unrolls
from worldmodel.config import ConfigError
from worldmodel.types import Dynamics, Prediction

STRIDE = 4  # steps that are imagined at once where there is a deadline


class Scored(NamedTuple):
    """Imagined candidates of B environments: their returns [B, N], -inf for those that were not
    finite, and the actions [B, N, H, A] that were executed (masks may have changed some)."""

    returns: Tensor
    actions: Tensor

    def join(self, other: Scored) -> Scored:
        """The candidates of both."""
        return Scored(
            torch.cat([self.returns, other.returns], 1), torch.cat([self.actions, other.actions], 1)
        )

    def best(self, count: int) -> Scored:
        """The best candidates, in falling order."""
        returns, index = self.returns.topk(min(count, self.returns.shape[1]), 1)
        where = index[:, :, None, None].expand(-1, -1, *self.actions.shape[2:])
        return Scored(returns, self.actions.gather(1, where))


class Imagination:
    """Scores candidates in one world, for the decision in states [B, ...].

    particles: draws of each candidate, whose mean counts. expect: imagine expectations in place of
    draws (`Expects`). bootstrap: the agent's value counts at the horizon, where it gives states
    one. Raises ConfigError where the world or the agent lacks what this asks for.
    """

    def __init__(
        self,
        world: Dynamics[Any],
        state: Any,
        evaluate: Evaluate | None,
        space: ActionSpace,
        bounds: BoundsConfig,
        meter: Meter,
        particles: int = 1,
        expect: bool = False,
        bootstrap: bool = True,
    ) -> None:
        self.world, self.evaluate, self.space = world, evaluate, space
        self.bounds, self.meter, self.particles = bounds, meter, particles
        self.doubts = bounds.caution > 0 or bounds.uncertainty_limit is not None
        if self.doubts and not isinstance(world, Uncertain):
            raise ConfigError(
                f"caution and uncertainty_limit need a world that knows its uncertainty; "
                f"{type(world).__name__} does not. Leave them at 0 and null."
            )
        if expect and not isinstance(world, Expects):
            raise ConfigError(
                f"expect=true needs a world that looks ahead without drawing; "
                f"{type(world).__name__} does not. Set expect=false."
            )
        #: Whether two players move in turn, and the discount of a step with its sign.
        self.alternates = isinstance(world, Alternates) and world.alternates
        self.discount = -world.discount if self.alternates else world.discount
        self._masks = isinstance(world, Masks)  # asking takes as long as a small step
        self._step = world.expect if expect and isinstance(world, Expects) else world.step
        # Steps of one call of the world; a deadline wants to be asked about between some.
        self.stride, self.reached = 1, 0
        if isinstance(world, Unrolls) and not (expect or self.doubts):
            self.stride = STRIDE if bounds.deadline_ms else 1 << 20
        #: Whether the same candidate would get the same return again.
        self.repeats = expect or (isinstance(world, Deterministic) and world.deterministic)
        self.bootstrap = bootstrap and evaluate is not None
        self.nonfinite = 0

    def value(self, state: Any) -> Tensor:
        """The agent's value of states; ConfigError where it has none."""
        value = None if self.evaluate is None else self.evaluate(state).value
        if value is None:
            raise ConfigError(
                "This agent gives states no value, and bounds.uncertainty_limit needs one where "
                "rollouts end. Set it to null."
            )
        return value

    def mask(self, state: Any) -> Tensor | None:
        """Actions that a state allows, as far as the world knows."""
        return self.world.action_mask(state) if self._masks else None  # type: ignore[attr-defined]

    def advance(self, state: Any, action: Tensor, rows: int) -> Prediction[Any]:
        """One call of the world, with so many rows for each environment."""
        found = self._step(state, action)
        self.meter.spend(rows)
        return found

    def score(
        self, state: Any, raw: Tensor, mask: Tensor | None = None, partial: bool = False
    ) -> Scored | None:
        """Candidates raw [B, N, H, A] from states [B, ...], mask [B, A] of their first action;
        None where the deadline came first. partial: where some steps were imagined by then, all
        candidates are scored by these; `reached` says how many they were."""
        batch, count, horizon = raw.shape[:3]
        rows = count * self.particles
        state = tree.map(lambda x: x.repeat_interleave(rows, 0), state)
        raw = raw.repeat_interleave(self.particles, 1).flatten(0, 1)  # [B N P, H, A]
        known = self.mask(state)
        allowed = known if mask is None else mask.repeat_interleave(rows, 0)
        stride = self.stride if known is None else 1
        total, weight = (
            torch.zeros(batch * rows, device=raw.device),
            torch.ones((), device=raw.device),
        )
        weight = weight.expand(batch * rows)
        executed, t = [], 0
        while t < horizon:
            if self.meter.late(min(stride, horizon - t)):
                stride = 1  # a shorter call may still be in time
                if self.meter.late():
                    if not (partial and t):
                        return None
                    break
            actions = self.space.resolve(
                raw[:, t : t + 1], None if allowed is None else allowed[:, None]
            )
            if stride > 1:
                later = self.space.resolve(raw[:, t + 1 : t + stride], None)
                actions = torch.cat([actions, later], 1)
            state, total, weight = self._walk(state, actions, total, weight, t, rows)
            executed.append(actions)
            t += actions.shape[1]
            allowed = self.mask(state) if known is not None else None
        if t < horizon:
            executed.append(self.space.resolve(raw[:, t:], None))
        self.reached = min(self.reached or t, t)
        total = self._ended(total, weight, state)
        return self._scored(total, torch.cat(executed, 1), batch)

    def _walk(
        self, state: Any, actions: Tensor, total: Tensor, weight: Tensor, t: int, rows: int
    ) -> tuple[Any, Tensor, Tensor]:
        """State, returns and weights [B N P] after actions [B N P, k, A] from step t on."""
        if actions.shape[1] > 1:
            states, reward, cont = self.world.unroll(state, actions)  # type: ignore[attr-defined]
            self.meter.spend(rows * actions.shape[1])
            for k in range(actions.shape[1]):
                total, weight = self._counted(total, weight, reward[:, k], cont[:, k])
            return tree.index(states, (slice(None), -1)), total, weight
        cost: Tensor | float = 0.0
        if self.doubts:
            doubt = self.world.uncertainty(state, actions[:, 0])  # type: ignore[attr-defined]
            total, weight = self._stop(state, doubt, total, weight, t)
            cost = self.bounds.caution * doubt * weight.sign()  # a loss, whoever moves
        state, reward, cont = self.advance(state, actions[:, 0], rows)
        total, weight = self._counted(total, weight, reward - cost, cont)
        return state, total, weight

    def _scored(self, total: Tensor, executed: Tensor, batch: int) -> Scored:
        """From returns [B N P] and actions [B N P, H, A], one of each candidate's particles."""
        returns = total.view(batch, -1, self.particles).mean(-1)
        finite = returns.isfinite()
        self.nonfinite += int((~finite).sum())
        actions = executed.view(*returns.shape, self.particles, *executed.shape[1:])[:, :, 0]
        return Scored(returns.masked_fill(~finite, -torch.inf), actions)

    def _counted(
        self, total: Tensor, weight: Tensor, reward: Tensor, cont: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return and weight after a step. Nothing counts after the end of an episode, not even what
        is not finite."""
        there = weight != 0
        total = total + torch.where(there, weight * reward, 0.0)
        return total, weight * torch.where(there, cont * self.discount, 0.0)

    def _ended(self, total: Tensor, weight: Tensor, state: Any) -> Tensor:
        """The return with what the agent thinks of the last state, where it counts."""
        value = self.evaluate(state).value if self.bootstrap and self.evaluate else None
        if value is not None:
            total = total + torch.where(weight != 0, weight * value, 0.0)
        return torch.where(weight.isnan(), torch.nan, total)  # by a `cont` that was not finite

    def _stop(
        self, state: Any, doubt: Tensor, total: Tensor, weight: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        """End the rollouts that the world is too unsure of; the value stands for the rest."""
        limit = self.bounds.uncertainty_limit
        if limit is None or t < self.bounds.least_horizon:
            return total, weight
        ends = (doubt > limit) & (weight != 0)
        if not ends.any():
            return total, weight
        total = total + torch.where(ends, weight * self.value(state), 0.0)
        return total, weight.masked_fill(ends, 0.0)

    def propose(self, state: Any, count: int, horizon: int) -> Tensor | None:
        """Sequences [B, N, H, A] that the agent's policy draws in the world; None where the
        deadline came first. Raises ConfigError where there is no policy."""
        prior = None if self.evaluate is None else self.evaluate(state).prior
        if prior is None:
            raise ConfigError(
                "policy_candidates needs an agent with a policy over the states of its world; "
                "there is none here. Set policy_candidates=0."
            )
        state = tree.map(lambda x: x.repeat_interleave(count, 0), state)
        actions = []
        for t in range(horizon):
            if self.meter.late(0):  # timed apart: the policy is asked too, the last step not taken
                return None
            assert self.evaluate is not None
            action = self.space.action.clip(self.evaluate(state).prior.sample())
            actions.append(action)
            if t + 1 < horizon:
                state = self.advance(state, action, count).state
        return torch.stack(actions, 1).unflatten(0, (-1, count))
