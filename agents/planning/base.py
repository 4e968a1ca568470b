"""What every planner is: it searches a world for the action to take now, within its bounds.

    plan = planner.plan(world, state, evaluate, warm, is_first)
    plan.action -> the environment; plan.warm -> the next call

A planner works on any `worldmodel.types.Dynamics`, decides for B environments in one search, and
owns its random numbers, those that a stochastic world draws for it included.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from agents.base import Evaluation
from agents.planning.cache import CacheConfig, CachedWorld
from worldmodel.config import ConfigError, check_ranges
from worldmodel.seeding import Stream
from worldmodel.types import ActionSpec

Evaluate = Callable[[Any], Evaluation]


class Plan(NamedTuple):
    """action: encoded [B, A], as the environment executes it. warm: what the next decision starts
    from, a tree [B, ...]. stats: numbers about the search, by name. first: the distribution of the
    first action that the search ended with (`space.Sequences` without H), where it has one.
    sequence: the whole plan [B, H, A]; None of a tree. searched: what was looked at last, the
    candidates (`imagine.Scored`) or the trees (`tree_rules.Trees`)."""

    action: Tensor
    warm: Any
    stats: dict[str, float]
    first: Any = None
    sequence: Tensor | None = None
    searched: Any = None


@dataclass
class BoundsConfig:
    """Where a search ends, and how careful it is.

    budget: rows of the world that one decision of one environment may step; 0: no bound.
    deadline_ms: the decision is made by then, with the best plan so far; 0: no deadline.
    caution: w; the world's uncertainty times w is taken off each imagined reward.
    uncertainty_limit: a rollout ends before the first step, from step `least_horizon` on, whose
    uncertainty exceeds this; the agent's value of the state there stands for the rest. null: never.
    """

    budget: int = 0
    deadline_ms: float = 0.0
    caution: float = 0.0
    uncertainty_limit: float | None = None
    least_horizon: int = 1

    def __post_init__(self) -> None:
        check_ranges(self, {
            "budget": (0, 1 << 40), "deadline_ms": (0, 1e9), "caution": (0, 1e9),
            "uncertainty_limit": (0, 1e30), "least_horizon": (0, 1 << 20),
        })  # fmt: skip


class Pace:
    """The quickest call of the world so far, by its steps, and the quickest ending of a decision
    after its last call, in seconds: what a planner knows of a deadline before a decision begins.

    What was slow may only have been cold, or beside other work. So after one decision without a
    call, then after two, four, eight and so on, a call of one step is tried all the same.
    """

    def __init__(self) -> None:
        self.calls: dict[int, float] = {}
        self.ending = 0.0
        self._without, self._wait = 0, 1  # decisions in a row, and how many until a try

    def call(self, steps: int, seconds: float) -> None:
        """A call of so many steps took so long."""
        self.calls[steps] = min(self.calls.get(steps, seconds), seconds)

    def expected(self, steps: int) -> float:
        """Of a call with so many steps, which takes at most as long as that many calls of one."""
        found = self.calls.get(steps, 0.0)
        return min(found, steps * self.calls[1]) if steps and 1 in self.calls else found

    def end(self, seconds: float) -> None:
        """So long after its last call a decision was made."""
        self.ending = min(self.ending or seconds, seconds)

    @property
    def tries(self) -> bool:
        """Whether a call is due that does not look in time."""
        return self._without >= self._wait

    def decided(self, called: bool, tried: bool) -> None:
        """A decision is made. called: with a call of the world; tried: which did not look in
        time."""
        self._without = 0 if called else self._without + 1
        if called:
            self._wait = 2 * self._wait if tried else 1


class Meter:
    """Rows stepped, for each environment, and time spent on one decision.

    began: by the clock; None: now. pace: what earlier decisions took."""

    def __init__(
        self,
        bounds: BoundsConfig,
        clock: Callable[[], float],
        began: float | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.clock, self.began = clock, clock() if began is None else began
        self.budget = bounds.budget or None
        self.deadline = self.began + 1e-3 * bounds.deadline_ms if bounds.deadline_ms else None
        self.rows = 0
        self.pace = Pace() if pace is None else pace
        self._slowest: dict[int, float] = {}
        self._call: tuple[int, float] | None = None  # its steps, and when it began
        self._over = 0.0  # when the last call was
        self._tried = False

    def affords(self, steps: int) -> int:
        """How many rollouts of so many steps the budget still allows; many where there is none."""
        return 1 << 40 if self.budget is None else (self.budget - self.rows) // max(steps, 1)

    def late(self, steps: int = 1) -> bool:
        """Whether a call of the world with so many steps, and what comes after it, would miss the
        deadline: as slow as the slowest of this decision, or the quickest of those before (see
        `Pace`). Call it before each of them."""
        if self.deadline is None:
            return False
        now = self._measured()
        first = steps <= 1 and steps not in self._slowest
        if first and self.pace.tries and now < self.deadline:
            self._tried = True
        else:
            call = self._slowest.get(steps, self.pace.expected(steps))
            if now + call + self.pace.ending > self.deadline:
                return True
        self._call = (steps, now)
        return False

    def _measured(self) -> float:
        """The time; what began before is over."""
        now = self.clock()
        if self._call is not None:
            (steps, began), self._call, self._over = self._call, None, now
            self._slowest[steps] = max(self._slowest.get(steps, 0.0), now - began)
            self.pace.call(steps, now - began)
        return now

    def spend(self, rows: int) -> None:
        """Count a call of the world with so many rows for each environment."""
        self.rows += rows
        assert self.budget is None or self.rows <= self.budget, "a planner exceeded its budget"

    def end(self) -> float:
        """The decision is made: milliseconds since it began."""
        now = self.clock()
        if self.deadline is not None:
            called = any(self._slowest) or (self._call is not None and self._call[0] > 0)
            self.pace.decided(called, self._tried)
        if self._over and self._call is None:  # else the last call is not told from what followed
            self.pace.end(now - self._over)
        return 1e3 * (now - self.began)


class Planner(ABC):
    """A search for the action to take now. It is ready when constructed:
    `Class(action: ActionSpec, config: Class.Config, seed: int, device: torch.device)`.

    clock: seconds, for the deadline.
    """

    Config: ClassVar[type]

    def __init__(
        self,
        action: ActionSpec,
        config: Any,
        seed: int = 0,
        device: torch.device | str = "cpu",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.action, self.config, self.clock = action, config, clock
        self.device = torch.device(device)
        self.stream = Stream(seed, self.device)
        self.pace = Pace()
        self._cache: CachedWorld | None = None

    def cached(self, world: Any, settings: CacheConfig, expect: bool | None = None) -> Any:
        """The world with a memory of its predictions, where the settings ask for one."""
        if not settings.size:
            return world
        if self._cache is None or self._cache.world is not world:
            self._cache = CachedWorld(world, settings, expect=expect)
        return self._cache

    @property
    def cache_stats(self) -> dict[str, float]:
        """What the memory was good for so far."""
        found = {} if self._cache is None else self._cache.stats
        return {f"cache_{name}": value for name, value in found.items()}

    def forget(self) -> None:
        """The world has learned: what it predicted before is no longer true."""
        if self._cache is not None:
            self._cache.clear()

    @abstractmethod
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
        """The action to take in states [B, ...] of a world.

        evaluate: what the agent thinks of states; None where it thinks nothing. warm: of the
        decision before, or None. is_first [B]: where an episode begins, `warm` counts as None;
        None means nowhere. mask [B, A]: discrete actions that are allowed now; where it is None
        the world is asked, if it knows. began: seconds of the planner's clock from which a deadline
        counts; None: now. Raises ConfigError where the settings ask for what this
        world or agent does not have.
        """

    def initial(self, batch_size: int) -> Any:
        """`warm` before the first decision, [B, ...]; `plan` looks at it where is_first is False.
        None for a planner that starts anew each time."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Its random generator; `warm` belongs to whoever acts."""
        return {"stream": self.stream.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put `state_dict()` back."""
        self.stream.load_state_dict(state["stream"])


def check_kind(planner: str, action: ActionSpec, kind: str, instead: str) -> None:
    """ConfigError where a planner cannot search actions of this kind."""
    if action.kind != kind:
        raise ConfigError(
            f"{planner} searches {kind} actions; this environment takes {action.kind} ones "
            f"(sizes {list(action.sizes)}). Choose planner={instead}."
        )
