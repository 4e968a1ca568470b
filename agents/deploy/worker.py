"""Work with a deadline: somebody else computes, the control thread waits no longer than it may.

A Python thread cannot be killed inside a kernel. So the thread that computes is left alone until it
is done; whoever waits for it goes on without it, and its late answer is thrown away.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from agents.deploy.clock import Clock

# After an answer, before what has time: where both threads share a core, the one that waits for the
# answer must not wait for that, too.
HANDOVER_S = 0.0002  # seconds


class Answer(NamedTuple):
    """What came of a job: its ticket, the result, or what was raised, in words."""

    ticket: int
    result: Any
    error: str = ""


class Job(Protocol):
    """What a worker does, again and again."""

    def __call__(self, request: Any) -> Any:
        """The answer to a request."""
        ...

    def afterwards(self) -> None:
        """What may be done between an answer and the next request; nobody waits for it."""
        ...


class Worker(Protocol):
    """Computes answers away from the control thread."""

    def submit(self, ticket: int, request: Any) -> None:
        """Ask; a request that still waits behind a slow one is replaced."""
        ...

    def wait(self, ticket: int, until: float) -> Answer | None:
        """The answer to this ticket, or None at `until` (seconds of the clock); older answers are
        thrown away, after `seen` was told."""
        ...

    def close(self) -> None: ...


class ThreadWorker:
    """A worker in a thread of this process.

    seen: called, in the waiting thread, with every answer that came too late to be used.
    """

    def __init__(
        self, job: Job, clock: Clock, seen: Callable[[Answer], None] = lambda answer: None
    ) -> None:
        self._job, self._clock, self._seen = job, clock, seen
        self._slot: tuple[int, Any] | None = None
        self._wake, self._stop = threading.Event(), False
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="deployed policy", daemon=True)
        self._thread.start()

    def submit(self, ticket: int, request: Any) -> None:
        """Ask; a request that still waits behind a slow one is replaced."""
        self._slot = (ticket, request)
        self._wake.set()

    def wait(self, ticket: int, until: float) -> Answer | None:
        """The answer to this ticket, or None at `until`."""
        while True:
            left = until - self._clock.now()
            try:
                answer = self._answers.get(timeout=left) if left > 0 else self._answers.get_nowait()
            except queue.Empty:
                return None
            if answer.ticket == ticket:
                return answer
            self._seen(answer)

    def close(self) -> None:
        """End the thread once its job at hand is done; a job that never ends is left behind."""
        self._stop = True
        self._wake.set()
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            # Only now: a request that comes after this sets the event again.
            taken, self._slot = self._slot, None
            if self._stop:
                return
            if taken is None:
                continue
            self._answers.put(answered(self._job, *taken))
            self._clock.sleep(HANDOVER_S)
            try:
                self._job.afterwards()
            except Exception as error:
                self._answers.put(Answer(-1, None, f"{type(error).__name__}: {error}"))


def answered(job: Callable[[Any], Any], ticket: int, request: Any) -> Answer:
    """The answer to a request; whatever the job raises becomes words, for nothing may escape."""
    try:
        return Answer(ticket, job(request))
    except Exception as error:
        return Answer(ticket, None, f"{type(error).__name__}: {error}")
