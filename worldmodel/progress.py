"""How far the work is: steps say it, and one watcher shows them.

    for episode in each(episodes, "scoring episodes"): ...
    with step("playing episodes", total=100) as playing:
        playing.done += 1

A step costs an addition. Nothing is shown unless somebody watches, as every command does: on a
terminal a bar with the time left, elsewhere a line whenever nothing was said for some seconds.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
APPEARS = 5.0  # seconds that a step takes before it is shown
QUIET = 9.0  # seconds without a word, elsewhere than on a terminal, until there is a line
LOOKS = 0.5  # seconds between two looks of the watcher

clock = time.monotonic


@dataclass(eq=False)
class Step:
    """Work under way: `done` of `total`, in any unit; total None: nobody knows. inside: how far
    the part at hand is, in words. waits: for a person, which needs no words. drawn: it has a bar of
    its own."""

    label: str
    total: float | None = None
    done: float = 0.0
    inside: str = ""
    waits: bool = False
    drawn: bool = False
    began: float = field(default_factory=lambda: clock())

    @property
    def fraction(self) -> float:
        """How much of it is done, 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0

    def text(self) -> str:
        """Label, numbers and the time left, at the pace until now."""
        spent = clock() - self.began
        if not self.total:
            count = f" {self.done:,.0f}" if self.done else ""
            return f"{self.label}{count} | {duration(spent)} so far"
        left = spent / self.fraction - spent if self.fraction else math.inf
        inside = f", {self.inside}" if self.inside else ""
        return f"{self.label} {self.done:,.0f}/{self.total:,.0f}{inside} | {duration(left)} left"


_steps: list[Step] = []  # under way, the innermost last
_watcher: Watcher | None = None


@contextmanager
def step(label: str, total: float | None = None, waits: bool = False) -> Iterator[Step]:
    """A step of the work, within those that are under way."""
    made = begin(Step(label, total, waits=waits))
    try:
        yield made
    finally:
        end(made)


def begin(made: Step) -> Step:
    """Let a step be shown, until `end`."""
    _steps.append(made)
    return made


def end(made: Step) -> None:
    """A step is over; again is nothing."""
    if made in _steps:
        _steps.remove(made)
    if _watcher is not None:
        _watcher.ended(made)


def each(items: Iterable[T], label: str, total: float | None = None) -> Iterator[T]:
    """The items, and how many of them are done; total: how many there are, where they do not know
    it themselves."""
    count = total if total is not None else len(items) if isinstance(items, Sized) else None
    with step(label, count) as shown:
        for item in items:
            yield item
            shown.done += 1


def said() -> None:
    """Note that a line was said just now."""
    if _watcher is not None:
        _watcher.said()


def note(text: str) -> None:
    """Have a line shown that explains a wait, where somebody watches."""
    if _watcher is not None:
        _watcher.note(text)


def clear() -> None:
    """Take the bar away before a line is said."""
    if _watcher is not None:
        _watcher.clear()


class Bar:
    """A bar on a terminal, as far as there is one: `there` says whether."""

    def __init__(self, visible: bool = True) -> None:
        self._bar: Any = None
        if not visible or not sys.stderr.isatty():
            return
        from tqdm import tqdm

        layout = "{percentage:3.0f}%|{bar:20}| {desc}"
        self._bar = tqdm(total=100, bar_format=layout, leave=False, mininterval=0)

    @property
    def there(self) -> bool:
        """Whether a bar is shown."""
        return self._bar is not None

    def show(self, fraction: float, text: str) -> None:
        """Set how far it is, and the words beside it."""
        if self._bar is not None:
            self._bar.n = round(100 * fraction)
            self._bar.set_description_str(text)

    def clear(self) -> None:
        """Take it away until it is shown again."""
        if self._bar is not None:
            self._bar.clear()

    def refresh(self) -> None:
        """Draw it again."""
        if self._bar is not None:
            self._bar.refresh()

    def close(self) -> None:
        """Take it away for good."""
        if self._bar is not None:
            self._bar.close()


class Watcher:
    """Shows the steps that are under way. write: takes a line where there is no terminal."""

    def __init__(self, write: Callable[[str], None], terminal: bool) -> None:
        self._write, self._terminal = write, terminal
        self._lock = threading.RLock()
        self._bar: tuple[Step, Bar] | None = None
        self._last = self._began = clock()
        self._over = threading.Event()

    def look(self) -> None:
        """Show what is due."""
        with self._lock:
            now, steps = clock(), list(_steps)
            if any(one.waits for one in steps):
                self._last = now
                return
            steps.sort(key=lambda one: bool(one.total))  # last: the innermost whose end is known
            if self._terminal:
                aged = [one for one in steps if now - one.began >= APPEARS]
                if aged and not aged[-1].drawn:
                    self._draw(aged[-1])
            elif now - self._last >= QUIET:
                self._last = now
                shown = [Step("at work", began=self._began), *steps][-1]
                share = f"{100 * shown.fraction:3.0f}% " if shown.total else ""
                self._write(f"{share}{shown.text()}")

    def _draw(self, shown: Step) -> None:
        if self._bar is not None and self._bar[0] is not shown:
            self._bar[1].close()
            self._bar = None
        if self._bar is None:
            self._bar = shown, Bar()
        self._bar[1].show(shown.fraction, shown.text())

    def ended(self, one: Step) -> None:
        """Take the bar of a step away that is over."""
        with self._lock:
            if self._bar is not None and self._bar[0] is one:
                self._bar[1].close()
                self._bar = None

    def said(self) -> None:
        """Somebody said a line, so that none is due for a while."""
        self._last = clock()

    def note(self, text: str) -> None:
        """Show a line, over whatever bar there is: a step may have one of its own."""
        with self._lock:
            self.clear()
            self._write(f"\r\x1b[2K{text}" if self._terminal else text)
            self.said()

    def clear(self) -> None:
        """Make room for a line."""
        with self._lock:
            if self._bar is not None:
                self._bar[1].clear()

    def watch(self) -> None:
        """Look again and again, until `close`."""
        while not self._over.wait(LOOKS):
            try:
                self.look()
            except (OSError, ValueError):  # nobody reads it, or it is closed: who works finds out
                return

    def close(self) -> None:
        """Look no more."""
        self._over.set()
        with self._lock:
            if self._bar is not None:
                self._bar[1].close()
                self._bar = None


@contextmanager
def watched(write: Callable[[str], None], terminal: bool) -> Iterator[Watcher]:
    """Have somebody watch, who must `look`; one at a time."""
    global _watcher
    before, _watcher = _watcher, Watcher(write, terminal)
    try:
        yield _watcher
    finally:
        _watcher.close()
        _watcher = before


@contextmanager
def shown() -> Iterator[None]:
    """Show steps on standard error, from a thread of its own; nowhere, where that is closed."""
    if sys.stderr is None:
        yield
        return

    def write(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with watched(write, sys.stderr.isatty()) as watcher:
        threading.Thread(target=watcher.watch, name="progress", daemon=True).start()
        yield


def duration(seconds: float) -> str:
    """1:02:03, 2:03, or - where nobody knows."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
