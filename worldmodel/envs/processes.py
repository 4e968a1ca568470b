"""An environment in a process of its own.

parent                                   process
make                  ->
                      <-  answer: Spaces
attach (path)         ->                               memory for its observations, made by
                      <-  answer                       the parent once the spaces are known
step: action          ->
                      <-  row: reward, flags, episode, info; the observation is in the memory
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import select
import signal
import struct
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from .config import EnvError
from .hosts import (
    CLOSE_SECONDS,
    TRACEBACK_LINES,
    Answer,
    HostFailed,
    Maker,
    Runner,
    Spaces,
    reason_of,
)
from .shared import SharedRow

PRELOAD = "worldmodel.envs.observe"  # imported once by the server of processes; without torch
STEP, ROW, OTHER, ALIVE = b"s", b"r", b"o", b"a"  # what a message is, its first byte
ROW_HEAD = struct.Struct("<d??q")  # reward, terminated, truncated, episode


class ProcessHost:
    """An environment in a process of its own, which ends when this process does, however that
    comes about."""

    process: Any = None

    def __init__(self, maker: Maker) -> None:
        self._maker = maker
        self._row: SharedRow | None = None

    def send(self, name: str, *data: Any) -> None:
        try:
            if name == "make":
                self._start()
            if name == "step":
                self._pipe.send_bytes(STEP + data[0].tobytes())
            else:
                self._pipe.send_bytes(OTHER + pickle.dumps((name, *data), 5))
        except OSError as error:
            why = f"No process could be started: {error}." if self.process is None else ""
            raise HostFailed(why or self._why_it_died()) from error

    def receive(self, began: float, seconds: float) -> Any:
        try:
            while True:
                if not self._poll(max(0.0, began + seconds - time.monotonic())):
                    raise HostFailed(self._why_it_hangs(seconds))
                message = self._pipe.recv_bytes()
                if message[:1] == ROW:
                    return self._read(message)
                if message[:1] == OTHER:
                    break
                began = time.monotonic()  # alive: a long replay goes on
            ok, answer = pickle.loads(message[1:])
            if not ok:
                words, kind = answer
                raise HostFailed(words, None if kind is None else kind(words))
            if isinstance(answer, Spaces):
                self._share(answer, began + seconds - time.monotonic())
            return answer
        except (EOFError, OSError) as error:
            raise HostFailed(self._why_it_died()) from error
        except HostFailed:
            raise
        except Exception as error:
            raise HostFailed(f"Its answer cannot be read: {reason_of(error)}") from error

    def ask_to_end(self) -> None:
        if self.process is not None:
            with contextlib.suppress(OSError):
                self._pipe.send_bytes(OTHER + pickle.dumps(("close",), 5))

    def end(self, seconds: float) -> None:
        if self.process is None:
            return
        atexit.unregister(self.end)
        if not self._gone(seconds):
            # Not SIGTERM, which it ignores: one sent to the whole group is meant for us. Nor
            # process.kill, which believes it dead once the server of processes is.
            with contextlib.suppress(OSError):
                os.kill(self.process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
            self._gone(CLOSE_SECONDS)
        process, self.process = self.process, None
        process.join(CLOSE_SECONDS)
        with contextlib.suppress(ValueError):  # it cannot even be killed
            process.close()  # handles must not wait for the garbage collector
        self._row = None
        self._pipe.close()
        self._words.close()

    def _gone(self, seconds: float) -> bool:
        """Whether the process lets go of its end of the pipe within so many seconds."""
        until = time.monotonic() + seconds
        try:
            while self._poll(max(0.0, until - time.monotonic())):
                self._pipe.recv_bytes()  # an answer that nobody waits for any more
        except (EOFError, OSError):
            return True
        return False

    def _start(self) -> None:
        context = _context()
        self._pipe, theirs = context.Pipe()
        self._words, words = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(self._maker, theirs, words), daemon=True)
        try:
            with _without_main(getattr(self._maker, "needs_main", True)):
                process.start()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise EnvError(
                f"The environment's settings cannot be sent to another process ({error}). Use only "
                f"plain values in kwargs, or set vector to sync."
            ) from error
        finally:
            theirs.close()  # or its end would not be seen here
            words.close()
        self.process, self._poll = process, _poller(self._pipe)
        # Before multiprocessing's own exit, which would wait for a process that waits for us.
        atexit.register(self.end, 0.0)

    def _share(self, spaces: Spaces, seconds: float) -> None:
        """Give the process memory for its observations."""
        try:
            self._row = row = SharedRow(spaces.observation)
        except OSError as error:
            raise HostFailed(f"There is no memory for its observations: {error}.") from error
        try:
            self.send("attach", row.path)
            self.receive(time.monotonic(), max(1.0, seconds))
        finally:
            row.unlink()

    def _read(self, message: bytes) -> Answer:
        assert self._row is not None
        reward, terminated, truncated, episode = ROW_HEAD.unpack_from(message, 1)
        rest = message[1 + ROW_HEAD.size :]
        info = pickle.loads(rest) if rest else {}
        return Answer(self._row.arrays, reward, terminated, truncated, info, episode)

    def _why_it_hangs(self, seconds: float) -> str:
        where = ""
        if hasattr(signal, "SIGUSR1") and self.process.pid is not None:
            with contextlib.suppress(OSError):
                os.kill(self.process.pid, signal.SIGUSR1)
            where = self._last_words(0.5)
        return f"It gave no answer within {seconds:g} s.{where}"

    def _why_it_died(self) -> str:
        self.process.join(1.0)
        code = self.process.exitcode
        name = ""
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                name = f", {signal.Signals(-code).name}"
            name += ": killed, often for want of memory" if code == -9 else ""
        words = f"Its process ended without an answer (exit code {code}{name})."
        if self._row is None:
            words += (
                " A program that starts processes must do its work under `if __name__ == "
                "'__main__':`. With vector=sync there are no processes."
            )
        return words + self._last_words()

    def _last_words(self, seconds: float = 0.0) -> str:
        """Where it was, as its fault handler wrote it."""
        text = b""
        with contextlib.suppress(OSError, ValueError):
            while self._words.poll(0.05 if text else seconds):
                part = os.read(self._words.fileno(), 65536)
                if not part:
                    break
                text += part
        lines = text.decode(errors="replace").strip().splitlines()
        return "\n  ".join(["", *lines[:TRACEBACK_LINES]])


def _context() -> Any:
    """How processes start. A fork of a process that has threads, CUDA or a GL context may hang."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    multiprocessing.set_forkserver_preload([PRELOAD])
    return multiprocessing.get_context("forkserver")


