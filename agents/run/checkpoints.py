"""A run's checkpoints: what every rank puts into one, and how all go on from it.

One file holds the agent once and, of every rank, its replay's state, episodes and generators. It
is renamed into place when it is complete, and that is the moment for all ranks: a replay belongs
to the checkpoint that names its save, so that the parts of two checkpoints never mix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.run import setup
from agents.run.state import Counters, RunState
from worldmodel import checkpoint, seeding, tree
from worldmodel.accel.ranks import Ranks
from worldmodel.config import ConfigError, RunError
from worldmodel.log import RunLog
from worldmodel.replay import ReplayDamaged
from worldmodel.tree import brief

OTHERS = "ranks"  # where a checkpoint keeps the parts of ranks 1, 2, ...
MOST = 1 << 62  # of anything that is counted


def save(state: RunState, folder: Path, log: RunLog | None, keep: int, ranks: Ranks) -> None:
    """Checkpoint everything, all or nothing, with all ranks; log: on rank 0.

    replay.save        what changed, in a new file; older checkpoints lose nothing
    checkpoint.save    the one moment at which the new state holds, that of every rank
    replay.commit      the changes become part of the replay's files
    """
    agent = state.agent.state_dict()
    check_same(agent, ranks)
    parts = ranks.gather_objects(ranks.all_or_none(lambda: _rank_part(state)))
    ranks.all_or_none(lambda: _write(state, folder, log, keep, agent, parts) if log else None)
    ranks.all_or_none(state.replay.commit)


def _rank_part(state: RunState) -> dict[str, Any]:
    """What each rank has of its own."""
    return {
        "replay": state.replay.save(state.place),
        "collector": state.collector and state.collector.state_dict(),
        "rng": seeding.rng_state(),
        "means": tree.to_plain(state.means.state_dict()),  # goes from rank to rank: not on a GPU
    }


def _write(
    state: RunState,
    folder: Path,
    log: RunLog,
    keep: int,
    agent: Mapping[str, Any],
    parts: list[dict[str, Any]],
) -> None:
    saved = {
        "agent": agent,
        "spec": checkpoint.spec_to_dict(state.spec),
        "counters": asdict(state.counters),
        **parts[0],
        "log": log.position(),
        "scores": state.scores.state_dict(),
    }
    if parts[1:]:
        saved[OTHERS] = parts[1:]
    checkpoint.save(folder, saved, keep)


def restore(
    state: RunState,
    folder: Path,
    ranks: Ranks,
    say: Callable[[str], None],
    say_here: Callable[[str], None],
) -> dict[str, Any]:
    """Load agent, counters and replay from the newest checkpoint that is intact, and whose replays
    are on all ranks; returns this rank's part of it. say_here: prints what concerns this rank.

    Raises CheckpointError where there is none, ConfigError where it is of other ranks.
    """

    refused: list[str] = []

    def load(everything: Mapping[str, Any]) -> dict[str, Any] | None:
        """This rank's part, or None where its replay is damaged."""
        saved = part_of(everything, ranks, folder)
        check_saved(saved, folder)
        try:
            setup.load_replay(state.replay, state.place, saved["replay"], say_here)
        except ReplayDamaged as error:
            say_here(f"{error} Trying the checkpoint before.")
            refused.append(str(error))
            return None
        return saved

    for found in checkpoint.candidates(folder, say, refused):
        saved = ranks.all_or_none(lambda found=found: load(found))  # type: ignore[misc]
        if ranks.agree(saved is None) or saved is None:
            refused += ["The replay of another rank is damaged."] * (saved is not None)
            continue
        checkpoint.restore(state.agent, saved["agent"], folder)
        state.counters = Counters(**saved["counters"])
        state.means.load_state_dict(saved["means"])
        state.scores.load_state_dict(saved["scores"])
        say(
            f"continuing '{folder}' at step {state.counters.agent_steps:,}, update "
            f"{state.counters.updates:,}"
        )
        return saved
    raise AssertionError("candidates ends with an error")


