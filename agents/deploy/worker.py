"""Work with a deadline: somebody else computes, the control thread waits no longer than it may.

A Python thread cannot be killed inside a kernel. So the thread that computes is left alone until it
is done; whoever waits for it goes on without it, and its late answer is thrown away. A process of
its own has its own Python lock and memory, and can be killed.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import numpy as np

from agents.deploy.timing import Clock, calm

# After an answer, before what has time: where both threads share a core, the one that waits for the
# answer must not wait for that, too.
HANDOVER_S = 0.0002  # seconds


class Answer(NamedTuple):
    """What came of a job: its ticket, the result, or what was raised, as text. Without a ticket it
    answers no request: a child process is ready, or what it did afterwards failed."""

    ticket: int | None
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

    @property
    def restarts(self) -> int:
        """How often it had to be started anew."""
        ...

    def close(self) -> None: ...


class ThreadWorker:
    """A worker in a thread of this process.

    seen: called, in the waiting thread, with every answer that came too late to be used.
    """

    restarts = 0  # a thread cannot be killed

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
                self._answers.put(Answer(None, None, f"{type(error).__name__}: {error}"))


def answered(job: Callable[[Any], Any], ticket: int, request: Any) -> Answer:
    """The answer to a request; whatever the job raises becomes text, for nothing may escape."""
    try:
        return Answer(ticket, job(request))
    except Exception as error:
        return Answer(ticket, None, f"{type(error).__name__}: {error}")


class ProcessWorker:
    """Keeps the deadline even where the policy holds Python's lock.

    make: builds the job in the child; it must be importable there, and what it is made of must be
    picklable. obs: an observation [B, ...] by key, as requests will hold it in their field `obs`;
    it travels in shared memory, so that sending never waits for a child that does not read.
    patience: seconds of silence after which the child is killed and started anew. seen: called
    with every answer that came too late to be used.

    Raises RuntimeError where the child cannot make its job.
    """

    def __init__(
        self,
        make: Callable[[], Job],
        obs: Mapping[str, np.ndarray],
        clock: Clock,
        patience: float,
        seen: Callable[[Answer], None] = lambda answer: None,
        start_timeout: float = 120.0,
    ) -> None:
        self._make, self._clock, self._patience, self._seen = make, clock, patience, seen
        self._context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks
        self._memory = {
            key: (self._context.RawArray("b", max(1, array.nbytes)), array.shape, array.dtype.str)
            for key, array in obs.items()
        }
        self._views = _views(self._memory)
        self.restarts = 0
        self._asked: float | None = None  # when the oldest request without an answer was sent
        self._busy = False
        self._slot: tuple[int, Any] | None = None
        self._starting: threading.Thread | None = None
        self._begin()
        if not self._pipe.poll(start_timeout):
            self.close()
            raise RuntimeError(f"The policy's process was not ready within {start_timeout:g} s.")
        first = self._receive()
        if first is None or first.error:
            self.close()
            raise RuntimeError(
                "The policy's process could not start: "
                + (first.error if first else "it ended at once, perhaps for want of memory.")
            )

    def _begin(self) -> None:
        self._pipe, theirs = self._context.Pipe()
        self._child = self._context.Process(
            target=_serve, args=(self._make, self._memory, theirs), daemon=True
        )
        self._child.start()
        theirs.close()  # so that the child's end is gone when the child is

    def submit(self, ticket: int, request: Any) -> None:
        """Ask; a request that still waits behind a slow one is replaced."""
        self._slot = (ticket, request)
        self._push()

    def _push(self) -> None:
        if self._busy or self._slot is None or self._starting is not None:
            return
        ticket, request = self._slot
        for key, view in self._views.items():
            view[...] = request.obs[key]
        try:
            self._pipe.send((ticket, request._replace(obs=None)))
            self._busy, self._asked = True, self._clock.now()
        except OSError:
            self._restart()
        self._slot = None

    def wait(self, ticket: int, until: float) -> Answer | None:
        """The answer to this ticket, or None at `until`."""
        while True:
            if self._starting is not None:
                if self._starting.is_alive():
                    self._clock.sleep(until - self._clock.now())
                    return None
                self._starting = None
            try:
                if not self._pipe.poll(max(0.0, until - self._clock.now())):
                    break
                answer = self._receive()
            except OSError:
                answer = None
            if answer is None:
                self._restart()
                continue
            if answer.ticket is not None:
                self._busy, self._asked = False, None
            self._push()
            if answer.ticket == ticket:
                return answer
            self._seen(answer)
        if self._asked is not None and self._clock.now() - self._asked > self._patience:
            self._restart()
        return None

    def _receive(self) -> Answer | None:
        """The next message, or None where the child is gone."""
        try:
            return Answer(*self._pipe.recv())
        except EOFError:
            return None

    def _restart(self) -> None:
        """Kill the child and start another, without waiting for it here."""
        self.restarts += 1
        self._busy, self._asked, self._slot = False, None, None
        child, pipe = self._child, self._pipe

        def again() -> None:
            child.kill()
            child.join()
            pipe.close()
            self._begin()
            self._pipe.poll(None)  # until it is ready, or gone

        self._starting = threading.Thread(target=again, name="new policy process", daemon=True)
        self._starting.start()

    def close(self) -> None:
        """End the child."""
        if self._starting is not None:
            self._starting.join(timeout=5.0)
        self._child.kill()
        self._child.join(timeout=5.0)
        self._pipe.close()


def _views(memory: Mapping[str, tuple[Any, tuple[int, ...], str]]) -> dict[str, np.ndarray]:
    """Shared memory as arrays."""
    return {
        key: np.frombuffer(raw, dtype, math.prod(shape)).reshape(shape)
        for key, (raw, shape, dtype) in memory.items()
    }


def _serve(make: Callable[[], Job], memory: Mapping[str, Any], pipe: Connection) -> None:
    """The child: make the job, then answer until the other end is gone."""
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        calm()
        job, views = make(), _views(memory)
        pipe.send(Answer(None, None))
    except Exception as error:
        pipe.send(Answer(None, None, f"{type(error).__name__}: {error}"))
        return
    while True:
        try:
            ticket, request = pipe.recv()
            # Copied: what is done afterwards still reads it when the next one is written.
            request = request._replace(obs={key: view.copy() for key, view in views.items()})
            pipe.send(answered(job, ticket, request))
        except (EOFError, OSError):
            return
        try:
            job.afterwards()
        except Exception as error:
            pipe.send(Answer(None, None, f"{type(error).__name__}: {error}"))
