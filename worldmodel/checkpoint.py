"""Checkpoints that survive a kill at any moment: a new name, flush, fsync, then rename."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldmodel.types import ActionSpec, EnvSpec, ObsSpec

NAME = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged or of another shape; the message says what to do."""


def save(folder: Path, state: Mapping[str, Any]) -> Path:
    """Write `checkpoint.pt`, all or nothing, and keep the one before it.

    state: numbers, strings, lists, dicts and tensors only, so that it loads without unpickling.
    Raises OSError (a full disk, say) and then leaves the last checkpoint as it was.
    """
    folder = Path(folder)
    fresh, final = folder / f"{NAME}.new", folder / NAME
    try:
        with fresh.open("wb") as file:
            # PyTorch's zip writer turns a full disk into a RuntimeError without the reason.
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        fresh.unlink(missing_ok=True)
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    if final.exists():
        previous = folder / PREVIOUS
        link = folder / f"{PREVIOUS}.new"
        link.unlink(missing_ok=True)
        # `checkpoint.pt` must exist at every moment, so it is linked rather than moved away.
        try:
            os.link(final, link)
            os.replace(link, previous)
        except OSError:
            pass  # a file system without hard links keeps only the newest one
    os.replace(fresh, final)
    _sync_directory(folder)
    return final


def exists(folder: Path) -> bool:
    """Whether the folder holds a checkpoint."""
    return (Path(folder) / NAME).is_file()


def load(folder: Path) -> dict[str, Any]:
    """The newest checkpoint of a run folder, on the CPU, without running any code from it.

    Raises CheckpointError where it is missing or damaged.
    """
    path = Path(folder) / NAME
    if not path.is_file():
        raise CheckpointError(
            f"There is no checkpoint '{path}'. Either the folder is wrong, or the run was stopped "
            "before its first checkpoint: start it again."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError, KeyError, ValueError) as error:
        previous = path.parent / PREVIOUS
        way_out = (
            f"the one before it is '{previous}': rename it to '{NAME}' to continue from there"
            if previous.is_file()
            else "there is no earlier one: start the run again in a new folder"
        )
        raise CheckpointError(
            f"The checkpoint '{path}' is damaged ({path.stat().st_size:,} bytes; "
            f"{(str(error) or repr(error)).splitlines()[0][:200]}); {way_out}."
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"'{path}' holds a {type(state).__name__}, not a checkpoint.")
    return state


def restore(target: Any, state: Mapping[str, Any], where: Any) -> None:
    """`target.load_state_dict(state)`, or a CheckpointError that lists what does not fit."""
    mismatch = shape_differences(target.state_dict(), state)
    if mismatch:
        shown = "\n  ".join(mismatch[:12])
        more = f"\n  and {len(mismatch) - 12} more" if len(mismatch) > 12 else ""
        raise CheckpointError(
            f"The checkpoint in '{where}' has another shape than this model:\n  {shown}{more}\n"
            "Use the settings that it was trained with, or a new run folder."
        )
    try:
        target.load_state_dict(state)
    except (RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"The checkpoint in '{where}' does not fit this model: {error}"
        ) from error


def shape_differences(expected: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """One line per needed tensor that is missing or of another shape. What is left over is for
    `load_state_dict` to judge: a fresh optimizer has no moments yet."""
    ours, theirs = tensors(expected), tensors(given)
    lines = []
    for name, here in sorted(ours.items()):
        there = theirs.get(name)
        if there is None:
            lines.append(f"{name}: needed {list(here)}, missing")
        elif here != there:
            lines.append(f"{name}: needed {list(here)}, checkpoint has {list(there)}")
    return lines


def tensors(tree: Any, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Dotted names and shapes of all tensors in nested dicts, lists and tuples."""
    if isinstance(tree, Tensor):
        return {prefix: tuple(tree.shape)}
    items: Any = ()
    if isinstance(tree, Mapping):
        items = tree.items()
    elif isinstance(tree, list | tuple):
        items = enumerate(tree)
    found: dict[str, tuple[int, ...]] = {}
    for key, value in items:
        found.update(tensors(value, f"{prefix}.{key}" if prefix else str(key)))
    return found


def spec_to_dict(spec: EnvSpec) -> dict[str, Any]:
    """An EnvSpec as plain values, for a checkpoint."""
    return asdict(spec)


def spec_from_dict(saved: Mapping[str, Any]) -> EnvSpec:
    """The inverse of `spec_to_dict`."""
    obs = {
        key: ObsSpec(value["kind"], tuple(value["shape"]), tuple(value["sizes"]))
        for key, value in saved["obs"].items()
    }
    return EnvSpec(obs, ActionSpec(saved["action"]["kind"], tuple(saved["action"]["sizes"])))


def _sync_directory(folder: Path) -> None:
    """Bring a rename to the disk, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
