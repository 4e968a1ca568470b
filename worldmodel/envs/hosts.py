"""Where an environment of a vector lives: in this process, or in one of its own.

Either host takes one command at a time and answers it, or says in words why it cannot:

    make                              -> Spaces          before all others
    reset (seed, episode, options)    -> Answer          a full reset; soft where seed is None and
                                                         the environment goes on
    step (action,)                    -> Answer
    replay (journal state,)           -> Answer
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import gymnasium

from .config import EnvError
from .journal import Episodes

Maker = Callable[[], Episodes]
CLOSE_SECONDS = 5.0  # until a process that was asked to end is killed
TRACEBACK_LINES = 12
PRELOAD = "worldmodel.envs.observe"  # imported once by the server of processes; without torch


class Spaces(NamedTuple):
    """What all environments of a vector have in common."""

    observation: gymnasium.Space[Any]
    action: gymnasium.Space[Any]
    metadata: dict[str, Any]
    render_mode: str | None


class Answer(NamedTuple):
    """One row. episode: the number of the full reset that it descends from."""

    obs: dict[str, Any]
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]
    episode: int


class HostFailed(Exception):
    """A host cannot answer. error: what the environment raised, where it is in this process."""

    def __init__(self, reason: str, error: BaseException | None = None) -> None:
        super().__init__(reason)
        self.reason, self.error = reason, error


class Host(Protocol):
    """One environment, wherever it is."""

    def send(self, name: str, *data: Any) -> None:
        """Give a command. Raises HostFailed."""

    def receive(self, began: float, seconds: float) -> Any:
        """The answer to it. Raises HostFailed, also where it does not come within so many seconds
        of the moment `began` (time.monotonic)."""

    def ask_to_end(self) -> None:
        """Let the environment close, without waiting."""

    def end(self, seconds: float) -> None:
        """Gone when this returns; with force after so many seconds. Never raises."""


class Runner:
    """Carries out commands on one environment."""

    def __init__(self, maker: Maker, alive: Callable[[], None] | None = None) -> None:
        self._maker, self._alive = maker, alive
        self._env: Episodes | None = None

    def run(self, name: str, *data: Any) -> Any:
        """The answer; raises whatever the environment raises."""
        if name == "make":
            made = self._env = self._maker()
            return Spaces(
                made.observation_space, made.action_space, made.metadata, made.render_mode
            )
        env = self._env
        assert env is not None, "make comes first"
        if name in ("step", "replay"):
            row = env.step(*data) if name == "step" else env.replay(data[0], self._alive)
            obs, reward, terminated, truncated, info = row
            return Answer(obs, float(reward), terminated, truncated, info, env.episode)
        assert name == "reset"
        seed, episode, options = data
        if seed is not None:
            env.base_seed = seed
        elif getattr(env.unwrapped, "goes_on", False):
            obs, info = env.reset(options=options)
            return Answer(obs, 0.0, False, False, info, env.episode)
        obs, info = env.begin(episode, options)
        return Answer(obs, 0.0, False, False, info, env.episode)

    def close(self) -> None:
        """Close the environment, if it was made."""
        if self._env is not None:
            env, self._env = self._env, None
            env.close()


def reason_of(error: BaseException) -> str:
    """What went wrong, in the environment's own words; with the end of its traceback, unless we
    found the fault ourselves."""
    if isinstance(error, EnvError):
        return str(error)
    lines = "".join(traceback.format_exception(error)).strip().splitlines()
    words = f"{type(error).__name__}: {error}".strip()
    return "\n  ".join([words, *lines[1:][-TRACEBACK_LINES:]])


class LocalHost:
    """An environment in this process. It cannot be interrupted: what hangs, hangs."""

    def __init__(self, maker: Maker) -> None:
        self._runner = Runner(maker)
        self._command: tuple[Any, ...] = ()

    def send(self, name: str, *data: Any) -> None:
        self._command = (name, *data)

    def receive(self, began: float, seconds: float) -> Any:
        try:
            return self._runner.run(*self._command)
        except (Exception, SystemExit) as error:
            raise HostFailed(reason_of(error), error) from error

    def ask_to_end(self) -> None:
        pass

    def end(self, seconds: float) -> None:
        # An environment that failed may well fail to close.
        with contextlib.suppress(Exception, SystemExit):
            self._runner.close()


class ProcessHost:
    """An environment in a process of its own, which ends when this process does, however that
    comes about."""

    process: Any = None

    def __init__(self, maker: Maker) -> None:
        self._maker = maker

    def _start(self) -> None:
        context = _context()
        self._pipe, theirs = context.Pipe()
        self._words, words = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(self._maker, theirs, words), daemon=True)
        try:
            process.start()
        finally:
            theirs.close()  # or its end would not be seen here
            words.close()
        self.process = process
        # Before multiprocessing's own exit, which would wait for a process that waits for us.
        atexit.register(self.end, 0.0)

    def send(self, name: str, *data: Any) -> None:
        try:
            if name == "make":
                self._start()
            self._pipe.send_bytes(pickle.dumps((name, *data), 5))
        except OSError as error:
            why = f"No process could be started: {error}." if self.process is None else ""
            raise HostFailed(why or self._why_it_died()) from error

    def receive(self, began: float, seconds: float) -> Any:
        try:
            while True:
                if not self._pipe.poll(max(0.0, began + seconds - time.monotonic())):
                    raise HostFailed(self._why_it_hangs(seconds))
                kind, answer = pickle.loads(self._pipe.recv_bytes())
                if kind == "answer":
                    return answer
                if kind == "failed":
                    words, broke_a_rule = answer
                    raise HostFailed(words, EnvError(words) if broke_a_rule else None)
                assert kind == "alive"
                began = time.monotonic()  # a long replay goes on
        except (EOFError, OSError) as error:
            raise HostFailed(self._why_it_died()) from error
        except HostFailed:
            raise
        except Exception as error:
            raise HostFailed(f"Its answer cannot be read: {reason_of(error)}") from error

    def ask_to_end(self) -> None:
        if self.process is None:
            return
        with contextlib.suppress(OSError):
            self._pipe.send_bytes(pickle.dumps(("close",), 5))

    def end(self, seconds: float) -> None:
        if self.process is None:
            return
        atexit.unregister(self.end)
        self.process.join(seconds)
        if self.process.exitcode is None:
            # Not SIGTERM, which it ignores: one sent to the whole group is meant for us.
            self.process.kill()
            self.process.join(CLOSE_SECONDS)
        self._pipe.close()
        self._words.close()

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
        return f"Its process ended without an answer (exit code {code}{name}).{self._last_words()}"

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


def _work(maker: Maker, pipe: Connection, words: Connection) -> None:
    """The life of an environment's process."""
    # Whoever stops a run signals the whole group; the parent decides when its environments end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable(words.fileno(), all_threads=False)
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1, words.fileno(), all_threads=False)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    runner = Runner(maker, _Heartbeat(pipe))
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        while True:
            name, *data = pickle.loads(pipe.recv_bytes())
            if name == "close":
                break
            try:
                reply: Any = ("answer", runner.run(name, *data))
            except (Exception, SystemExit) as error:
                reply = ("failed", (reason_of(error), isinstance(error, EnvError)))
            pipe.send_bytes(_packed(reply))
    with contextlib.suppress(Exception, SystemExit):
        runner.close()


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
            self._pipe.send_bytes(pickle.dumps(("alive", None), 5))


def _packed(reply: Any) -> bytes:
    """A pickle of the reply; entries of info that cannot be pickled stay behind."""
    try:
        return pickle.dumps(reply, 5)
    except Exception:
        kind, answer = reply
        assert isinstance(answer, Answer)
        kept = {}
        for key, value in answer.info.items():
            with contextlib.suppress(Exception):
                pickle.dumps(value)
                kept[key] = value
        return pickle.dumps((kind, answer._replace(info=kept)), 5)
