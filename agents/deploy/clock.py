"""Time, as something that can be handed in."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds that never jump, and waiting for some of them to pass."""

    def now(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Seconds since some moment; the same for every process of the machine."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait at least so long."""
        if seconds > 0:
            time.sleep(seconds)
