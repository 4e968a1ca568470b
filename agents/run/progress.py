"""How far a run is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Any

from worldmodel.progress import Bar, Step, begin, duration, end

PLAIN_SECONDS = 8.0  # between two lines where there is no terminal
RATE_SECONDS = 30.0  # rates are over the last half minute or less


class Progress:
    """Shows agent steps, rates, the last return and the time left.

    Rates, and with them the time left, are those of the last half minute.
    total: agent steps of the whole run. start: agent steps and updates done before.
    max_seconds: a limit on the training time, or None. unit: "step", "update" where a run has
    no agent steps and is counted in updates, or "turn" where steps and updates take turns, in
    phases; phase: the name of the present one. visible: whether there may be a bar.
    """

    def __init__(
        self,
        total: int,
        start: tuple[int, int],
        max_seconds: float | None,
        say: Callable[[str], None],
        unit: str = "step",
        visible: bool = True,
    ) -> None:
        self.total, self.max_seconds, self._say, self.unit = total, max_seconds, say, unit
        self._bar = Bar(visible)
        self._step = begin(Step(unit, total, start[0], drawn=self._bar.there))
        self._shown = time.monotonic()
        self._marks = deque([(self._shown, *start)])
        self.score: float | None = None
        self.phase = ""

    def update(self, steps: int, updates: int, seconds: float) -> None:
        """Show where the run stands: agent steps, updates, and seconds of training so far."""
        self._step.done = steps
        now = time.monotonic()
        pause = 0.5 if self._bar.there else PLAIN_SECONDS
        if now - self._shown < pause:
            return
        self._shown = now
        while len(self._marks) > 1 and now - self._marks[0][0] > RATE_SECONDS:
            self._marks.popleft()
        then, old_steps, old_updates = self._marks[0]
        self._marks.append((now, steps, updates))
        elapsed = max(now - then, 1e-9)
        rates = ((steps - old_steps) / elapsed, (updates - old_updates) / elapsed)
        left = (self.total - steps) / rates[0] if rates[0] > 0 else math.inf
        if self.max_seconds is not None:
            left = min(left, self.max_seconds - seconds)
        fraction = self.fraction(steps, seconds)
        score = "-" if self.score is None else f"{self.score:.1f}"
        collected = f"{rates[0]:.1f} steps/s | " if self.unit == "step" else ""
        earned = f"return {score} | " if self.unit == "step" else ""
        phase = f"{self.phase}: " if self.phase else ""
        text = (
            f"{phase}{self.unit} {steps:,}/{self.total:,} | {collected}{rates[1]:.2f} updates/s | "
            f"{earned}{duration(left)} left"
        )
        if self._bar.there:
            self._bar.show(fraction, text)
        else:
            self._say(f"{100 * fraction:3.0f}% {text}")

    def fraction(self, steps: int, seconds: float) -> float:
        """How much of the run is done, by steps or by the time limit, whichever is further."""
        by_time = seconds / self.max_seconds if self.max_seconds else 0.0
        return min(1.0, max(steps / max(1, self.total), by_time))

    def say(self, text: str) -> None:
        """A line that does not tear the bar."""
        self._bar.clear()
        self._say(text)
        self._bar.refresh()

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()
        end(self._step)


class Stopper:
    """Notes the first SIGINT or SIGTERM in `noted`; the second one takes effect at once.

    signal: the one that is to be obeyed. Alone that is so at once; of several ranks, which must
    stop at the same step, when they have agreed on it.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, alone: bool = True) -> None:
        self.noted: int | None = None
        self.signal: int | None = None
        self._alone = alone
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether somebody wants the run to stop."""
        return self.signal is not None

    def __enter__(self) -> Stopper:
        if threading.current_thread() is threading.main_thread():  # Python allows it only there
            for number in self.SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted = number
        if self._alone:
            self.signal = number
            # Not print, which may be in the middle of a line.
            os.write(2, b"\nstopping, with a checkpoint, after what is under way; again: at once\n")
        for each in self.SIGNALS:
            signal.signal(each, signal.SIG_DFL)
