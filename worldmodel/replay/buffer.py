"""Replay: rows of several environments in, sequences out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel.replay.files import Saver
from worldmodel.replay.latents import LatentSpec
from worldmodel.replay.ring import ROW, Ring
from worldmodel.replay.schema import FIRST, FLAGS, LAST, LATENT, Schema
from worldmodel.types import Batch, EnvSpec, LatentState

# Sequences per environment that may wait in the online queue; older ones are left to chance.
BACKLOG = 16
INTERNAL = (ROW, "deter", "stoch")  # fields that are not rows of a batch


@dataclass
class ReplayConfig:
    """What replay keeps and how it hands it out."""

    capacity: float = 5e6  # environment steps kept, over all environments together
    capacity_gb: float | None = None  # 1e9 bytes kept; when given, it decides the capacity
    storage: str = "memory"  # memory, or disk: memory-mapped files in the directory
    directory: str | None = None  # folder for storage=disk, unless the caller names one
    online: bool = True  # hand out every environment's newest sequences first, each once
    latents: bool = True  # keep latent states and start sequences from them


@dataclass(frozen=True)
class RowIndex:
    """Where the rows of a batch lie: stream [B], absolute number of the first row [B], and T."""

    stream: np.ndarray
    start: np.ndarray
    length: int


class Replay:
    """One ring of consecutive rows per environment (a stream); draws are uniform over every
    possible start of a sequence. Not safe to use from several threads at once.

    spec: what rows hold. num_envs: N, how many streams. latent: sizes of the latent states, or
    None where the model has none to store. seed: of its own random generator. directory: for
    storage=disk, before the one in the config.

    Raises ValueError for impossible settings and where memory or disk is too small.
    """

    def __init__(
        self,
        spec: EnvSpec,
        config: ReplayConfig,
        num_envs: int,
        latent: LatentSpec | None = None,
        seed: int = 0,
        directory: str | Path | None = None,
    ) -> None:
        self.spec, self.config, self.num_envs = spec, config, num_envs
        self.latent = latent if config.latents else None
        self._rng = np.random.default_rng(seed)
        self._schema = Schema(spec, self.latent)
        rows = _rows_per_env(config, self._schema.row_bytes, num_envs)
        self._ring = Ring(self._schema.fields, num_envs, rows, _place(config, directory))
        self._cursor = np.zeros(num_envs, np.int64)  # first row the online queue has not handed out
        self._saver = Saver(self._ring, self._schema.signature())

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
            f"{full / 1e9:.3g} GB ({self.config.storage}; {used / 1e9:.3g} GB used now)"
        )

    def add(self, rows: Mapping[str, Any], env_ids: Any = None) -> None:
        """Append one row to every stream, or to the streams env_ids [N'] only.

        rows: every observation key [N, ...], action [N, A], reward [N], is_first, is_last,
        is_terminal [N]; and, as a pair or not at all, deter [N, D] and stoch [N, S, K]: the
        latent state after the row was seen. An episode that a first row interrupts is marked as
        cut off (is_last) at its newest row.

        Raises ValueError for wrong names, shapes or types and for values that are not finite.
        """
        self._saver.check_loaded()
        ids = np.arange(self.num_envs) if env_ids is None else np.asarray(env_ids, np.int64)
        if len(np.unique(ids)) != len(ids) or np.any((ids < 0) | (ids >= self.num_envs)):
            raise ValueError(f"env_ids {ids.tolist()} are not distinct and in [0, {self.num_envs})")
        values = self._schema.pack(rows, len(ids))
        for i, stream in enumerate(ids.tolist()):
            count = int(self._ring.count[stream])
            if values["flags"][i] & FIRST and count > self._ring.oldest[stream]:
                self._ring.add_flag(stream, count - 1, LAST)
            self._ring.append(stream, {name: value[i] for name, value in values.items()})

    def num_sequences(self, length: int) -> int:
        """How many different sequences of `length` rows can be drawn."""
        return int(self._starts(length).sum())

    def can_sample(self, length: int) -> bool:
        """Whether any stream holds `length` consecutive rows."""
        return self.num_sequences(length) > 0

    def sample(self, batch_size: int, length: int, online: bool = True) -> Batch:
        """Draw [B, T] rows on the CPU: waiting online sequences first, the rest uniform.

        A sequence is T consecutive rows of one stream and may cross episodes, always marked by
        is_first. context holds the state stored with the row before; where there is none it is
        zero and is_first[:, 0] is True (in the batch only). online=False leaves the queue alone,
        for reports. The queue is a cursor per stream, so T may differ from call to call: every
        row is handed out once, in pieces of the T then asked for.

        Raises ValueError while no stream holds T rows.
        """
        starts = self._starts(length)
        total = int(starts.sum())
        if batch_size < 1 or total < 1:
            raise ValueError(
                f"Cannot draw {batch_size} sequences of {length} rows: the fullest stream holds "
                f"{int(self._ring.filled.max())}. Add more rows first (see can_sample)."
            )
        index = np.empty((2, batch_size), np.int64)
        fresh = self._pop_online(batch_size, length) if online and self.config.online else []
        index[:, : len(fresh)] = np.asarray(fresh, np.int64).reshape(-1, 2).T
        draw = self._rng.integers(total, size=batch_size - len(fresh))
        edges = np.cumsum(starts)
        stream = np.searchsorted(edges, draw, side="right")
        index[0, len(fresh) :] = stream
        index[1, len(fresh) :] = self._ring.oldest[stream] + draw - (edges - starts)[stream]
        return self.gather(RowIndex(index[0], index[1], length))

    def gather(self, index: RowIndex) -> Batch:
        """The rows at an index, as `sample` returns them.

        Raises ValueError where rows are not, or no longer, held.
        """
        self._check_index(index)
        places = list(zip(index.stream.tolist(), index.start.tolist(), strict=True))
        tensors = {}
        for name, field in self._ring.fields.items():
            if name in INTERNAL:
                continue
            out = np.empty((len(places), index.length, *field.shape), field.dtype)
            for b, (stream, start) in enumerate(places):
                self._ring.read(name, stream, start, out[b])
            tensors[name] = torch.from_numpy(out)
        flags = tensors.pop("flags")
        context, known = self._context(places)
        is_first, is_last, is_terminal = ((flags & bit) != 0 for bit in FLAGS.values())
        is_first[:, 0] |= ~torch.from_numpy(known)
        obs = {key: tensors[f"obs.{key}"] for key in self.spec.obs}
        return Batch(
            obs,
            tensors["action"],
            tensors["reward"],
            is_first,
            is_last,
            is_terminal,
            context,
            index,
        )

    def write_latents(self, index: RowIndex, state: LatentState) -> None:
        """Store fresh states [B, T, ...] (any device) with the rows of a batch, except for rows
        overwritten since.

        Raises ValueError where replay stores no latents, and for wrong shapes.
        """
        if self.latent is None:
            raise ValueError("This replay stores no latents (config.latents, or no LatentSpec).")
        deter, stoch = self.latent.pack(state.deter, state.stoch)
        if deter.shape[:2] != (len(index.start), index.length):
            raise ValueError(
                f"States are {list(deter.shape[:2])} (batch, time), the index has "
                f"{[len(index.start), index.length]}."
            )
        ring, oldest = self._ring, self._ring.oldest.tolist()
        places = zip(index.stream.tolist(), index.start.tolist(), strict=True)
        for b, (stream, start) in enumerate(places):
            skip = max(0, oldest[stream] - start)
            if skip < index.length:
                ring.write("deter", stream, start + skip, deter[b, skip:])
                ring.write("stoch", stream, start + skip, stoch[b, skip:])
                ring.mark_latent(stream, start + skip, index.length - skip)

    def episodes(self, complete: bool = False) -> list[tuple[int, int, int]]:
        """Recorded episodes as (stream, start, stop), stop excluded, oldest first per stream.

        complete=True leaves out those whose first rows are overwritten or that still go on.
        """
        found = []
        for stream in range(self.num_envs):
            low, high = int(self._ring.oldest[stream]), int(self._ring.count[stream])
            flags = np.empty(high - low, np.uint8)
            self._ring.read("flags", stream, low, flags)
            starts = np.flatnonzero(flags & FIRST)
            edges = np.unique(np.concatenate([[0], starts, [len(flags)]]))
            for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
                if not complete or (flags[a] & FIRST and flags[b - 1] & LAST):
                    found.append((stream, low + a, low + b))
        return found

    def rows(self, stream: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """Copies of the rows start ... stop - 1 of one stream, [T, ...] per key: every
        observation key, action, reward and the three flags, as they were added.

        Raises ValueError where rows are not, or no longer, held.
        """
        self._check_index(RowIndex(np.array([stream]), np.array([start]), stop - start))
        out = {}
        for name, field in self._ring.fields.items():
            if name not in INTERNAL:
                values = np.empty((stop - start, *field.shape), field.dtype)
                self._ring.read(name, stream, start, values)
                out[name.removeprefix("obs.")] = values
        flags = out.pop("flags")
        return out | {name: (flags & bit) != 0 for name, bit in FLAGS.items()}

    def save(self, directory: str | Path) -> dict[str, Any]:
        """Write everything to a folder, so that a kill leaves either this save or the one before.

        Returns the state to store in a checkpoint (numbers, strings, lists and dicts only);
        `commit` follows once that checkpoint is written.
        """
        extra = {"cursor": self._cursor.tolist(), "rng": self._rng.bit_generator.state}
        self._saver.save(Path(directory), extra)
        return {"count": self._ring.count.tolist(), "floor": self._ring.floor.tolist(), **extra}

    def commit(self) -> None:
        """The checkpoint with the last `save`'s state is there: fold that save into the base
        files. Does nothing where there is nothing to fold; may be repeated."""

    def load(self, directory: str | Path, state: Mapping[str, Any] | None = None) -> None:
        """Restore what `save` wrote; draws then go on as if never interrupted.

        state: what that save returned, out of the checkpoint; None takes the newest save there.

        Raises ReplayDamaged where the files do not hold that state, ValueError where the saved
        replay differs (spec, latents, environments, capacity), FileNotFoundError where there is
        none.
        """
        extra = self._saver.load(Path(directory))
        self._cursor = np.asarray(extra["cursor"], np.int64)
        self._rng.bit_generator.state = extra["rng"]

    def disk_bytes(self, steps: int | None = None) -> int:
        """The most bytes that a folder with this replay can hold, after `steps` rows over all
        streams together, or when full: the base files, and a delta of the same size."""
        full = self.capacity
        rows = full if steps is None else min(full, steps + self.num_envs)
        base = full if self.config.storage == "disk" else rows
        return (base + rows) * self.row_bytes

    def _starts(self, length: int) -> np.ndarray:
        if length < 1:
            raise ValueError(f"A sequence has at least one row, not {length}.")
        return np.maximum(0, self._ring.filled - length + 1)

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

    def _context(self, places: list[tuple[int, int]]) -> tuple[LatentState | None, np.ndarray]:
        known = np.zeros(len(places), bool)
        if self.latent is None:
            return None, known
        deter = np.zeros((len(places), self.latent.deter), np.float16)
        stoch = np.zeros((len(places), self.latent.groups), self.latent.stoch_dtype)
        oldest = self._ring.oldest.tolist()
        for b, (stream, start) in enumerate(places):
            before = start - 1
            known[b] = before >= oldest[stream] and self._ring.flag(stream, before) & LATENT
            if known[b]:
                self._ring.read("deter", stream, before, deter[b : b + 1])
                self._ring.read("stoch", stream, before, stoch[b : b + 1])
        state = self.latent.unpack(deter, stoch)
        state.stoch[~torch.from_numpy(known)] = 0.0  # index 0 would decode to a one
        return state, known

    def _check_index(self, index: RowIndex) -> None:
        stream, start = index.stream, index.start
        inside = index.length >= 1 and bool(np.all((stream >= 0) & (stream < self.num_envs)))
        if not inside or np.any(
            (start < self._ring.oldest[stream]) | (start + index.length > self._ring.count[stream])
        ):
            raise ValueError(
                f"Rows {start.tolist()} + {index.length} of streams {stream.tolist()} are not "
                f"held; streams hold {self._ring.oldest.tolist()} to {self._ring.count.tolist()}."
            )


def _rows_per_env(config: ReplayConfig, row_bytes: int, num_envs: int) -> int:
    steps = config.capacity
    if config.capacity_gb is not None:
        steps = config.capacity_gb * 1e9 / row_bytes
    rows = int(steps) // num_envs if num_envs > 0 else 0
    if rows < 2:
        raise ValueError(
            f"A capacity of {steps:g} steps leaves {rows} rows for each of {num_envs} "
            "environments; at least 2 are needed."
        )
    return rows


def _place(config: ReplayConfig, directory: str | Path | None) -> Path | None:
    if config.storage not in ("memory", "disk"):
        raise ValueError(f"Unknown storage '{config.storage}'. Known: memory, disk.")
    if config.storage == "memory":
        return None
    place = directory or config.directory
    if place is None:
        raise ValueError("storage=disk needs a directory: pass one, or set config.directory.")
    return Path(place)
