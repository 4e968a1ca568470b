"""The settings of the Dyna family; each member is a choice of defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from worldmodel.config import ConfigError, unknown

SELECTS = ("uniform", "trajectory", "prioritized")
UNIFORM, TRAJECTORY, PRIORITIZED = range(3)
POLICIES = ("epsilon_greedy", "softmax")
BACKUPS = ("sample", "expected")
TABLES = ("deterministic", "counts")


class Knobs(NamedTuple):
    """The settings as compiled code takes them; see DynaConfig."""

    n: int
    max_calls: int
    alpha: float
    gamma: float
    epsilon: float
    temperature: float
    select: int
    expected: bool
    counts: bool
    kappa: float
    untried: bool
    theta: float
    direct: bool
    transient: bool
    transient_alpha: float


@dataclass
class DynaConfig:
    """Sutton's Dyna and its relatives: learn from each real step, then n times from the model.

    Names follow "Reinforcement Learning: An Introduction", 2nd edition, chapter 8.
    """

    name: str = "dyna_q"
    n: int = 5  # planning updates after each real step
    max_calls: int = 0  # model outcomes looked up after each real step at most; 0: no bound
    alpha: float = 0.1  # step size, (0, 1]
    gamma: float = 0.95  # discount, [0, 1]
    policy: str = "epsilon_greedy"  # epsilon_greedy | softmax
    epsilon: float = 0.1  # probability of a random action (epsilon_greedy)
    temperature: float = 0.1  # in units of value (softmax)
    initial: float = 0.0  # value of everything at the start; high is optimistic
    select: str = "uniform"  # which pairs are planned: uniform | trajectory | prioritized
    backup: str = "sample"  # planning updates: sample | expected (over all known outcomes)
    table: str = "deterministic"  # the model: deterministic (newest outcome) | counts (all)
    kappa: float = 0.0  # planned rewards grow by kappa * sqrt(steps since the pair was tried)
    untried: bool = False  # plan actions never tried: they lead back, with reward 0
    theta: float = 1e-4  # smallest change worth a place in the queue (prioritized)
    direct: bool = True  # learn from the real step itself, too
    transient: bool = False  # plan in a second memory, forgotten at each episode's end (Dyna-2)
    transient_alpha: float = 0.1  # step size of that memory, (0, 1]
    compiled: bool = True  # false: the plain learner, equal to the bit and far slower

    def __post_init__(self) -> None:
        for name, known in (
            ("select", SELECTS), ("policy", POLICIES), ("backup", BACKUPS), ("table", TABLES),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ConfigError(unknown(f"agent.{name}", getattr(self, name), known))
        for name in ("n", "max_calls", "kappa", "theta"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"agent.{name} is {getattr(self, name)}; it must be at least 0.")
        for name in ("alpha", "transient_alpha"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"agent.{name} is {getattr(self, name)}; it must lie in (0, 1].")
        for name in ("gamma", "epsilon"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"agent.{name} is {getattr(self, name)}; it must lie in [0, 1].")
        if not self.temperature > 0:
            raise ConfigError(f"agent.temperature is {self.temperature}; it must be more than 0.")
        if not abs(self.initial) < float("inf"):
            raise ConfigError(f"agent.initial is {self.initial}; it must be a finite number.")
        self._check_together()

    def _check_together(self) -> None:
        """Choices that exclude each other."""
        if self.n == 0 and not self.direct:
            raise ConfigError(
                "agent.n=0 and agent.direct=false together learn nothing. Raise agent.n, or set "
                "agent.direct=true."
            )
        if self.select == "prioritized" and (self.kappa > 0 or self.untried or self.transient):
            raise ConfigError(
                "agent.select=prioritized plans what has changed; a bonus that grows with time "
                "(agent.kappa), untried actions (agent.untried) and a second memory "
                "(agent.transient) never enter its queue. Leave them off, or choose "
                "agent.select=uniform or trajectory."
            )

    def knobs(self) -> Knobs:
        """The settings for compiled code."""
        return Knobs(
            int(self.n),
            int(self.max_calls),
            float(self.alpha),
            float(self.gamma),
            float(self.epsilon),
            float(self.temperature) if self.policy == "softmax" else 0.0,
            SELECTS.index(self.select),
            self.backup == "expected",
            self.table == "counts",
            float(self.kappa),
            bool(self.untried),
            float(self.theta),
            bool(self.direct),
            bool(self.transient),
            float(self.transient_alpha),
        )


@dataclass
class QLearningConfig(DynaConfig):
    """Q-learning: no planning."""

    name: str = "q_learning"
    n: int = 0


@dataclass
class DynaQConfig(DynaConfig):
    """Dyna-Q: n updates of pairs drawn uniformly from those tried (section 8.2)."""

    name: str = "dyna_q"


@dataclass
class DynaQPlusConfig(DynaConfig):
    """Dyna-Q+: what was not tried for long looks better, and the untried is planned (8.3)."""

    name: str = "dyna_q_plus"
    kappa: float = 1e-3
    untried: bool = True


@dataclass
class Dyna2Config(DynaConfig):
    """Dyna-2 (Silver, Sutton and Mueller, 2008): a permanent memory learns from real steps, a
    transient one from episodes simulated from the present state; actions follow their sum."""

    name: str = "dyna_2"
    n: int = 50
    select: str = "trajectory"
    transient: bool = True


@dataclass
class PrioritizedSweepingConfig(DynaConfig):
    """Prioritized sweeping: the largest changes first, and backwards from there (8.4)."""

    name: str = "prioritized_sweeping"
    alpha: float = 0.5
    select: str = "prioritized"
    direct: bool = False
