"""How often environments failed, and when that is too often."""

from __future__ import annotations

from collections import deque

from .config import EnvError

WINDOW = 10_000  # steps of the vector in which `max_failures` are counted
IN_A_ROW = 3  # failures of one environment without a good step between: broken, not unlucky


class EnvFailed(EnvError):
    """Environments failed too often to go on."""


class Failures:
    """Counts the failures of `count` environments.

    A number within a window, not a total: a simulator that dies once in an hour must not end a
    run of days, and one that dies every minute must.
    """

    def __init__(self, count: int, limit: int) -> None:
        self._limit = limit
        self._steps = 0
        self._when: deque[int] = deque()
        self._in_a_row = [0] * count
        self._last: dict[int, str] = {}
        self.counts = [0] * count  # of each environment, since the run began

    def step(self) -> None:
        """The vector takes a step."""
        self._steps += 1

    def good(self, index: int) -> None:
        """An environment finished a step."""
        self._in_a_row[index] = 0

    def add(self, index: int, reason: str) -> None:
        """An environment failed. Raises EnvFailed where that is once too often."""
        self.counts[index] += 1
        self._in_a_row[index] += 1
        self._last[index] = reason
        self._when.append(self._steps)
        while self._when[0] <= self._steps - WINDOW:
            self._when.popleft()
        if self._in_a_row[index] >= IN_A_ROW:
            raise EnvFailed(
                f"Environment {index} failed {IN_A_ROW} times in a row without one good step "
                f"between, so it is broken rather than unlucky. {self._last_reasons()}"
            )
        if len(self._when) >= self._limit:
            raise EnvFailed(
                f"Environments failed {len(self._when)} times within {WINDOW:,} steps, and "
                f"max_failures is {self._limit}. {self._last_reasons()} If that many are "
                f"to be expected, raise max_failures."
            )

    def _last_reasons(self) -> str:
        lines = "\n".join(f"environment {i}: {why}" for i, why in sorted(self._last.items()))
        return (
            f"The last reasons:\n{lines}\nMend the environment, or raise timeout or start_timeout "
            f"where it is only slow; the same command then goes on."
        )
