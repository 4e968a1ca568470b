"""The run folder: whether a run may use it, whether there is room for it, and its lock."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from agents.base import Agent, parameters_count
from agents.run import report
from agents.run.config import CONFIG, TrainConfig
from worldmodel import checkpoint, config, tree
from worldmodel.config import ConfigError, RunError
from worldmodel.envs import env_spec, make_env
from worldmodel.log import METRICS, write_json
from worldmodel.replay import Replay
from worldmodel.replay.ring import available_memory

LOCK, HOLDER = ".lock", ".holder.json"
LEAST_MEMORY = 256 << 20  # bytes; with less, the next allocation may be the process's last


def check_folder(settings: TrainConfig, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The summary of a run that is finished already, or None where there is something to do.

    Raises ConfigError where the folder holds a run with other settings and `accept_changes` does
    not consent to them, or cannot.
    """
    folder = settings.folder
    if not (folder / CONFIG).is_file():
        return None
    changed = config.differences(config.read(folder / CONFIG), settings)
    if changed:
        _check_continues(settings, {key: old for key, (old, _) in changed.items()})
        lines = [f"  {key}: there {old}, asked for {new}" for key, (old, new) in changed.items()]
        text = f"'{folder}' holds a run with other settings:\n" + "\n".join(lines)
        if not settings.accept_changes:
            raise ConfigError(
                f"{text}\nGive the same settings to continue it, accept_changes=true to go on with "
                "the new ones, or another run=... to start a new run."
            )
        say(f"{text}\nGoing on with the new ones, as accept_changes says.")
    summary = report.read_summary(folder)
    if summary is None or not checkpoint.exists(folder):
        return None
    limit = settings.max_minutes
    over = limit is not None and summary["wall_clock_s"] >= 60 * limit
    done = summary["updates" if settings.offline else "agent_steps"] >= settings.length
    enough = 0 < settings.updates <= summary["updates"]
    return summary if done or enough or over else None


def _check_continues(settings: TrainConfig, changed: Mapping[str, Any]) -> None:
    """ConfigError where the run in the folder is one of another agent, or its environment shows or
    takes something else. changed: what was set there, by dotted keys."""
    folder = settings.folder
    agent = changed.get("agent.name", settings.agent.name)
    text = f"'{folder}' is a run of agent={agent} on {changed.get('env.id', settings.env.id)}"
    if "agent.name" in changed:
        raise ConfigError(f"{text}. Choose another run=..., or continue it with agent={agent}.")
    others = {key: old for key, old in changed.items() if key.startswith("env.")}
    if not others or settings.offline or not checkpoint.exists(folder):
        return
    with closing(make_env(replace(settings.env, num_envs=1))) as env:
        spec = env_spec(env)
    if spec != checkpoint.spec_from_dict(checkpoint.load(folder).get("spec")):
        words = " ".join(f"{key}={old}" for key, old in others.items())
        raise ConfigError(
            f"{text}, with other observations or actions. Choose another run=..., or continue it "
            f"with {words}."
        )


def check_unused(folder: Path) -> None:
    """RunError where a folder lost its checkpoints but not what a run wrote there."""
    metrics = folder / METRICS
    if metrics.is_file() and metrics.stat().st_size:
        raise RunError(
            f"'{folder}' holds {METRICS} of an earlier run, but none of its checkpoints. Choose "
            "another run=..., put its checkpoints back, or empty the folder."
        )


def check_disk(
    settings: TrainConfig,
    agent: Agent,
    replay: Replay,
    rows: int,
    say: Callable[[str], None],
    ranks: int = 1,
) -> None:
    """Say what a run needs and what is free; ConfigError where the disk cannot hold it. rows: how
    many the replay will be given. ranks: how many have such a replay.

    (Memory for the replay was checked when it was made.)
    """
    folder = settings.folder
    state = state_bytes(agent)
    checkpoints = (settings.checkpoints_kept + 1) * state  # with the one being written
    need = checkpoints + ranks * replay.disk_bytes(rows)
    held = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    free = shutil.disk_usage(folder).free
    memory = available_memory()
    say(
        f"run folder: {folder} (needs up to {_gb(need)} GB, holds {_gb(held)}, {_gb(free)} GB free)"
    )
    full = replay.expected * replay.row_bytes if replay.config.storage == "memory" else 0
    each = f" of each of {ranks} ranks" if ranks > 1 else ""
    if memory is not None:
        say(
            f"memory{each}: replay grows to {_gb(full)} GB, agent and optimizer hold "
            f"{_gb(state)}, {_gb(memory)} GB free"
        )
    if need - held > free:
        raise ConfigError(
            f"'{folder}' needs up to {_gb(need)} GB for checkpoints and replay, but only "
            f"{_gb(free)} GB are free. Make room, choose another run=..., or lower "
            "replay.capacity."
        )


def _gb(size: float) -> str:
    """Bytes as a number of GB with two digits, without an exponent."""
    return f"{size / 1e9:.0f}" if size >= 1e11 or size < 1e5 else f"{size / 1e9:.2g}"


def state_bytes(agent: Agent) -> int:
    """Bytes of an agent's checkpoint: its state, where an optimizer's moments may still come."""
    numbers = sum(tensor.numel() for tensor in tree.tensors(agent.state_dict()))
    return 4 * max(numbers, 3 * parameters_count(agent))


def check_memory(agent_steps: int) -> None:
    """RunError, while there is still enough left to save, where memory is about to end.

    agent_steps: at which the run was saved.
    """
    free = available_memory()
    if free is not None and free < LEAST_MEMORY:
        raise RunError(
            f"Memory is ending: {free / 1e6:.0f} MB are free, {LEAST_MEMORY / 1e6:.0f} are needed "
            f"to go on safely. The run was saved at step {agent_steps:,}: free memory, or choose "
            "replay.storage=disk in a new run, and give the same command again."
        )


class RunLock:
    """Holds a run folder for as long as the `with` block, or the process, lives.

    The system lets go of the lock when its process dies, however that happens, so a lock that is
    held always has a living holder; what a dead one left behind is recognised and said.
    Raises RunError where another process holds the folder.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder, self._say = Path(folder), say
        self._lock = FileLock(self._folder / LOCK, blocking=False)

    def __enter__(self) -> RunLock:
        try:
            self._lock.acquire()
        except Timeout as error:
            raise RunError(
                f"'{self._folder}' is in use by {self._holder() or 'another process'}. Wait until "
                "it has ended, stop it, or choose another run=..."
            ) from error
        except NotImplementedError as error:
            raise RunError(
                f"'{self._folder}' lies on a file system without locks ({error}), where two "
                "processes could destroy each other's run. Choose another run=..."
            ) from error
        left = self._holder()
        if left:
            self._say(f"'{self._folder}' was left by {left}, which did not end properly.")
        about = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%F %T")}
        try:
            write_json(self._folder / HOLDER, about)
        except OSError:  # a full disk
            self._lock.release()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        (self._folder / HOLDER).unlink(missing_ok=True)
        self._lock.release()

    def _holder(self) -> str:
        """Who holds, or last held, the folder; empty where nobody says so."""
        path = self._folder / HOLDER
        try:
            about = json.loads(path.read_bytes()) if path.is_file() else {}
            words = f"process {about['pid']:d} on {about['host']} since {about['since']}"
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return ""
        return words if len(words) < 200 and words.isprintable() else "a process without a name"