def part_of(saved: Mapping[str, Any], ranks: Ranks, folder: Path) -> dict[str, Any]:
    """This rank's part of a checkpoint, in the form of a run alone.

    Raises ConfigError where it was written by another number of ranks.
    """
    with checkpoint.explain_errors(OTHERS, folder):
        others = list(saved.get(OTHERS, ()))
        if not all(isinstance(part, dict) for part in others):
            raise ValueError("it is no list of parts")
        size = 1 + len(others)
    if size != ranks.size:
        there, here = ("one process" if n == 1 else f"{n} ranks" for n in (size, ranks.size))
        command = "the plain command" if size == 1 else f"torchrun and {size} ranks in all"
        raise ConfigError(
            f"The run in '{folder}' belongs to {there}, but now {here} would go on with it: "
            "experience, episodes and random numbers are each rank's own. Continue it with "
            f"{command}, or start a new run from its weights: run=... from_run={folder}"
        )
    return dict(saved) if ranks.first else {**saved, **others[ranks.rank - 1]}


def check_same(state: Mapping[str, Any], ranks: Ranks) -> None:
    """RunError unless the agents of all ranks are still one, to the bit."""
    if ranks.size == 1:
        return
    sums = torch.stack([x.double().sum().cpu() for x in tree.tensors(state)]).tolist()
    if any(other != sums for other in ranks.gather_objects(sums)):
        raise RunError(
            "The agents of the ranks are no longer the same, so this is no longer one run. An "
            "agent may change in an update by what the gradient of all ranks alone decides; are "
            "the machines of one kind, with the same versions? The last checkpoint is intact."
        )


def check_saved(saved: Mapping[str, Any], where: Path) -> None:
    """CheckpointError, which names the part, unless a run could have written this.

    A checkpoint whose bytes are intact may still be nonsense: written by hand, by another version,
    or by somebody who means harm. Agent, replay and environments check their own parts.
    """
    checks = {
        "agent": None, "replay": None, "counters": _check_counters, "means": _check_means,
        "scores": _check_means, "log": _check_log, "rng": _check_rng, "collector": _check_collector,
    }  # fmt: skip
    for name, check in checks.items():
        with checkpoint.explain_errors(name, where):
            if saved.get(name) is None and name != "collector":
                raise ValueError("it is missing")
            if check is not None and saved[name] is not None:
                check(saved[name])


def _check_counters(value: Any) -> None:
    kinds = {field.name: field.type for field in fields(Counters)}
    for name, number in value.items():
        if name not in kinds:
            raise ValueError(f"'{name}' is not counted")
        if kinds[name] == "int":
            _check_whole(number, name)
        else:
            _check_number(number, name)


def _check_means(value: Any) -> None:
    if value["sums"].keys() != value["counts"].keys():
        raise ValueError("sums and counts are of different metrics")
    for name, total in value["sums"].items():
        if not (isinstance(total, Tensor) and total.numel() == 1 and not total.is_complex()):
            _check_number(total, name, finite=False)
        _check_whole(value["counts"][name], name, least=1)


def _check_log(value: Any) -> None:
    for name, size in value.items():
        _check_whole(size, str(name))


def _check_rng(value: Any) -> None:
    """NumPy takes any position in its words, and reads beyond them."""
    _check_whole(value["numpy"]["pos"], "numpy.pos", most=624)


def _check_collector(value: Any) -> None:
    for name in ("envs", "rows", "agent", "rng", "returns", "lengths", "steps"):
        if name not in value:
            raise ValueError(f"'{name}' is missing")
    _check_whole(value["steps"], "steps")
    for env in value["envs"]:
        for name in ("seed", "episode"):
            _check_whole(env[name], name)
        _check_whole(env.get("failures", 0), "failures")
        _check_number(env["reward"], "reward")
        for step in env["resets"]:
            _check_whole(step, "resets")
        actions = env["actions"]
        if isinstance(actions, Tensor) and not actions.is_complex():
            actions = actions.numpy()
        if np.asarray(actions).dtype.kind not in "iuf":
            raise ValueError(f"actions are {brief(actions)}")
        if type(env["terminated"]) is not bool or type(env["truncated"]) is not bool:
            raise ValueError("terminated or truncated is no flag")


def _check_whole(value: Any, name: str, least: int = 0, most: int = MOST) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is {brief(value)}, not a whole number from {least} to {most}")


def _check_number(value: Any, name: str, finite: bool = True) -> None:
    if type(value) not in (int, float) or (finite and not abs(value) < 1e18):  # a NaN fails too
        raise ValueError(f"{name} is {brief(value)}, not a number")
