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
from worldmodel.replay.draws import Draws
from worldmodel.replay.files import Saver, open_ring
from worldmodel.replay.index import Index
from worldmodel.replay.ring import Ring
from worldmodel.replay.rows import RowIndex
from worldmodel.replay.schema import COLUMN, FIRST, FLAGS, LAST, PRIORITY, STORED, Schema
from worldmodel.types import Batch, Column, EnvSpec, Transitions

NOTHING: Mapping[str, Column] = MappingProxyType({})


class Replay:
    """One ring of consecutive rows per environment (a stream); draws are uniform over every
    possible start, or follow priorities. Not safe to use from several threads at once.

    spec: what rows hold. num_envs: N, how many streams. columns: what is stored beside each row,
    by name. seed: of its own random generator. directory: for storage=disk, before the one in the
    config. priority_exponent: sequences and transitions begin at a row with a probability that is
    proportional to its priority to this power (see `reweigh`); 0 makes all draws uniform. expected:
    about how many rows will be added, where known: memory must have room for those alone.

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
        priority_exponent: float = 0.0,
        expected: int | None = None,
    ) -> None:
        if not 0 <= priority_exponent < np.inf:
            raise ValueError(f"priority_exponent={priority_exponent} must be 0 or more.")
        schema = Schema(spec, columns, priority_exponent > 0)
        rows = rows_per_env(config, schema.row_bytes, num_envs)
        ring = Ring(schema.fields, num_envs, rows, place_of(config, directory), None, expected)
        self._assemble(schema, config, ring, seed, priority_exponent)

    @classmethod
    def open(cls, directory: str | Path) -> Replay:
        """The newest save in a folder, for reading; nothing else is needed, nothing is changed.

        Works beside the process that records there. A replay of storage=disk is mapped here too:
        rows that the run overwrites are then gone here as well (asking for them by number is a
        ValueError), and columns may be newer. Draws are uniform. Raises FileNotFoundError where
        nothing is saved, ReplayDamaged where it cannot be read, ValueError where memory is too
        small.
        """
        index, ring = open_ring(Path(directory))
        assert index.spec is not None
        assert index.storage is not None
        rows = index.streams * index.rows
        config = ReplayConfig(capacity=rows, storage=index.storage, directory=str(directory))
        replay = cls.__new__(cls)
        schema = Schema(index.spec, index.columns, index.prioritized)
        replay._assemble(schema, config, ring, 0, 0.0)
        replay._restore(index)
        return replay

    def _assemble(
        self, schema: Schema, config: ReplayConfig, ring: Ring, seed: int, exponent: float
    ) -> None:
        self.spec, self.config, self.num_envs = schema.spec, config, ring.streams
        self.columns = schema.columns
        self._row_fields = [*(f"obs.{key}" for key in schema.spec.obs), "action", "reward", "flags"]
        self._schema, self._ring = schema, ring
        self._draws = Draws(ring, seed, exponent)
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
    def expected(self) -> int:
        """Rows that it will hold, as far as that is known: at most its capacity."""
        return self._ring.expected

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self._ring.row_bytes

    def footprint(self) -> str:
        """One line: steps that will come, bytes per step, bytes of all of them and bytes now."""
        rows, size, saved = self.expected, self.row_bytes / 1e9, self.disk_bytes(self.expected)
        return (
            f"replay: {rows:,}{f' of {self.capacity:,}' * (rows < self.capacity)} steps x "
            f"{1e6 * size:.3g} KB = {rows * size:.3g} GB ({self.config.storage}; "
            f"{len(self) * size:.3g} GB used now; saved, up to {saved / 1e9:.3g} GB)"
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
        values = self._packed(rows, len(ids))
        for i, stream in enumerate(ids):
            count = int(self._ring.count[stream])
            if values["flags"][i] & FIRST and count > self._ring.oldest[stream]:
                self._end(stream, count - 1)
            self._ring.append(stream, {name: value[i] for name, value in values.items()})
            self._weigh(stream, count, 1)

    def add_many(self, stream: int, rows: Mapping[str, Any]) -> None:
        """Append many rows to one stream, [T, ...] per key: what T calls of `add` would do."""
        self._saver.check_writable()
        if not 0 <= stream < self.num_envs:
            raise ValueError(f"stream {stream} is not in [0, {self.num_envs})")
        length = len(rows["reward"])
        values, count = self._packed(rows, length), int(self._ring.count[stream])
        flags = values["flags"]
        flags[:-1] |= np.where(flags[1:] & FIRST, LAST, 0).astype(np.uint8)
        if length and flags[0] & FIRST and count > self._ring.oldest[stream]:
            self._end(stream, count - 1)
        self._ring.extend(stream, values, length)
        self._weigh(stream, count, length)

    def num_sequences(self, length: int) -> int:
        """How many different sequences of `length` rows can be drawn."""
        return int(self._draws.starts(length).sum())

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
        beta: float = 1.0,
    ) -> Batch:
        """Draw [B, T] rows on the CPU: waiting online sequences first, the rest at random.

        A sequence is T consecutive rows of one stream and may cross episodes, always marked by
        is_first. columns: names of those wanted of every row [B, T, ...]. context: names of those
        wanted of the row before the first one, [B, ...]; where there is none, or none was asked
        for, they are zeros and is_first[:, 0] is True (in the batch only). online=False leaves
        the queue alone, for reports. The queue is a cursor per stream, so T may differ from call
        to call: every row is handed out once, in pieces of the T then asked for. beta: of the
        importance weights, where draws follow priorities.

        Raises ValueError while no stream holds T rows, and where rows lack the columns wanted.
        """
        index = self._draws.sequences(batch_size, length, online and self.config.online)
        batch = self.gather(index, columns, context)
        if self._draws.priorities is not None:
            batch.weight = torch.from_numpy(self._draws.weights(index, beta))
        return batch

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
        obs = {key: tensors[f"obs.{key}"] for key in self.spec.obs}
        found = {name.removeprefix(COLUMN): tensors[name] for name in wanted}
        return Batch(
            obs, tensors["action"], tensors["reward"], is_first, is_last, is_terminal,
            columns=found, context=before, index=index,
        )  # fmt: skip

    def transitions(
        self, batch_size: int, n: int = 1, discount: float = 0.99, beta: float = 1.0
    ) -> Transitions:
        """Draw B transitions of up to n steps on the CPU, out of all recorded steps.

        discount: of one step. beta: of the importance weights (N P)^-beta over the batch's
        greatest, where draws follow priorities. Raises ValueError while no stream holds a step.
        """
        if n < 1:
            raise ValueError(f"A transition has at least one step, not {n}.")
        index = self._draws.steps(batch_size)
        weight = self._draws.weights(index, beta)
        return held.transitions(self._ring, index, n, discount, weight)

    def reweigh(self, index: RowIndex, priorities: Any) -> None:
        """New priorities [B], positive, of the first rows of an index, on any device; rows
        overwritten since are skipped. The magnitude of a learning error, say; a new row has the
        greatest that is held, and a row that ends an episode is never drawn as a beginning.

        Raises ValueError where draws are uniform, and for priorities that are not positive.
        """
        self._saver.check_writable()
        if self._draws.priorities is None:
            raise ValueError("This replay draws uniformly: make it with a priority_exponent.")
        self._draws.priorities.write(index, priorities)

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
        held.write(self._ring, index, arrays, len(values) == len(self.columns))

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
        return held.rows(self._ring, self._row_fields, stream, start, stop)

    def save(self, directory: str | Path) -> dict[str, Any]:
        """Write what changed since the last commit to a folder, beside what is there.

        Returns the state that a checkpoint stores and `load` asks for: numbers, strings, lists
        and dicts only. When the checkpoint is there, call `commit`. A save that follows another
        without a commit holds the changes of both and takes its place; until the newer one is
        whole, the room of both is needed. Raises OSError as the disk does, with nothing lost.
        """
        rng = self._draws.rng.bit_generator.state
        return self._saver.save(Path(directory), self._draws.cursor.tolist(), rng)

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
        self._draws.cursor = np.minimum(np.asarray(index.cursor, np.int64), self._ring.count)
        self._draws.rng.bit_generator.state = index.rng
        if self._draws.priorities is not None:
            self._draws.priorities.rebuild()

    def _packed(self, rows: Mapping[str, Any], count: int) -> dict[str, np.ndarray]:
        values = self._schema.pack(rows, count)
        if (priorities := self._draws.priorities) is not None:
            values[PRIORITY] = np.full(count, priorities.newest, np.float32)
        return values

    def _end(self, stream: int, row: int) -> None:
        """Mark the end of an episode that is only cut off."""
        self._ring.add_flag(stream, row, LAST)
        self._weigh(stream, row, 1)

    def _weigh(self, stream: int, start: int, length: int) -> None:
        """Let draws know of rows that are new or changed."""
        if self._draws.priorities is not None:
            first = max(start, int(self._ring.oldest[stream]))
            self._draws.priorities.refresh(stream, np.arange(first, start + length))

    def _column(self, name: str) -> Column:
        if name not in self.columns:
            known = ", ".join(sorted(self.columns)) or "none"
            raise ValueError(f"This replay stores no column '{name}'. Stored: {known}.")
        return self.columns[name]

    def _column_fields(self, names: Iterable[str]) -> list[str]:
        return [COLUMN + name for name in names if self._column(name)]
