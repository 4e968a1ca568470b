"""The counters of many decisions, for people and files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

UNPLANNED = "no step of the world was expected to end before the deadline"


class SearchTally:
    """Counts decisions that were planned, and those without a single step of the world."""

    def __init__(self) -> None:
        self.planned = self.unplanned = 0
        self._sums: Counter[str] = Counter()
        self._first = 0.0  # milliseconds of the first decision, in which code is loaded
        self._last: dict[str, float] = {}  # of a cache, whose counters go on

    def add(self, stats: Mapping[str, float]) -> None:
        """The counters of one decision (`Plan.stats`)."""
        if not stats.get("model_steps", 1):
            self.unplanned += 1
            return
        self.planned += 1
        if self.planned == 1:
            self._first = stats.get("ms", 0.0)
        for name, value in stats.items():
            if name.startswith("cache_"):
                self._last[name] = value
            else:
                self._sums[name] += value  # type: ignore[assignment]  # floats

    @property
    def decisions(self) -> int:
        """All of them."""
        return self.planned + self.unplanned

    @property
    def means(self) -> dict[str, float]:
        """Of the decisions that were planned; of a cache, what it came to in the end; of the time,
        without that of the first decision, in which code is loaded."""
        found = {name: total / self.planned for name, total in self._sums.items()} | self._last
        if self.planned > 1 and "ms" in found:
            found["ms"] = (self._sums["ms"] - self._first) / (self.planned - 1)
        return {name: round(value, 4) for name, value in found.items()}

    def summary(self) -> dict[str, object]:
        """Plain numbers; nothing where nothing was planned or meant to be."""
        return {
            **({"search": self.means} if self.planned else {}),
            **({"unplanned": self.unplanned} if self.unplanned else {}),
        }

    def rows(self) -> list[tuple[str, str]]:
        """The same for people: names and texts."""
        rows = []
        if self.planned:
            rows.append(("plans, mean", ", ".join(f"{k} {v:g}" for k, v in self.means.items())))
        if self.unplanned:
            rows.append(("not planned", f"{self.unplanned:,} decisions: {UNPLANNED}"))
        return rows
