"""Replay: rows of several environments in, sequences out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from worldmodel.replay import rows as held
from worldmodel.replay.config import ReplayConfig, place_of, rows_per_env
from worldmodel.replay.files import Saver, open_ring
from worldmodel.replay.index import Index
from worldmodel.replay.ring import Ring
from worldmodel.replay.rows import RowIndex
from worldmodel.replay.schema import COLUMN, FIRST, FLAGS, LAST, STORED, Schema
from worldmodel.types import Batch, Column, EnvSpec, Transitions

# Sequences per environment that may wait in the online queue; older ones are left to chance.
BACKLOG = 16
REDRAWS = 1000  # of transitions that would begin where an episode ends
NOTHING: Mapping[str, Column] = MappingProxyType({})


class Replay:
    """One ring of consecutive rows per environment (a stream); draws are uniform over every
    possible start of a sequence. Not safe to use from several threads at once.

    spec: what rows hold. num_envs: N, how many streams. columns: what is stored beside each row,
    by name. seed: of its own random generator. directory: for storage=disk, before the one in the
    config.

    What is promised, whichever the storage: a process killed at any moment (between `save`, the
    checkpoint that holds its state, and `commit`, or within one of them) finds with that
    checkpoint's state the replay of that `save` to the bit. At most the rows since then are lost.
    Nothing reaches the files but through `save` and `commit`: storage=disk maps them
    copy-on-write, so that what changes between two commits lies in memory, and is given back by
    the second one. Whatever fails its checksum is dropped with a warning.

    Raises ValueError for impossible settings and where memory or disk is too small.
    """

    def __init__(
        self,
        spec: EnvSpec,
        config: ReplayConfig,
        num_envs: int,
        columns: Mapping[str, Column] = NOTHING,
        seed: int = 0,
        directory: str | Path | None = None,
    ) -> None:
        schema = Schema(spec, columns)
        rows = rows_per_env(config, schema.row_bytes, num_envs)
        ring = Ring(schema.fields, num_envs, rows, place_of(config, directory))
        self._assemble(schema, config, ring, seed)

    @classmethod
    def open(cls, directory: str | Path) -> Replay:
        """The newest save in a folder, for reading; nothing else is needed, nothing is changed.

        Works beside the process that records there. A replay of storage=disk is mapped here too:
        rows that the run overwrites are then gone here as well (asking for them by number is a
        ValueError), and columns may be newer. Raises FileNotFoundError where nothing is saved,
        ReplayDamaged where it cannot be read, ValueError where memory is too small.
        """
        index, ring = open_ring(Path(directory))
        assert index.spec is not None
        assert index.storage is not None
        config = ReplayConfig(
            capacity=index.streams * index.rows,
            storage=index.storage,
            directory=str(directory),
        )
        replay = cls.__new__(cls)
        replay._assemble(Schema(index.spec, index.columns), config, ring, 0)
        replay._restore(index)
        return replay

    def _assemble(self, schema: Schema, config: ReplayConfig, ring: Ring, seed: int) -> None:
        self.spec, self.config, self.num_envs = schema.spec, config, ring.streams
        self.columns = schema.columns
        self._row_fields = [*(f"obs.{key}" for key in schema.spec.obs), "action", "reward", "flags"]
        self._rng = np.random.default_rng(seed)
        self._schema, self._ring = schema, ring
        self._cursor = np.zeros(ring.streams, np.int64)  # first row not yet handed out online
        self._saver = Saver(ring, schema, config.storage)

    def __len__(self) -> int:
        """Rows held, over all streams."""
        return int(self._ring.filled.sum())

    @property
    def counts(self) -> np.ndarray:
        """Rows ever added to every stream, [N]; the next row's absolute number."""
        return self._ring.count.copy()

    @property
    def capacity(self) -> int:
        """Rows that fit, over all streams."""
        return self.num_envs * self._ring.rows

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self._ring.row_bytes

    def footprint(self) -> str:
        """One line: steps, bytes per step, bytes when full and bytes now."""
        full, used = self.capacity * self.row_bytes, len(self) * self.row_bytes
        return (
            f"replay: {self.capacity:,} steps x {self.row_bytes / 1e3:.3g} KB = "
            f"{full / 1e9:.3g} GB ({self.config.storage}; {used / 1e9:.3g} GB used now; saved, up "
            f"to {self.disk_bytes() / 1e9:.3g} GB)"
        )

    def add(self, rows: Mapping[str, Any], env_ids: Any = None) -> None:
        """Append one row to every stream, or to the streams env_ids [N'] only.

        rows: every observation key [N, ...], action [N, A], reward [N], is_first, is_last,
        is_terminal [N]; and all columns [N, ...] or none. An episode that a first row
        interrupts is marked as cut off (is_last) at its newest row.

        Raises ValueError for wrong names, shapes or types and for values that are not finite.
        """
        self._saver.check_writable()
        every = range(self.num_envs)
        ids = list(every) if env_ids is None else np.asarray(env_ids, np.int64).tolist()
        if len(set(ids)) != len(ids) or not set(ids) <= set(every):
            raise ValueError(f"env_ids {ids} are not distinct and in [0, {self.num_envs})")
        values = self._schema.pack(rows, len(ids))
        for i, stream in enumerate(ids):
            count = int(self._ring.count[stream])
            if values["flags"][i] & FIRST and count > self._ring.oldest[stream]:
                self._ring.add_flag(stream, count - 1, LAST)
            self._ring.append(stream, {name: value[i] for name, value in values.items()})

    def add_many(self, stream: int, rows: Mapping[str, Any]) -> None:
        """Append many rows to one stream, [T, ...] per key: what T calls of `add` would do."""
        self._saver.check_writable()
        if not 0 <= stream < self.num_envs:
            raise ValueError(f"stream {stream} is not in [0, {self.num_envs})")
        length = len(rows["reward"])
        values, count = self._schema.pack(rows, length), int(self._ring.count[stream])
        flags = values["flags"]
        flags[:-1] |= np.where(flags[1:] & FIRST, LAST, 0).astype(np.uint8)
        if length and flags[0] & FIRST and count > self._ring.oldest[stream]:
            self._ring.add_flag(stream, count - 1, LAST)
        self._ring.extend(stream, values, length)

    def num_sequences(self, length: int) -> int:
        """How many different sequences of `length` rows can be drawn."""
        return int(self._starts(length).sum())

    def can_sample(self, length: int) -> bool:
        """Whether any stream holds `length` consecutive rows."""
        return self.num_sequences(length) > 0

    def sample(
        self,
        batch_size: int,
        length: int,
        online: bool = True,
        columns: Iterable[str] = (),
        context: Iterable[str] = (),
    ) -> Batch:
        """Draw [B, T] rows on the CPU: waiting online sequences first, the rest uniform.

        A sequence is T consecutive rows of one stream and may cross episodes, always marked by
        is_first. columns: names of those wanted of every row [B, T, ...]. context: names of those
        wanted of the row before the first one, [B, ...]; where there is none, or none was asked
        for, they are zeros and is_first[:, 0] is True (in the batch only). online=False leaves
        the queue alone, for reports. The queue is a cursor per stream, so T may differ from call
        to call: every row is handed out once, in pieces of the T then asked for.

        Raises ValueError while no stream holds T rows, and where rows lack the columns wanted.
        """
        starts = self._starts(length)
        if batch_size < 1:
            raise ValueError(f"Cannot draw {batch_size} sequences.")
        self._check_enough(starts, length)
        index = np.empty((2, batch_size), np.int64)
        fresh = self._pop_online(batch_size, length) if online and self.config.online else []
        index[:, : len(fresh)] = np.asarray(fresh, np.int64).reshape(-1, 2).T
        index[:, len(fresh) :] = self._uniform(starts, batch_size - len(fresh))
        return self.gather(RowIndex(index[0], index[1], length), columns, context)

    def gather(
        self, index: RowIndex, columns: Iterable[str] = (), context: Iterable[str] = ()
    ) -> Batch:
        """The rows at an index, as `sample` returns them.

        Raises ValueError where rows are not, or no longer, held, or lack the columns wanted.
        """
        held.check(self._ring, index)
        wanted = self._column_fields(columns)
        names = [*self._row_fields, *wanted]
        tensors = self._ring.take(names, index.stream, index.start, index.length)
        flags = tensors.pop("flags").numpy()
        if wanted and not (flags & STORED).all():
            raise ValueError("Some of these rows have no columns (see rewrite).")
        before, known = held.context(self._ring, self._column_fields(context), index)
        first, is_last, is_terminal = ((flags & bit) != 0 for bit in FLAGS.values())
        first[:, 0] |= ~known
        is_first, is_last, is_terminal = map(torch.from_numpy, (first, is_last, is_terminal))
        return Batch(
            {key: tensors[f"obs.{key}"] for key in self.spec.obs},
            tensors["action"],
            tensors["reward"],
            is_first,
            is_last,
            is_terminal,
            {name.removeprefix(COLUMN): tensors[name] for name in wanted},
            before,
            index,
        )

    def transitions(self, batch_size: int, n: int = 1, discount: float = 0.99) -> Transitions:
        """Draw B transitions of up to n steps on the CPU, uniformly over all recorded steps.

        discount: of one step. Raises ValueError while no stream holds a step.
        """
        if batch_size < 1 or n < 1:
            raise ValueError(f"Cannot draw {batch_size} transitions of {n} steps.")
        starts = self._starts(2)
        self._check_enough(starts, 2)
        stream, row = self._uniform(starts, batch_size)
        for _ in range(REDRAWS):
            wrong = np.flatnonzero(~held.beginnings(self._ring, stream, row))
            if not len(wrong):
                break
            stream[wrong], row[wrong] = self._uniform(starts, len(wrong))
        else:
            raise ValueError("Nearly all recorded episodes are one row long: no step to draw.")
        return held.transitions(self._ring, RowIndex(stream, row, 1), n, discount)

    def rewrite(self, index: RowIndex, values: Mapping[str, Any]) -> None:
        """Store new values [B, T, ...] of rewritable columns, on any device, with the rows of an
        index, except for rows overwritten since. Rows that have no columns take all of them.

        Raises ValueError for names, shapes, types and values that are not those of the columns,
        and where only some columns are given for rows that have none.
        """
        self._saver.check_writable()
        fixed = [name for name in values if not self._column(name).rewritable]
        if fixed:
            raise ValueError(f"Columns {fixed} were not declared rewritable.")
        lead = (len(index.start), index.length)
        arrays = self._schema.pack_columns(values, lead)
        ring, skips = self._ring, np.maximum(0, self._ring.oldest[index.stream] - index.start)
        places = zip(index.stream.tolist(), index.start.tolist(), skips.tolist(), strict=True)
        pieces = [place for place in enumerate(places) if place[1][2] < index.length]
        if len(values) < len(self.columns) and not all(
            ring.all_stored(stream, start + skip, index.length - skip)
            for _, (stream, start, skip) in pieces
        ):
            raise ValueError("Some of these rows have no columns yet: give all columns.")
        for b, (stream, start, skip) in pieces:
            for name, array in arrays.items():
                ring.write(name, stream, start + skip, array[b, skip:])
            ring.mark_stored(stream, start + skip, index.length - skip)

    def episodes(self, complete: bool = False) -> list[tuple[int, int, int]]:
        """Recorded episodes as (stream, start, stop), stop excluded, oldest first per stream.

        complete=True leaves out those whose first rows are overwritten or that still go on.
        """
        return held.episodes(self._ring, complete)

    def rows(self, stream: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """Copies of the rows start ... stop - 1 of one stream, [T, ...] per key: every
        observation key, action, reward and the three flags, as they were added.

        Raises ValueError where rows are not, or no longer, held.
        """
        held.check(self._ring, RowIndex(np.array([stream]), np.array([start]), stop - start))
        out = {}
        for name in self._row_fields:
            field = self._ring.fields[name]
            values = np.empty((stop - start, *field.shape), field.dtype)
            self._ring.read(name, stream, start, values)
            out[name.removeprefix("obs.")] = values
        flags = out.pop("flags")
        return out | {name: (flags & bit) != 0 for name, bit in FLAGS.items()}

    def save(self, directory: str | Path) -> dict[str, Any]:
        """Write what changed since the last commit to a folder, beside what is there.

        Returns the state that a checkpoint stores and `load` asks for: numbers, strings, lists
        and dicts only. When the checkpoint is there, call `commit`. A save that follows another
        without a commit holds the changes of both and takes its place; until the newer one is
        whole, the room of both is needed. Raises OSError as the disk does, with nothing lost.
        """
        rng = self._rng.bit_generator.state
        return self._saver.save(Path(directory), self._cursor.tolist(), rng)

    def commit(self) -> None:
        """A checkpoint holds the state of the last `save`: bring that into the base files.

        Does nothing where it is done. After an OSError it can be called again; the next `save`
        does so first, and `load` where the process ended.
        """
        self._saver.commit()

    def load(self, directory: str | Path, state: Mapping[str, Any] | None = None) -> None:
        """Restore what `save` wrote; draws then go on as if never interrupted.

        state: what that save returned, out of a checkpoint. A save that the checkpoint does not
        know is thrown away; where the files are newer, their newer rows are dropped, with a
        warning that the continuation is not equal to the bit. None takes the newest save, for
        callers without checkpoints.

        Raises ReplayDamaged where the files cannot give that state (an older checkpoint's may
        still be there), ValueError where the saved replay differs (spec, columns, environments,
        capacity), FileNotFoundError where there is none.
        """
        self._restore(self._saver.load(Path(directory), state))

    def disk_bytes(self, steps: int | None = None) -> int:
        """The most bytes that the folder of this replay can hold, after `steps` rows over all
        streams together, or when full: base files and two logs, each of which may be as large,
        and their index. Storage=disk takes the whole base files from the start."""
        return self._saver.disk_bytes(steps)

    def _restore(self, index: Index) -> None:
        self._cursor = np.minimum(np.asarray(index.cursor, np.int64), self._ring.count)
        self._rng.bit_generator.state = index.rng

    def _column(self, name: str) -> Column:
        if name not in self.columns:
            known = ", ".join(sorted(self.columns)) or "none"
            raise ValueError(f"This replay stores no column '{name}'. Stored: {known}.")
        return self.columns[name]

    def _column_fields(self, names: Iterable[str]) -> list[str]:
        return [COLUMN + name for name in names if self._column(name)]

    def _starts(self, length: int) -> np.ndarray:
        if length < 1:
            raise ValueError(f"A sequence has at least one row, not {length}.")
        self._ring.forget_overwritten()
        return np.maximum(0, self._ring.filled - length + 1)

    def _check_enough(self, starts: np.ndarray, length: int) -> None:
        if not starts.any():
            raise ValueError(
                f"Cannot draw sequences of {length} rows: the fullest stream holds "
                f"{int(self._ring.filled.max())}. Add more rows first (see can_sample)."
            )

    def _uniform(self, starts: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Streams and first rows [count], each of every stream's starts [N] equally likely."""
        edges = np.cumsum(starts)
        draw = self._rng.integers(int(edges[-1]), size=count)
        stream = np.searchsorted(edges, draw, side="right")
        return stream, self._ring.oldest[stream] + draw - (edges - starts)[stream]

    def _pop_online(self, limit: int, length: int) -> list[tuple[int, int]]:
        floor = np.maximum(self._ring.oldest, self._ring.count - BACKLOG * length)
        self._cursor = np.maximum(self._cursor, floor)
        waiting = (self._ring.count - self._cursor) // length
        found: list[tuple[int, int]] = []
        while len(found) < limit and waiting.any():
            stream = int(waiting.argmax())  # the longest queue first, so that none starves
            found.append((stream, int(self._cursor[stream])))
            self._cursor[stream] += length
            waiting[stream] -= 1
        return found
