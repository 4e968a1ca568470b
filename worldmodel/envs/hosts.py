"""Where an environment of a vector lives: in this process, or in one of its own (`processes`).

Either host takes one command at a time and answers it, or says in words why it cannot:

    make                              -> Spaces          before all others
    reset (seed, episode, options)    -> Answer          a full reset; soft where seed is None and
                                                         the environment goes on
    step (action,)                    -> Answer
    replay (journal state,)           -> Answer
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import gymnasium

from .config import EnvConfig, EnvError, EnvUnclear
from .journal import Episodes

Maker = Callable[[], Episodes]
CLOSE_SECONDS = 5.0  # until a process that was asked to end is killed
TRACEBACK_LINES = 12


class Spaces(NamedTuple):
    """What all environments of a vector have in common."""

    observation: gymnasium.Space[Any]
    action: gymnasium.Space[Any]
    metadata: dict[str, Any]
    render_mode: str | None

    def alike(self, other: Spaces) -> bool:
        """Whether both observe and act the same."""
        return self.observation == other.observation and self.action == other.action


class Answer(NamedTuple):
    """One row. obs: valid until the next command. episode: the number of the full reset that the
    row descends from."""

    obs: dict[str, Any]
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]
    episode: int


class HostFailed(Exception):
    """A host cannot answer. error: what the environment raised when it was to be made, or an
    EnvError with the same words."""

    def __init__(self, reason: str, error: BaseException | None = None) -> None:
        super().__init__(reason)
        self.reason, self.error = reason, error

    def alone(self) -> HostFailed:
        """Without its traceback and cause, which hold on to the failed environment's memory until
        the garbage collector comes by."""
        return HostFailed(self.reason, self.error)


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


Commands = dict[int, tuple[Any, ...]]  # the host's index -> name and data


class UnderWay:
    """One command for each of some hosts, given when this is made."""

    def __init__(self, hosts: Sequence[Host], commands: Commands) -> None:
        self._hosts, self._commands = hosts, commands
        self._failed: dict[int, HostFailed] = {}
        for index, command in commands.items():
            try:
                hosts[index].send(*command)
            except HostFailed as error:
                self._failed[index] = error.alone()
        self._began = time.monotonic()

    def answers(self, config: EnvConfig) -> tuple[dict[int, Any], dict[int, HostFailed]]:
        """The answers, and the failures; to be called once. Raises EnvUnclear, since no environment
        made anew would answer that."""
        found, failed = {}, self._failed
        for index, command in self._commands.items():
            if index in failed:
                continue
            seconds = config.timeout if command[0] == "step" else config.start_timeout
            try:
                found[index] = self._hosts[index].receive(self._began, seconds)
            except HostFailed as error:
                if isinstance(error.error, EnvUnclear):
                    raise error.error from None
                failed[index] = error.alone()
        return found, failed


class Runner:
    """Carries out commands on one environment."""

    def __init__(self, maker: Maker, alive: Callable[[], None] | None = None) -> None:
        self._maker, self._alive = maker, alive
        self._env: Episodes | None = None

    def run(self, name: str, *data: Any) -> Any:
        """The answer; raises whatever the environment raises."""
        env = self._env
        if name == "make":
            env = self._env = self._maker()
            return Spaces(env.observation_space, env.action_space, env.metadata, env.render_mode)
        assert env is not None, "make comes first"
        if name in ("step", "replay"):
            row: tuple[Any, ...]
            row = env.step(data[0]) if name == "step" else env.replay(data[0], self._alive)
            return Answer._make((*row, env.episode))
        assert name == "reset"
        seed, episode, options = data
        if seed is not None:
            env.base_seed = seed
        if seed is None and getattr(env.unwrapped, "goes_on", False):
            obs, info = env.reset(options=options)
        else:
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
    try:
        words = f"{type(error).__name__}: {error}".strip()
    except Exception:  # it is somebody else's class, and need not know how to say what it is
        words = f"{type(error).__name__} (which fails to say what it is)"
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
            tells = self._command[0] == "make" or isinstance(error, EnvUnclear)
            raise HostFailed(reason_of(error), error if tells else None) from error

    def ask_to_end(self) -> None:
        pass

    def end(self, seconds: float) -> None:
        # An environment that failed may well fail to close.
        with contextlib.suppress(Exception, SystemExit):
            self._runner.close()
