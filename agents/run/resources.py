"""Whether a run has room, on the disk and in memory: before it starts, and while it lasts."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from agents.base import Agent, parameters_count
from agents.run.config import TrainConfig
from worldmodel import tree
from worldmodel.config import ConfigError, RunError
from worldmodel.replay import Replay
from worldmodel.replay.ring import available_memory

LEAST_MEMORY = 256 << 20  # bytes; with less, the next allocation may be the process's last


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
        f"run folder: {folder} (needs up to {need / 1e9:.2g} GB, holds {held / 1e9:.2g}, "
        f"{free / 1e9:.3g} GB free)"
    )
    full = replay.capacity * replay.row_bytes if replay.config.storage == "memory" else 0
    each = f" of each of {ranks} ranks" if ranks > 1 else ""
    if memory is not None:
        say(
            f"memory{each}: replay grows to {full / 1e9:.2g} GB, agent and optimizer hold "
            f"{state / 1e9:.2g}, {memory / 1e9:.3g} GB free"
        )
    if need - held > free:
        raise ConfigError(
            f"'{folder}' needs up to {need / 1e9:.2g} GB for checkpoints and replay, but only "
            f"{free / 1e9:.2g} GB are free. Make room, choose another run=..., or lower "
            "replay.capacity."
        )


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
