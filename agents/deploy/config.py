"""The settings of a deployed agent."""

from __future__ import annotations

from dataclasses import dataclass, field

from worldmodel.config import ConfigError, check_ranges, unknown

LATE = ("fallback", "previous")
ISOLATION = ("thread", "process")


@dataclass
class FallbackConfig:
    """What acts when the policy may not.

    name: zero (the action at rest) | hold (the last action sent) | stop (ramp to the action at
    rest, then wait there) | module:function or file.py:function of your own. rest: the encoded
    action [A] of a robot at rest; null: zeros, for continuous actions alone. ramp_ticks: of stop,
    from the last action to rest. wait_ticks: of stop, at rest before the policy may return.
    budget_ms: that your own function may take; then the last resort acts, which is rest.
    """

    name: str = "zero"
    rest: list[float] | None = None
    ramp_ticks: int = 5
    wait_ticks: int = 20
    budget_ms: float = 1.0

    def __post_init__(self) -> None:
        check_ranges(self, {
            "ramp_ticks": (1, 1e6), "wait_ticks": (0, 1e9), "budget_ms": (0.01, 1e6),
        })  # fmt: skip


@dataclass
class CautionConfig:
    """Smaller actions where the score rises: their scale falls from 1, at a score of `start` times
    the threshold, to `least` at the threshold. least=1 switches it off. Continuous actions only.
    """

    start: float = 0.7
    least: float = 1.0

    def __post_init__(self) -> None:
        check_ranges(self, {"start": (0, 0.999), "least": (0, 1)})


@dataclass
class RetrainConfig:
    """When to ask for training, and with which data.

    image, reward: thresholds of the one-step prediction error, averaged over `window` ticks; null
    leaves that part out. An image's error is the mean absolute difference of its pixels, of a
    vector's that of its symlog, a reward's that of the rewards' usual range (`reward_range`; null:
    the reward is not watched). keep: rows of the past saved with a request. cooldown: ticks
    between two requests. folder: where requests go; null: nothing is saved.
    """

    image: float | None = 0.05
    reward: float | None = 0.05
    reward_range: float | None = None
    window: int = 200
    keep: int = 2000
    cooldown: int = 10_000
    folder: str | None = None

    def __post_init__(self) -> None:
        check_ranges(self, {
            "image": (1e-9, 1e9), "reward": (1e-9, 1e9), "reward_range": (1e-9, 1e12),
            "window": (1, 1e6), "keep": (2, 1e7), "cooldown": (0, 1e12),
        })  # fmt: skip


@dataclass
class DeployConfig:
    """How a deployed agent keeps its time and when it steps back.

    period_ms: of the control cycle. soft_ms: an answer of the policy later than this is used, and
    counted as slow. hard_ms: one later than this is thrown away, and `on_late` acts: fallback, or
    the previous action, at most `max_repeats` times in a row. on_nonfinite: the same for an action
    that is NaN or infinite.

    enter_ticks: unknown observations in a row before the world counts as unknown. leave_ticks: good
    ticks in a row before it counts as known again. A tick is good when the score is at most
    leave_level times the threshold. watch: in an unknown world the policy acts as long as it does
    no harm by the rewards that arrive, unless the fallback is known to earn more than half of what
    it does beyond random actions (agents/deploy/earnings.py). Where none arrives, or the
    detector was calibrated without them, the fallback acts at once, and the policy is tried for
    grace_ticks when the world has stayed unknown under it for doubt_ticks, then after twice as
    long, and so on (0: never). false: the fallback acts at once, for as long as it takes.

    recover_ticks: ticks on time and sound in a row before the policy returns after any other fault.
    grace_ticks: after that return, in which an unknown world is laid to the fallback that led
    there, so that the policy acts; a world that was unknown before the fault stays unknown. The
    same for a policy that is tried.

    max_age_ms: of an observation by its time stamp, seconds of time.monotonic() (not time.time()),
    which must then be given and rise from tick to tick; null: time stamps are not looked at.
    max_gap: ticks that a robot's policy may miss and still go on with its memory; after more it
    starts anew, as in a new episode.

    isolation: where the policy runs. thread: in this process. process: in one of its own, which
    keeps the deadline even where the policy holds Python's lock, and is killed and started anew
    after restart_ms of silence. warmup: ticks before the loop, not counted.

    log: the JSONL file of whatever was not the policy's; null: none. log_mb: its size before it is
    rotated, log_files: how many old ones stay.
    """

    period_ms: float = 10.0
    soft_ms: float = 5.0
    hard_ms: float = 8.0
    on_late: str = "fallback"
    on_nonfinite: str = "fallback"
    max_repeats: int = 3
    enter_ticks: int = 1
    leave_ticks: int = 3
    recover_ticks: int = 2
    grace_ticks: int = 30
    doubt_ticks: int = 10
    leave_level: float = 0.9
    watch: bool = True
    max_age_ms: float | None = None
    max_gap: int = 10
    isolation: str = "thread"
    restart_ms: float = 2000.0
    warmup: int = 100
    log: str | None = None
    log_mb: float = 10.0
    log_files: int = 5
    fallback: FallbackConfig = field(default_factory=FallbackConfig)
    caution: CautionConfig = field(default_factory=CautionConfig)
    retrain: RetrainConfig = field(default_factory=RetrainConfig)

    def __post_init__(self) -> None:
        time, ticks = (0.01, 1e7), (0, 1e9)
        check_ranges(self, {
            "period_ms": time, "soft_ms": time, "hard_ms": time, "max_age_ms": time,
            "restart_ms": time, "max_repeats": ticks, "enter_ticks": (1, 1e9),
            "leave_ticks": (1, 1e9), "recover_ticks": (1, 1e9), "leave_level": (0, 1),
            "grace_ticks": ticks, "doubt_ticks": ticks,
            "max_gap": ticks, "warmup": (1, 1e6), "log_mb": (0.001, 1e6), "log_files": (0, 1000),
        })  # fmt: skip
        for name in ("on_late", "on_nonfinite"):
            if getattr(self, name) not in LATE:
                raise ConfigError(unknown(name, getattr(self, name), LATE))
        if self.isolation not in ISOLATION:
            raise ConfigError(unknown("isolation", self.isolation, ISOLATION))
        own = self.fallback.budget_ms if ":" in self.fallback.name else 0.0
        if not self.soft_ms <= self.hard_ms or self.hard_ms + own >= self.period_ms:
            raise ConfigError(
                f"soft_ms={self.soft_ms:g}, hard_ms={self.hard_ms:g} and period_ms="
                f"{self.period_ms:g}: soft_ms must be at most hard_ms, and hard_ms"
                + (f" plus fallback.budget_ms={own:g}" if own else "")
                + " less than period_ms, so that there is time left to act."
            )
