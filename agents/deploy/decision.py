"""What one tick comes to, and what many of them come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agents.planning.tally import SearchTally

# Where an action comes from.
POLICY, PREVIOUS, FALLBACK, LAST_RESORT = "policy", "previous", "fallback", "last resort"

# Why. WAITING: this tick was good, but too few of them have been for the policy to return.
# WATCHED: the world is unknown, or was lately, and the policy acts: it does no harm so far.
OK, UNKNOWN, LATE, NONFINITE, INPUT, ERROR, WAITING, WATCHED = (
    "ok", "unknown", "late", "nonfinite", "input", "error", "waiting", "watched",
)  # fmt: skip
ALARMS = (UNKNOWN, WATCHED)  # where the detector raised an alarm, whoever acts

LATENCIES = 1 << 20  # that a tally keeps; older ones are overwritten


@dataclass(frozen=True, slots=True)
class Decision:
    """The action of one robot at one tick.

    action: what the robot takes, as its environment did in training (float32 [A], or an index).
    encoded: the same as float32 [A]. source: policy, previous, fallback or last resort. reason:
    ok, unknown, late, nonfinite, input (the observation was refused), error (the policy raised),
    waiting (all is well again, but not for long enough) or watched (the world is unknown, and the
    policy acts, for it does no harm so far). detail: more of it, as text. latency:
    seconds from the observation's arrival. value: the score in units of `threshold`, or None where
    there was none; parts: its parts. scale: what caution multiplied the policy's action by. search:
    numbers about the search for the action, where it was planned.
    """

    action: np.ndarray
    encoded: np.ndarray
    source: str
    reason: str
    latency: float
    tick: int
    robot: int = 0
    detail: str = ""
    value: float | None = None
    threshold: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    scale: float = 1.0
    search: Mapping[str, float] = field(default_factory=dict)

    @property
    def trusted(self) -> bool:
        """Whether the policy acted."""
        return self.source == POLICY

    def as_line(self) -> dict[str, Any]:
        """For the log."""
        parts = {k: round(v, 4) if np.isfinite(v) else str(v) for k, v in self.parts.items()}
        finite = self.value is None or np.isfinite(self.value)
        return {
            "tick": self.tick, "robot": self.robot, "source": self.source, "reason": self.reason,
            "detail": self.detail, "action": self.encoded,
            "latency_ms": round(1e3 * self.latency, 3),
            "value": self.value if finite else str(self.value), "parts": parts,
            **({"search": dict(self.search)} if self.search else {}),
        }  # fmt: skip


class Tally:
    """Counts decisions and keeps their latencies.

    deadline: seconds from the observation to the action; later ones are missed. soft: seconds,
    beyond which the policy's own answer is slow.
    """

    def __init__(self, deadline: float, soft: float) -> None:
        self.deadline, self.soft = deadline, soft
        self.ticks = self.missed = self.slow = 0
        self.sources: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self._latencies = np.zeros(LATENCIES, np.float32)
        self.search = SearchTally()

    def add(self, decisions: list[Decision]) -> None:
        """One tick of all robots."""
        latency = max(decision.latency for decision in decisions)
        self._latencies[self.ticks % LATENCIES] = latency
        self.ticks += 1
        self.missed += latency > self.deadline
        if decisions[0].search:
            self.search.add(decisions[0].search)
        for decision in decisions:
            self.sources[decision.source] += 1
            if decision.reason != OK:
                self.reasons[decision.reason] += 1
            if decision.source == POLICY:
                self.slow += latency > self.soft

    def latencies(self) -> np.ndarray:
        """Seconds of the last ticks, oldest first unless there were more than a million."""
        return self._latencies[: min(self.ticks, LATENCIES)]

    def summary(self) -> dict[str, Any]:
        """Plain numbers; times in milliseconds."""
        return {
            "ticks": self.ticks,
            "sources": dict(self.sources),
            "reasons": dict(self.reasons),
            "slow": int(self.slow),
            "missed": int(self.missed),
            **percentiles(self.latencies()),
            **self.search.summary(),
        }

    def line(self) -> str:
        """Where it stands, for people who watch."""
        acted = sum(self.sources.values()) or 1
        texts = [f"policy {100 * self.sources[POLICY] / acted:.1f}%"]
        texts += [f"{name} {count:,}" for name, count in self.reasons.most_common()]
        unplanned = self.search.unplanned
        texts += [f"not planned {unplanned:,}"] if unplanned else []
        numbers = percentiles(self.latencies())
        times = f"{numbers['p50']:.2f} ms (p99 {numbers['p99']:.2f})" if numbers else "no tick yet"
        return f"{self.ticks:,} ticks: {', '.join(texts)}; {times}; {self.missed:,} missed"

    def table(self) -> str:
        """The same for people."""
        numbers = self.summary()
        acted = sum(self.sources.values()) or 1
        rows = [("ticks", f"{self.ticks:,}")]
        for source, count in self.sources.most_common():
            rows.append((source, f"{count:,} ({100 * count / acted:.1f}%)"))
            own = [name for name in self.reasons if (name == WATCHED) == (source == POLICY)]
            if source in (POLICY, FALLBACK):
                rows += [(f"  {name}", f"{self.reasons[name]:,}") for name in own]
        rows.append(("slow answers", f"{self.slow:,} (over {1e3 * self.soft:g} ms)"))
        rows.append(("deadlines missed", f"{self.missed:,} (of {1e3 * self.deadline:g} ms)"))
        if self.ticks:
            shown = " / ".join(f"{numbers[name]:.3f}" for name in ("p50", "p99", "p99_9", "max"))
            rows.append(("latency, ms", f"{shown} (p50 / p99 / p99.9 / max)"))
        rows += self.search.rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"  {name:<{width}}  {text}" for name, text in rows)


def percentiles(seconds: np.ndarray) -> dict[str, float]:
    """p50, p99, p99.9 and the longest, in milliseconds; empty where there is nothing."""
    if not len(seconds):
        return {}
    shares = {"p50": 50.0, "p99": 99.0, "p99_9": 99.9, "max": 100.0}
    values = 1e3 * np.percentile(seconds, list(shares.values()))
    return {name: round(float(value), 4) for name, value in zip(shares, values, strict=True)}
