"""What one rank of several does of a run: its share of the settings, its part of a checkpoint.

settings    mean the whole run: steps, prefill, train ratio, batch_size and replay.capacity
            are over all ranks together; env.num_envs alone is each rank's own
run folder  one for all; rank 0 writes logs, checkpoints and the summary
replay      one shard each: rank 0 in the replay's folder, rank 1 in `rank-1` below it, ...
checkpoint  one file: the agent once, and of every rank replay, collector and generators
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import agents
from agents.base import Agent
from agents.run.config import TrainConfig
from worldmodel import seeding, tree
from worldmodel.accel.ranks import Ranks
from worldmodel.config import ConfigError
from worldmodel.replay import clear


def share_of(settings: TrainConfig, ranks: Ranks) -> TrainConfig:
    """What of a run is this rank's: its part of every batch and of the replay, and seeds that no
    other rank has. Alone it is all.

    Raises ConfigError where the agent cannot learn so, or a batch cannot be divided.
    """
    size, agent = ranks.size, settings.agent
    if size == 1:
        return settings
    if not agents.agent_class(agent.name).joins:
        raise ConfigError(
            f"The agent '{agent.name}' learns in one process alone. Start it without torchrun."
        )
    if agent.batch_size % size:
        raise ConfigError(
            f"agent.batch_size is {agent.batch_size}, over all ranks together; {size} ranks cannot "
            f"have equal parts of it. Choose a multiple of {size}, for example "
            f"{-(-agent.batch_size // size) * size}."
        )
    if settings.eval_envs == 0:
        raise ConfigError("eval_envs=0 is for one environment, not for several ranks of them.")
    replay, seed = settings.replay, settings.seed
    if not settings.offline:  # each rank reads a recording as a whole
        gigabytes = None if replay.capacity_gb is None else replay.capacity_gb / size
        replay = replace(replay, capacity=replay.capacity / size, capacity_gb=gigabytes)
    return replace(
        settings,
        run=str(settings.folder),
        seed=seed if ranks.first else seeding.spawn(seed, f"rank {ranks.rank}"),
        agent=replace(agent, batch_size=agent.batch_size // size),
        replay=replay,
    )


def shard(place: Path, rank: int) -> Path:
    """The folder of one rank's part of a replay."""
    return place / f"rank-{rank}" if rank else place


def clear_others(place: Path, size: int) -> None:
    """Remove shards of more ranks than there are, which a run that never began left behind."""
    for path in place.glob("rank-*"):
        number = path.name.removeprefix("rank-")
        if number.isdecimal() and int(number) >= size:
            clear(path)


def say_once(say: Callable[[str], None], ranks: Ranks) -> Callable[[str], None]:
    """How to say what all ranks would say alike: rank 0 does."""
    return say if ranks.first else lambda text: None


def say_with_rank(say: Callable[[str], None], ranks: Ranks) -> Callable[[str], None]:
    """How to say what concerns this rank."""
    return say if ranks.size == 1 else lambda text: say(f"rank {ranks.rank}: {text}")


def check_shared(path: Path, ranks: Ranks) -> None:
    """ConfigError where this rank does not see a file that rank 0 has written."""
    if not path.is_file():
        raise ConfigError(
            f"rank {ranks.rank} does not see '{path}', which rank 0 has just written. The run "
            "folder must lie on a file system that all machines share; give its whole path as "
            "run=..."
        )


def join(agent: Agent, ranks: Ranks) -> None:
    """Make all ranks' agents one: with the weights and moments of rank 0."""
    if ranks.size == 1:
        return
    agent.join(ranks)
    state = agent.state_dict()
    ranks.broadcast(tree.tensors(state))
    agent.load_state_dict(state)
