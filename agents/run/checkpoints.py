"""A run's checkpoints: what every rank puts into one, and how all go on from it.

One file holds the agent once and, of every rank, its replay's state, episodes and generators. It
is renamed into place when it is whole, and that is the moment for all ranks: a replay belongs to
the checkpoint that names its save, so that the parts of two checkpoints never meet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from agents.run import setup, shares
from agents.run.collect import unpacked
from agents.run.config import Counters
from agents.run.saved import check_saved
from worldmodel import checkpoint, seeding
from worldmodel.accel.ranks import Ranks
from worldmodel.config import ConfigError, RunError
from worldmodel.replay import ReplayDamaged

if TYPE_CHECKING:
    from agents.run.trainer import Trainer

OTHERS = "ranks"  # where a checkpoint keeps the parts of ranks 1, 2, ...


def save(trainer: Trainer) -> None:
    """Checkpoint everything, all or nothing, with all ranks.

    replay.save        what changed, in a new file; older checkpoints lose nothing
    checkpoint.save    the one moment at which the new state holds, that of every rank
    replay.commit      the changes become part of the replay's files
    """
    ranks, agent = trainer.ranks, trainer.agent.state_dict()
    check_same(agent, ranks)
    parts = ranks.gather_objects(ranks.all_or_none(lambda: _part(trainer)))
    ranks.all_or_none(lambda: _write(trainer, agent, parts) if ranks.first else None)
    ranks.all_or_none(trainer.replay.commit)


def _part(trainer: Trainer) -> dict[str, Any]:
    """What each rank has of its own."""
    place = shares.shard(trainer.place, trainer.ranks.rank)
    return {
        "replay": trainer.replay.save(place),
        "collector": trainer.collector and trainer.collector.state_dict(),
        "rng": seeding.rng_state(),
        "means": unpacked(trainer.means.state_dict()),  # to go from rank to rank, not on a GPU
    }


def _write(trainer: Trainer, agent: Mapping[str, Any], parts: list[dict[str, Any]]) -> None:
    state = {
        "agent": agent,
        "spec": checkpoint.spec_to_dict(trainer.spec),
        "counters": asdict(trainer.counters),
        "name": trainer.config.agent.name,
        **parts[0],
        "log": trainer.log.position(),
        "scores": trainer.scores.state_dict(),
    }
    if parts[1:]:
        state[OTHERS] = parts[1:]
    checkpoint.save(trainer.folder, state, trainer.config.checkpoints_kept)


def restore(trainer: Trainer) -> dict[str, Any]:
    """Agent, replay and counters of the newest checkpoint that is whole together with the replays
    of all ranks; returns this rank's part of it.

    Raises CheckpointError where there is none, ConfigError where it is of other ranks.
    """
    ranks, folder = trainer.ranks, trainer.folder
    for whole in checkpoint.candidates(folder, trainer.say):
        saved = ranks.all_or_none(lambda whole=whole: part_of(whole, ranks, folder))  # type: ignore[misc]
        if ranks.agree(not ranks.all_or_none(lambda saved=saved: _fits(trainer, saved))):  # type: ignore[misc]
            continue
        checkpoint.restore(trainer.agent, saved["agent"], folder)
        trainer.counters = Counters(**saved["counters"])
        for means, name in ((trainer.means, "means"), (trainer.scores, "scores")):
            if name in saved:  # the first format kept none
                means.load_state_dict(saved[name])
        trainer.say(
            f"continuing '{folder}' at step {trainer.counters.agent_steps:,}, update "
            f"{trainer.counters.updates:,}"
        )
        return saved
    raise AssertionError("candidates ends with an error")


def _fits(trainer: Trainer, saved: Mapping[str, Any]) -> bool:
    """Whether the replay here could be brought to a checkpoint."""
    check_saved(saved, trainer.folder)
    place = shares.shard(trainer.place, trainer.ranks.rank)
    try:
        setup.load_replay(trainer.replay, place, saved["replay"], trainer.tell)
    except ReplayDamaged as error:
        trainer.tell(f"{error} Trying the checkpoint before.")
        return False
    return True


def part_of(saved: Mapping[str, Any], ranks: Ranks, folder: Path) -> dict[str, Any]:
    """This rank's part of a checkpoint, in the form of a run alone.

    Raises ConfigError where it was written by another number of ranks.
    """
    with checkpoint.understood(OTHERS, folder):
        others = list(saved.get(OTHERS, ()))
        if not all(isinstance(part, dict) for part in others):
            raise ValueError("it is no list of parts")
        size = 1 + len(others)
    if size != ranks.size:
        raise ConfigError(
            f"The run in '{folder}' belongs to {_told(size)}, but now {_told(ranks.size)} would go "
            "on with it: experience, episodes and random numbers are each rank's own. Continue it "
            f"with {_how(size)}, or start a new run from its weights: run=... from_run={folder}"
        )
    return dict(saved) if ranks.first else {**saved, **others[ranks.rank - 1]}


def _told(size: int) -> str:
    return "one process" if size == 1 else f"{size} ranks"


def _how(size: int) -> str:
    return "the plain command" if size == 1 else f"torchrun and {size} ranks in all"


def check_same(state: Mapping[str, Any], ranks: Ranks) -> None:
    """RunError unless the agents of all ranks are still one, to the bit."""
    if ranks.size == 1:
        return
    sums = torch.stack([x.double().sum().cpu() for x in shares.tensors(state)]).tolist()
    if any(other != sums for other in ranks.gather_objects(sums)):
        raise RunError(
            "The agents of the ranks are no longer the same, so this is no longer one run. An "
            "agent may change in an update by what the gradient of all ranks alone decides; are "
            "the machines of one kind, with the same versions? The last checkpoint is intact."
        )
