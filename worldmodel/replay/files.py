"""Replay on disk: raw rows per field and stream, a small index, and one redo log at most.

    <field>.<stream>.bin   the base files: rows by slot, as in memory
    index.json             what the base files hold, with checksums; renamed into place last
    delta.bin              a save that no checkpoint is known to have committed
    folding.bin            a save that one has, on its way into the base files

    save     writes delta.bin and nothing else
    (the checkpoint is written, with the state that save returned: the moment that decides)
    commit   renames delta.bin to folding.bin, writes its rows into the base files, then the
             index, and removes it; killed anywhere, it is done again

Until the checkpoint is there, base files and index are what the one before it needs; from then
on, they and the log on top of them are what the new one needs.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.replay import damage, delta
from worldmodel.replay.delta import DELTA, FOLDING, GAP, Changes, runs_of
from worldmodel.replay.folder import Folder, Plan, finish, read_base, tidy
from worldmodel.replay.index import (
    INDEX,
    Index,
    ReplayDamaged,
    blocks,
    file_name,
    read_index,
)
from worldmodel.replay.ring import DATA_DIRTY, FLAGS_DIRTY, SAVED, Ring
from worldmodel.replay.schema import Schema

TRIES = 5  # times to read a folder that a run goes on changing
FRESH_BITS = DATA_DIRTY | FLAGS_DIRTY


@dataclass
class Pending:
    """A save without its commit. begun: the commit was asked for, and must be finished."""

    folder: Path
    index: Index
    begun: bool = False


class Saver:
    """Saves and loads one ring; remembers where it did, to write only changes."""

    def __init__(self, ring: Ring, schema: Schema, storage: str) -> None:
        self._ring, self._spec, self._storage = ring, schema.spec, storage
        self._signature = {
            **schema.signature(),
            "environments": ring.streams,
            "rows per environment": ring.rows,
        }
        self._home = ring.directory  # the folder that ring.dirty speaks of
        self._base: Index | None = None  # what its base files hold, where we know
        self._pending: Pending | None = None
        mapped = ring.directory
        names = (INDEX, DELTA, FOLDING)
        self._guarded = mapped is not None and any((mapped / name).exists() for name in names)

    def check_writable(self) -> None:
        """Raises ValueError where the replay is for reading only, and where new rows would
        destroy a saved replay that was not loaded."""
        if self._ring.frozen:
            raise ValueError(
                "This replay was opened for reading: it takes no rows and no columns, and "
                "cannot be saved. To go on recording, make a Replay with the same settings and "
                "load it."
            )
        if self._guarded:
            raise ValueError(
                f"{self._ring.directory} holds a saved replay. Load it before adding rows, or "
                "choose an empty directory."
            )

    def save(self, folder: Path, cursor: list[int], rng: Mapping[str, Any]) -> dict[str, Any]:
        """Write what changed since the last commit as a log, and return the state."""
        self.check_writable()
        if self._pending is not None and self._pending.begun:
            self.commit()
        folder.mkdir(parents=True, exist_ok=True)
        ring, base = self._ring, self._base
        home = _same(folder, self._home)
        if not home or base is None or base.token != _token(folder):
            base = None
        changes = damage.everything(ring) if base is None else self._changes()
        index = Index(
            self._signature,
            secrets.token_hex(8) if base is None else base.series,
            1 if base is None else base.generation + 1,
            secrets.token_hex(8),
            ring.count.tolist(),
            ring.floor.tolist(),
            cursor,
            dict(rng),
            self._spec,
            self._storage,
            damage.checksums(ring, changes, base.sums if base else None),
        )
        delta.write(folder, ring.arrays, changes, index, base.token if base else None)
        self._pending = Pending(folder, index)
        if home or ring.directory is None:
            self._home, self._base = folder, base
            ring.dirty[:] = (ring.dirty | (ring.dirty << SAVED)) & (FRESH_BITS << SAVED)
        return index.state()

    def commit(self) -> None:
        """Fold the last save into the base files; nothing where that is done already."""
        pending, ring = self._pending, self._ring
        if pending is None:
            return
        pending.begun = True
        place, mapped = pending.folder, _same(pending.folder, ring.directory)
        with Folder(place) as folder:
            logs = [log for log in (folder.delta, folder.folding) if log is not None]
            mine = [log for log in logs if log.index.token == pending.index.token]
            if mine:
                finish(place, mine[0], keep_files=mapped)
            elif _token(place) != pending.index.token:
                raise ReplayDamaged(f"The save that was to be committed is gone from {place}.")
        self._pending = None
        if _same(place, self._home):
            self._base = pending.index
            ring.dirty &= FRESH_BITS
        if mapped:
            ring.give_back()

    def load(self, place: Path, state: Mapping[str, Any] | None) -> Index:
        """Fill the ring with a state, or with the newest one, and bring the files to it.

        Returns what the caller restores besides: cursor and generator.
        """
        ring = self._ring
        if ring.frozen:
            self.check_writable()
        asked = None if state is None else _asked(state)
        with Folder(place) as folder:
            plan = folder.plan(asked)
            for index in (plan.index, asked or plan.index):
                self._check_same(place, index)
            folder.check_sizes(plan)
            for log in plan.logs:
                finish(place, log, keep_files=_same(place, ring.directory))
        tidy(place)
        self._fill(place, plan)
        if plan.older and asked is not None:
            self._shrink(place, asked)
        self._guarded, self._pending = False, None
        return asked or plan.index

    def disk_bytes(self, steps: int | None) -> int:
        """The most bytes of base files, logs and the index after so many rows."""
        ring = self._ring
        full = ring.streams * ring.rows
        rows = full if steps is None else min(full, steps + ring.streams)
        base = full if ring.directory is not None else rows
        names = [file_name(f, n) for f in ring.fields for n in range(ring.streams)]
        words = sum(2 * len(name) + 32 for name in names) + 100 * ring.streams + (1 << 14)
        sums = 8 * len(ring.fields) * (blocks(rows) + ring.streams)
        # Two logs lie there while a save replaces one that nothing committed. The index lies in
        # each and, while it is replaced, twice beside them; runs of slots are at most 2 bytes a
        # row.
        return (base + 2 * rows) * ring.row_bytes + 4 * (words + sums) + 4 * rows

    def _fill(self, place: Path, plan: Plan) -> None:
        """The ring as the base files have it, less what is damaged."""
        ring, index = self._ring, plan.index
        ring.dirty[:] = 0
        mapped = _same(place, ring.directory)
        if mapped:
            ring.give_back()
        else:
            read_base(place, ring, index.filled)
        ring.count[:], ring.floor[:] = index.count, index.floor
        damage.drop_bad(ring, index, place)
        if mapped:
            ring.give_back()
        if mapped or ring.directory is None:
            self._home, self._base = place, index
        else:
            self._home, self._base = ring.directory, None

    def _shrink(self, place: Path, asked: Index) -> None:
        """Go back to an older state as far as the newer files allow."""
        ring = self._ring
        ring.count[:] = np.minimum(ring.count, asked.count)
        ring.floor[:] = np.minimum(np.maximum(ring.floor, asked.floor), ring.count)
        damage.drop_torn(ring, place)
        warnings.warn(
            f"The replay at {place} is newer than the checkpoint (save {asked.generation}): its "
            "newer rows were dropped, but rows that they had overwritten are gone, and columns "
            "may be newer. The continuation is sound, but not equal to the bit.",
            stacklevel=4,
        )
        if self._base is not None:
            sums = damage.checksums(ring, damage.everything(ring), None)
            self._base = replace(self._base, sums=sums)

    def _changes(self) -> list[Changes]:
        """What differs from the base files, out of the marks in the ring."""
        data, every = DATA_DIRTY, FRESH_BITS
        marks = (data | data << SAVED, every | every << SAVED)
        return [
            Changes(runs_of(dirty & marks[0]), runs_of(dirty & marks[1], GAP))
            for dirty in self._ring.dirty
        ]

    def _check_same(self, place: Path, index: Index) -> None:
        ours, theirs = self._signature, index.signature
        lines = [f"  {k}: saved {theirs[k]}, here {v}" for k, v in ours.items() if theirs[k] != v]
        if lines:
            raise ValueError(
                f"The replay saved at {place} differs from this one:\n" + "\n".join(lines)
            )


def open_ring(place: Path) -> tuple[Index, Ring]:
    """The newest state in a folder as a ring for reading: in memory, or mapped where the run
    that wrote it mapped it. Nothing in the folder is changed.

    Raises ReplayDamaged and FileNotFoundError, and ValueError where the memory is too small.
    """
    for left in reversed(range(TRIES)):
        with Folder(place) as folder:
            try:
                index, ring = _read_only(folder)
                settled = folder.unchanged()
            except (ValueError, FileNotFoundError):
                if not left or folder.unchanged():
                    raise
                continue
        if settled or not left:
            break
    damage.drop_bad(ring, index, place)
    for array in (array for arrays in ring.arrays.values() for array in arrays):
        array.flags.writeable = False
    return index, ring


def _read_only(folder: Folder) -> tuple[Index, Ring]:
    plan = folder.plan(None)
    index = plan.index
    folder.check_sizes(plan)
    # A stream that has come round uses every slot; before that, only the first ones.
    length = max(1, *index.filled)
    whole = bool(plan.logs) and plan.logs[0].parent is None
    mapped = index.storage == "disk" and not whole and _mappable(folder.place, index, length)
    try:
        where = folder.place if mapped else None
        ring = Ring(index.fields, index.streams, index.rows, where, length)
    except (MemoryError, OverflowError) as error:
        raise ReplayDamaged(f"The replay at {folder.place} is too large: {error}") from error
    if not mapped and not whole and folder.index is not None:
        read_base(folder.place, ring, folder.index.filled)
    for log in plan.logs:
        log.overlay(ring.arrays)
    ring.count[:], ring.floor[:] = index.count, index.floor
    return index, ring


def _mappable(place: Path, index: Index, length: int) -> bool:
    """Whether every base file has all slots; reading beyond the end of a mapped file kills."""
    sizes = [
        (place / file_name(name, stream), length * field.nbytes)
        for stream in range(index.streams)
        for name, field in index.fields.items()
    ]
    return all(path.is_file() and path.stat().st_size >= size for path, size in sizes)


def _asked(state: Mapping[str, Any]) -> Index:
    try:
        return Index.from_state(state)
    except (  # a RuntimeError is torch's, where a tensor stands for a number
        ValueError, TypeError, KeyError, AttributeError, OverflowError, RuntimeError,
    ) as error:  # fmt: skip
        raise ReplayDamaged(f"The checkpoint's state of the replay is damaged: {error}.") from error


def _same(a: Path, b: Path | None) -> bool:
    return b is not None and a.resolve() == b.resolve()


def _token(folder: Path) -> str | None:
    try:
        return read_index(folder).token
    except (OSError, ValueError):
        return None
