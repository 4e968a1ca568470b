"""Workers with real threads, processes and clocks: the control thread never waits longer than it
said, whatever the other side does."""

from __future__ import annotations

import functools
import os
import threading
import time
from typing import Any, NamedTuple

import numpy as np
import pytest

from agents.deploy.config import FallbackConfig
from agents.deploy.fallback import Fallbacks
from agents.deploy.journal import Journal, LogThread
from agents.deploy.timing import Rest, SystemClock, no_garbage_pauses
from agents.deploy.worker import Answer, ProcessWorker, ThreadWorker
from worldmodel.types import ActionSpec

CLOCK = SystemClock()
SLACK = 2.0  # seconds that a busy machine may be late by


class Ask(NamedTuple):
    obs: Any
    word: str


class Gated:
    """Answers at once, or, told to hang, when the gate opens."""

    def __init__(self) -> None:
        self.gate, self.done = threading.Event(), 0

    def __call__(self, request: str) -> str:
        if request == "hang":
            self.gate.wait(30)
        if request == "raise":
            raise KeyError("gone")
        self.done += 1
        return request.upper()

    def afterwards(self) -> None:
        if self.done == 1:
            raise ValueError("afterwards")


def test_a_thread_that_hangs_costs_its_own_answer_alone() -> None:
    job, late = Gated(), []
    worker = ThreadWorker(job, CLOCK, late.append)
    worker.submit(0, "first")
    assert worker.wait(0, CLOCK.now() + SLACK) == Answer(0, "FIRST")
    worker.submit(1, "hang")
    start = CLOCK.now()
    assert worker.wait(1, start + 0.02) is None
    assert 0.02 <= CLOCK.now() - start < SLACK
    for ticket in range(2, 50):  # nobody works on these: the newest replaces the others
        worker.submit(ticket, str(ticket))
        assert worker.wait(ticket, 0.0) is None
    job.gate.set()
    assert worker.wait(49, CLOCK.now() + SLACK) == Answer(49, "49")
    assert job.done == 3  # first, hang, 49
    assert [answer.ticket for answer in late] == [None, 1]
    worker.submit(50, "raise")
    answer = worker.wait(50, CLOCK.now() + SLACK)
    assert answer is not None
    assert "KeyError" in answer.error
    worker.close()


class Child:
    """In the other process: answers, hangs with Python's lock held, or dies."""

    def __call__(self, request: Ask) -> Any:
        if request.word == "die":
            os._exit(3)
        if request.word == "hang":
            time.sleep(60)
        self.word = request.word
        return os.getpid(), float(request.obs["x"].sum())

    def afterwards(self) -> None:
        if self.word == "fail":
            raise ValueError("afterwards")


def no_child() -> Child:
    raise RuntimeError("no weights here")


def test_a_process_is_killed_when_it_is_silent_and_another_takes_over() -> None:
    obs, late = {"x": np.zeros((1, 3), np.float32)}, []
    worker = ProcessWorker(Child, obs, CLOCK, patience=0.5, seen=late.append)
    try:
        ones = Ask({"x": np.ones((1, 3), np.float32)}, "go")
        worker.submit(0, ones)
        first = worker.wait(0, CLOCK.now() + 60)
        assert first is not None
        assert first.result == (first.result[0], 3.0)
        assert first.result[0] != os.getpid()
        for ticket in range(-3, 0):  # as while warming up: no ticket is mistaken for a message
            worker.submit(ticket, ones._replace(word="fail"))
            answer = worker.wait(ticket, CLOCK.now() + 60)
            assert (answer.ticket, answer.result) == (ticket, first.result)
        assert (worker.restarts, {answer.ticket for answer in late}) == (0, {None})
        for word in ("hang", "die"):
            before, ticket = worker.restarts, 1
            worker.submit(ticket, ones._replace(word=word))
            until = CLOCK.now() + 120
            while True:  # as a control loop does, tick after tick
                start = CLOCK.now()
                answer = worker.wait(ticket, start + 0.01)
                assert CLOCK.now() - start < SLACK
                if answer is not None or CLOCK.now() > until:
                    break
                ticket += 1
                worker.submit(ticket, ones)
            assert answer is not None
            assert answer.result[1] == 3.0
            assert worker.restarts == before + 1
    finally:
        worker.close()


def test_a_process_that_cannot_start_says_why() -> None:
    with pytest.raises(RuntimeError, match="no weights here"):
        ProcessWorker(no_child, {}, CLOCK, patience=1.0)  # type: ignore[arg-type]


def hangs(obs: Any, info: Any, gate: Any = None) -> np.ndarray:
    if info["tick"] >= 0:
        time.sleep(0.3)
    return np.ones(1)


def test_a_fallback_that_hangs_is_replaced_by_rest() -> None:
    config = FallbackConfig(f"{__name__}:hangs", rest=[0.25], budget_ms=5.0)
    fallbacks = Fallbacks(config, ActionSpec("continuous", (1,)), 1, CLOCK)
    obs = {"x": np.zeros((1, 2), np.float32)}
    fallbacks.try_out(obs)
    info = {"robot": 0, "tick": 5, "reason": "late", "detail": ""}
    ((action, failure),) = fallbacks({0: info}, obs).values()
    assert action.tolist() == [0.25]
    assert "within 5 ms" in failure
    fallbacks.close()


def test_a_scribe_counts_what_fails_and_finishes_what_waits() -> None:
    scribe, done = LogThread(), []
    scribe.put(lambda: [][1])
    scribe.put(functools.partial(done.append, 1))
    scribe.close()
    assert (done, scribe.errors) == ([1], 1)
    assert "IndexError" in scribe.error


def test_a_journal_whose_disk_fails_loses_lines_and_nothing_else(tmp_path: Any) -> None:
    journal = Journal(tmp_path / "log.jsonl")
    (tmp_path / "log.jsonl").mkdir()
    journal.write({"a": 1})
    assert journal.lost == 1


def test_garbage_is_collected_in_the_rest_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import gc

    collected: list[int] = []
    now = iter(np.arange(0, 100, 0.0005)).__next__
    rest = Rest(every=(2, 4, 8))
    with no_garbage_pauses():
        assert not gc.isenabled()
        monkeypatch.setattr(gc, "collect", collected.append)
        for _ in range(8):
            rest(0.005, now)
        assert collected == [0, 1, 0, 1]  # the whole of it needs 20 ms, and waits for them
        rest(0.5, now)
        assert collected[-1] == 2
        monkeypatch.undo()
    assert gc.isenabled()
