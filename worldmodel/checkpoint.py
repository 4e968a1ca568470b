"""Checkpoints that survive a kill at any moment, and say when they were damaged.

    <run>/checkpoints/000012-3f9a1c0de7b2a455.pt     the twelfth, and the start of its SHA-256

A checkpoint is written under another name, flushed, and renamed when complete, so every file
of this form was complete once. Its name says what its bytes must be: one that the disk, or a
person, changed since is recognised, and the one before it is used. Nothing in a file is executed.
"""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldmodel import tree
from worldmodel.config import ConfigError, RunError
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec

FOLDER = "checkpoints"
FORMAT = 2  # of what is inside; a file of another one is refused
NAME = re.compile(r"([0-9]{6,})-([0-9a-f]{16})\.pt")
AXES = {"image": 3, "vector": 1, "discrete": 1, "recorded": 1}  # kind of observation -> axes of one
MOST_NUMBERS = 1 << 28  # in one observation or action
DEEPEST = 64  # levels of nested dicts and lists
SIMPLE = (str, int, float, bool, type(None))
Warn = Callable[[str], None] | None
NESTS = (dict, OrderedDict, list, tuple)
# What a file, or a part of a state, that is not ours can make its readers raise.
NONSENSE = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError,
    RecursionError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError, struct.error,
    zipfile.BadZipFile,
)  # fmt: skip


class CheckpointError(RunError):
    """A checkpoint is missing, damaged or of another shape; the message says what to do."""


def save(run: Path, state: Mapping[str, Any], keep: int = 2) -> Path:
    """Write the next checkpoint of a run folder, all or nothing; the newest `keep` ones stay.

    state: numbers, strings, lists, dicts and tensors only, so that it loads without unpickling;
    ValueError where it holds anything else, for nobody could load that.
    Raises OSError (a full disk, say) and then leaves the ones before as they were.
    """
    assert keep >= 1
    check_plain(state)
    folder = Path(run) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    before = found(run)
    fresh = folder / "unfinished"
    try:
        with fresh.open("wb") as file:
            # PyTorch's zip writer turns a full disk into a RuntimeError without the reason.
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        number = _number(before[0]) + 1 if before else 1
        final = folder / f"{number:06d}-{_digest(fresh)}.pt"
        os.replace(fresh, final)
    except BaseException as error:
        fresh.unlink(missing_ok=True)
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    _sync_directory(folder)
    for old in before[keep - 1 :]:
        old.unlink(missing_ok=True)
    return final


def found(run: Path) -> list[Path]:
    """The checkpoints of a run folder, newest first, damaged ones included."""
    folder = Path(run) / FOLDER
    paths = [p for p in folder.glob("*.pt") if NAME.fullmatch(p.name) and p.is_file()]
    return sorted(paths, key=_number, reverse=True)


def exists(run: Path) -> bool:
    """Whether the folder holds a checkpoint, damaged or not."""
    return bool(found(run))


def load(run: Path, warn: Warn = None) -> dict[str, Any]:
    """The newest undamaged checkpoint of a run folder, on the CPU, without running any code from
    it. Damaged ones are passed over, with a line to `warn`.

    Raises CheckpointError where there is none, or none that is undamaged.
    """
    return next(candidates(run, warn))


def candidates(run: Path, warn: Warn = None, but: Iterable[str] = ()) -> Iterator[dict[str, Any]]:
    """The undamaged checkpoints of a run folder, newest first, as `load` reads them; then a
    CheckpointError. but: why the caller, who adds to it, could not use those before."""
    paths = found(run)
    damages: list[str] = []
    for path in paths:
        try:
            state = _checked(path)
        except CheckpointError as error:
            damages.append(str(error))
            continue
        if damages and warn is not None:
            warn(f"{' '.join(damages)} Going on from the one before: '{path.name}'.")
        damages.clear()
        yield state
    if not paths:
        raise CheckpointError(
            f"There is no checkpoint in '{Path(run) / FOLDER}'. Either the folder is wrong, or the "
            "run was stopped before its first checkpoint: start it again."
        )
    raise CheckpointError(
        f"{' '.join(dict.fromkeys([*but, *damages]))} There is no other checkpoint in "
        f"'{Path(run) / FOLDER}': start the run again in a new folder."
    )