@contextlib.contextmanager
def _without_main(needed: bool) -> Iterator[None]:
    """Processes started here do not run the main script again, torch and all, unless it is needed
    for what only it defines."""
    main = sys.modules["__main__"]
    if not needed:
        sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _poller(pipe: Connection) -> Callable[[float], bool]:
    """Whether something arrives within so many seconds; `pipe.poll`, six times as fast."""
    if not hasattr(select, "poll"):
        return pipe.poll
    poll = select.poll()
    poll.register(pipe.fileno(), select.POLLIN)
    return lambda seconds: bool(poll.poll(seconds * 1000))


def _work(maker: Maker, pipe: Connection, words: Connection) -> None:
    """The life of an environment's process."""
    # Whoever stops a run signals the whole group; the parent decides when its environments end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable(words.fileno(), all_threads=False)
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1, words.fileno(), all_threads=False)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    worker = _Worker(Runner(maker, _Heartbeat(pipe)))
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        while not worker.closed:
            message = pipe.recv_bytes()
            reply = worker.answer(message)
            pipe.send_bytes(reply)
    with contextlib.suppress(Exception, SystemExit):
        worker.runner.close()


class _Worker:
    """Turns messages into commands, and answers into messages."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.closed = runner, False
        self._row: SharedRow | None = None
        self._spaces: Spaces | None = None

    def answer(self, message: bytes) -> bytes:
        """The reply to one message."""
        try:
            return self._answered(message)
        except (Exception, SystemExit) as error:
            kind = type(error) if isinstance(error, EnvError) else None
            failed = (False, (reason_of(error), kind))
            return OTHER + pickle.dumps(failed, 5)

    def _answered(self, message: bytes) -> bytes:
        if message[:1] == STEP:
            assert self._spaces is not None
            action = self._spaces.action
            given = np.frombuffer(message, action.dtype, offset=1).reshape(action.shape or ())
            return self._packed(self.runner.run("step", given[()]))
        name, *data = pickle.loads(message[1:])
        if name == "close":
            self.closed = True
            return OTHER
        if name == "attach":
            assert self._spaces is not None
            self._row = SharedRow(self._spaces.observation, data[0])
            return OTHER + pickle.dumps((True, None), 5)
        answer = self.runner.run(name, *data)
        if isinstance(answer, Spaces):
            self._spaces = answer
            return OTHER + pickle.dumps((True, answer), 5)
        return self._packed(answer)

    def _packed(self, answer: Answer) -> bytes:
        """A row as a message; its observation goes into the shared memory."""
        assert self._row is not None
        self._row.write(answer.obs)
        head = ROW_HEAD.pack(answer.reward, answer.terminated, answer.truncated, answer.episode)
        return ROW + head + (_info_bytes(answer.info) if answer.info else b"")


def _info_bytes(info: dict[str, Any]) -> bytes:
    """A pickle of an info; entries that cannot be pickled stay behind."""
    try:
        return pickle.dumps(info, 5)
    except Exception:
        kept = {}
        for key, value in info.items():
            with contextlib.suppress(Exception):
                pickle.dumps(value)
                kept[key] = value
        return pickle.dumps(kept, 5)


def _end_with_parent() -> None:
    """A hanging environment would never see that its pipe has no other end."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Heartbeat:
    """Says once a second that a replay goes on."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._last = pipe, time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._last > 1:
            self._last = now
            self._pipe.send_bytes(ALIVE)
