"""What happened, as lines of JSON; written by a thread that the control loop never waits for."""

from __future__ import annotations

import itertools
import json
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

LOST = 10_000  # lines that may wait; beyond that the disk is too slow, and lines are counted, lost


class Journal:
    """A rotating JSONL file: PATH is the newest, PATH.1 the one before, and so on.

    path: None keeps nothing. most_bytes: of one file. files: old ones that stay. wall: seconds
    since 1970, for the lines. A disk that fails costs lines, never the loop; `lost` counts them.
    """

    def __init__(
        self,
        path: str | Path | None,
        most_bytes: float = 1e7,
        files: int = 5,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.path = None if path is None else Path(path)
        self._most, self._files, self._wall = most_bytes, files, wall
        self.lost = 0
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line, with the time in front."""
        if self.path is None:
            return
        text = json.dumps({"time": round(self._wall(), 3), **line}, default=plain) + "\n"
        try:
            if self.path.exists() and self.path.stat().st_size + len(text) > self._most:
                self._rotate()
            with self.path.open("a") as file:
                file.write(text)
        except OSError:
            self.lost += 1

    def _rotate(self) -> None:
        assert self.path is not None
        names = [self.path, *(Path(f"{self.path}.{n}") for n in range(1, self._files + 1))]
        for old, older in reversed(list(itertools.pairwise(names))):
            if old.exists():
                old.replace(older)
        if self._files == 0:
            self.path.unlink()


def plain(value: Any) -> Any:
    """Arrays and NumPy numbers as JSON knows them; there is no NaN."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    return str(value)


class LogThread:
    """Runs callbacks in a thread of its own, in order; `put` never waits.

    What a callback raises is counted in `errors`, with the last one's text in `error`.
    threaded=False runs them at once, for tests.
    """

    def __init__(self, threaded: bool = True) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.errors, self.error, self.dropped = 0, "", 0
        self._thread: threading.Thread | None = None
        if threaded:
            self._thread = threading.Thread(target=self._run, name="deployment log", daemon=True)
            self._thread.start()

    def put(self, job: Callable[[], None]) -> None:
        """Have this done, soon."""
        if self._thread is None:
            self._do(job)
        elif self._jobs.qsize() < LOST:
            self._jobs.put(job)
        else:
            self.dropped += 1

    def close(self, seconds: float = 10.0) -> None:
        """Finish what waits."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(timeout=seconds)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._do(job)

    def _do(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:
            self.errors, self.error = self.errors + 1, f"{type(error).__name__}: {error}"