def _checked(path: Path) -> dict[str, Any]:
    """A checkpoint whose bytes are those that were written."""
    named = NAME.fullmatch(path.name)
    assert named
    try:
        if _digest(path) != named.group(2):
            raise CheckpointError(
                f"The checkpoint '{path}' is damaged: its {path.stat().st_size:,} bytes are not "
                "those that were written."
            )
    except OSError as error:
        raise CheckpointError(f"The checkpoint '{path}' cannot be read ({error}).") from error
    state = _read(path)
    given = state.get("format")
    if type(given) is not int or given != FORMAT:
        raise CheckpointError(
            f"The checkpoint '{path}' has the format {given!r:.40}; this version reads "
            f"{FORMAT}. Use the version of worldmodel that wrote it."
        )
    return state


def _read(path: Path) -> dict[str, Any]:
    try:
        _check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
        check_plain(state, path.stat().st_size)
    except NONSENSE as error:
        text = f"'{path}' is damaged or no checkpoint of ours ({_reason(error)})."
        raise CheckpointError(text) from error
    return state


def _check_archive(path: Path) -> None:
    """ValueError unless the file is an archive as `torch.save` writes it, whose entries together
    are no longer than the file: one that is packed could grow a thousandfold."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("its entries are packed")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("its entries are longer than the file")


def check_plain(state: Any, size: int | None = None) -> None:
    """ValueError unless nested dicts, lists and tuples hold numbers, strings, None and tensors
    alone, and end.

    size: bytes of the file that the state came from; neither its values nor any tensor can be more.
    """
    waiting: list[tuple[str, Any, int]] = [("", state, 0)]
    values = 0
    while waiting:
        name, value, depth = waiting.pop()
        values += 1
        if depth > DEEPEST or (size is not None and values > size):
            raise ValueError(f"it is nested without end ({name[:60]} ...)")
        if isinstance(value, Tensor):
            _check_tensor(name, value, size)
        elif type(value) in NESTS:
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, inner in items:
                if type(key) not in (str, int):
                    raise ValueError(f"{name or 'it'} has the key {key!r:.40}")
                waiting.append((f"{name}.{key}" if name else str(key), inner, depth + 1))
        elif type(value) not in SIMPLE:
            raise ValueError(
                f"{name or 'it'} is a {type(value).__name__}; a checkpoint holds numbers, strings, "
                "lists, dicts and tensors"
            )


def _check_tensor(name: str, value: Tensor, size: int | None) -> None:
    usual = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided
    if not usual or value.is_quantized or value.is_meta or value.is_nested or vars(value):
        raise ValueError(f"{name} is no ordinary tensor")
    if size is not None and value.numel() * value.element_size() > size:
        raise ValueError(f"{name} claims {value.numel():,} numbers, more than the file holds")


def _reason(error: BaseException, most: int = 0) -> str:
    """What an error says, without colours: its first line, or up to `most` characters."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip() or type(error).__name__
    if text.startswith("Weights only load failed"):  # and then how to load it all the same
        text = f"Weights only load failed: {text.partition('WeightsUnpickler error: ')[2]}"
    return text[:most] if most else text.splitlines()[0][:200]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _number(path: Path) -> int:
    return int(path.name.partition("-")[0])


def restore(target: Any, state: Any, where: Any) -> None:
    """`target.load_state_dict(state)`, or a CheckpointError that lists what does not fit."""
    if not isinstance(state, Mapping):
        raise CheckpointError(
            f"The checkpoint in '{where}' holds a {type(state).__name__} instead of an agent's "
            "state. Use the version of worldmodel that wrote it, or start a new run."
        )
    expected = target.state_dict()
    mismatch = [*shape_differences(expected, state), *kind_differences(expected, state)]
    if mismatch:
        shown = "\n  ".join(mismatch[:12])
        more = f"\n  and {len(mismatch) - 12} more" if len(mismatch) > 12 else ""
        raise CheckpointError(
            f"The checkpoint in '{where}' has another shape than this model:\n  {shown}{more}\n"
            "Use the settings that it was trained with, or a new run folder."
        )
    with explain_errors("agent", where):
        target.load_state_dict(state)


@contextmanager
def explain_errors(part: str, where: Any) -> Iterator[None]:
    """While a part of an undamaged checkpoint is loaded: whatever is wrong with it becomes a
    CheckpointError that names the part."""
    try:
        yield
    except (ConfigError, RunError):
        raise
    except NONSENSE as error:
        raise CheckpointError(
            f"The '{part}' of the checkpoint in '{where}' does not fit: "
            f"{type(error).__name__}, {_reason(error, 2000)}\nUse the settings and the version of "
            "worldmodel that wrote it, or start a new run."
        ) from error


def shape_differences(expected: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """One line per needed tensor that is missing or of another shape. What is left over is for
    `load_state_dict` to judge: a fresh optimizer has no moments yet."""
    ours, theirs = _shapes(expected), _shapes(given)
    lines = []
    for name, here in sorted(ours.items()):
        there = theirs.get(name)
        if there is None:
            lines.append(f"{name}: needed {here}, missing")
        elif here != there:
            lines.append(f"{name}: needed {here}, checkpoint has {there}")
    return lines


def _shapes(state: Any) -> dict[str, list[int]]:
    leaves = tree.leaves(state)
    return {name: list(leaf.shape) for name, leaf in leaves if isinstance(leaf, Tensor)}


def kind_differences(expected: Any, given: Any, name: str = "") -> Iterator[str]:
    """One line per dict, list, number or string where the other has something else."""
    if isinstance(expected, Mapping) and isinstance(given, Mapping):
        for key in expected.keys() & given.keys():
            yield from kind_differences(expected[key], given[key], f"{name}.{key}".strip("."))
    elif isinstance(expected, list | tuple) and isinstance(given, list | tuple):
        for index, pair in enumerate(zip(expected, given, strict=False)):
            yield from kind_differences(*pair, f"{name}.{index}")
    elif expected is not None and not isinstance(expected, Tensor):
        kinds = type(expected), type(given)
        if kinds[0] is not kinds[1] and kinds != (float, int):
            yield f"{name}: needed {kinds[0].__name__}, checkpoint has {kinds[1].__name__}"


def spec_to_dict(spec: EnvSpec) -> dict[str, Any]:
    """An EnvSpec as plain values, for a checkpoint."""
    return asdict(spec)


def spec_from_dict(saved: Any) -> EnvSpec:
    """The inverse of `spec_to_dict`; CheckpointError where it is none."""
    try:
        obs = {}
        for key, value in saved["obs"].items():
            kind = _one_of(value["kind"], AXES)
            shape, sizes = _integers(value["shape"], AXES[kind]), _integers(value["sizes"])
            obs[_one_of(key, None)] = ObsSpec(kind, shape, sizes)
        action = saved["action"]
        sizes = _integers(action["sizes"])
        if not sizes:
            raise ValueError("an action of no numbers")
        return EnvSpec(obs, ActionSpec(_one_of(action["kind"], ("continuous", "discrete")), sizes))
    except NONSENSE as error:
        raise CheckpointError(
            f"The checkpoint does not say what its environment is like ({type(error).__name__}, "
            f"{_reason(error)}). Use the version of worldmodel that wrote it, or start a new run."
        ) from error


def _one_of(value: Any, known: Container[str] | None) -> str:
    if not isinstance(value, str) or (known is not None and value not in known):
        raise ValueError(f"{value!r:.40} is unknown")
    return value


def _integers(values: Any, axes: int | None = None) -> tuple[int, ...]:
    """A shape, or sizes of factors: whole numbers that an array could have."""
    wholes = tuple(values)
    fits = all(type(n) is int and n >= 1 for n in wholes) and math.prod(wholes) <= MOST_NUMBERS
    if not fits or (axes is not None and len(wholes) != axes):
        raise ValueError(f"{wholes!r:.60} is no shape")
    return wholes


def _sync_directory(folder: Path) -> None:
    """Bring a rename to the disk, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
