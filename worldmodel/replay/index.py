"""What a saved replay's files mean: the small index, its checksum, and its strict reading.

The same words, less the checksums of the rows, are the state that a checkpoint holds. All of it
may come from outside, so that every value is checked before anything is done with it.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from worldmodel.replay import disk
from worldmodel.replay.schema import COLUMN, PRIORITY, Field, Schema
from worldmodel.types import ActionSpec, Column, EnvSpec, ObsSpec

INDEX = "index.json"
VERSION = 3
BLOCK = 256  # rows of one field under one checksum
LONGEST = 1 << 28  # bytes of an index that are worth reading
SIGNATURE = ("fields", "action", "columns", "environments", "rows per environment")


class ReplayDamaged(ValueError):
    """Files do not hold the replay that is asked for; an older checkpoint may still find its."""


def file_name(field: str, stream: int) -> str:
    """The file of one field of one stream; observation names may hold any character."""
    return f"{quote(field, safe='')}.{stream:04d}.bin"


def blocks(rows: int) -> int:
    """How many checksums cover the first rows of a file."""
    return -(-rows // BLOCK)


@dataclass(frozen=True)
class Index:
    """One state of a replay. `signature`: what replays must share to read each other's files.

    series: one per folder that was begun anew. generation: grows by one with every save on top
    of another. token: names this save alone. sums: CRC-32 of every block, by file name; None in
    a checkpoint's state, as are spec and storage.
    """

    signature: dict[str, Any]
    series: str
    generation: int
    token: str
    count: list[int]
    floor: list[int]
    cursor: list[int]
    rng: dict[str, Any]
    spec: EnvSpec | None = None
    storage: str | None = None
    sums: dict[str, np.ndarray] | None = None

    @property
    def streams(self) -> int:
        """How many environments were recorded."""
        return int(self.signature["environments"])

    @property
    def rows(self) -> int:
        """Rows that fit, per stream."""
        return int(self.signature["rows per environment"])

    @property
    def filled(self) -> list[int]:
        """Slots in use, per stream."""
        return [min(count, self.rows) for count in self.count]

    @property
    def columns(self) -> dict[str, Column]:
        """What is stored beside the rows."""
        saved = self.signature["columns"].items()
        return {k: Column(**{**about, "shape": tuple(about["shape"])}) for k, about in saved}

    @property
    def fields(self) -> dict[str, Field]:
        """What a row holds."""
        assert self.spec is not None
        return Schema(self.spec, self.columns, self.prioritized).fields

    @property
    def prioritized(self) -> bool:
        """Whether rows have priorities."""
        return PRIORITY in self.signature["fields"]

    def state(self) -> dict[str, Any]:
        """For a checkpoint: numbers, strings, lists and dicts only."""
        return {
            "version": VERSION,
            "signature": self.signature,
            "series": self.series,
            "generation": self.generation,
            "token": self.token,
            "count": list(self.count),
            "floor": list(self.floor),
            "cursor": list(self.cursor),
            "rng": self.rng,
        }

    def to_json(self) -> dict[str, Any]:
        """Everything, with a checksum over itself."""
        assert self.spec is not None
        assert self.sums is not None
        sums = {name: array.astype("<u4").tobytes().hex() for name, array in self.sums.items()}
        about = {"spec": asdict(self.spec), "storage": self.storage, "block": BLOCK}
        value = {**self.state(), **about, "sums": sums}
        return json.loads(json.dumps({**value, "crc": _crc(value)}))

    @classmethod
    def from_json(cls, value: Any) -> Index:
        """What `to_json` gave; raises ValueError where anything of it is not as it must be."""
        _check_version(value)
        if _get(value, "crc") != _crc({k: v for k, v in value.items() if k != "crc"}):
            raise ValueError("its checksum is wrong")
        state = cls.from_state(value)
        spec = _spec(_get(value, "spec"))
        schema = Schema(spec, state.columns, state.prioritized)
        if schema.signature() != {k: state.signature[k] for k in SIGNATURE[:3]}:
            raise ValueError("its fields are not those of its spec")
        if _get(value, "block") != BLOCK or _get(value, "storage") not in ("memory", "disk"):
            raise ValueError("its block or storage is unknown")
        sums = _sums(_get(value, "sums"), list(schema.fields), state.filled)
        return cls(**{**vars(state), "spec": spec, "storage": value["storage"], "sums": sums})

    @classmethod
    def from_state(cls, value: Any) -> Index:
        """What `state` gave; raises ValueError where anything of it is not as it must be."""
        _check_version(value)
        signature = _get(value, "signature")
        tokens = _get(value, "series"), _get(value, "token")
        if not all(isinstance(t, str) and len(t) == 16 for t in tokens):
            raise ValueError("series or token is not 16 letters")
        generation = _integer(_get(value, "generation"), "generation", 0)
        return cls(signature, tokens[0], generation, tokens[1], **_counters(signature, value))


def read_index(folder: Path) -> Index:
    """The index of a folder.

    Raises FileNotFoundError where there is none, and ReplayDamaged where it cannot be believed.
    """
    path = folder / INDEX
    if not path.exists() and not path.is_symlink():
        raise FileNotFoundError(f"No saved replay at {folder}: {INDEX} is missing.")
    try:
        with disk.open_file(path) as file:
            length = disk.size(file)
            if length > LONGEST:
                raise ValueError(f"it has {length:,} bytes")
            text = bytearray(length)
            disk.read(file, text, 0)
        return parse(bytes(text), Index.from_json)
    except ValueError as error:
        raise ReplayDamaged(
            f"{path} is damaged ({error}). Nothing says what the files beside it hold: put back "
            "a copy of the folder, or begin a new run."
        ) from error


def parse(text: bytes, reader: Callable[[Any], Index]) -> Index:
    """JSON text through a strict reader; whatever is wrong with it becomes a ValueError."""
    try:
        return reader(json.loads(text))
    except ValueError:
        raise
    except (TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"it is no replay index: {error!r:.100}") from error


def _crc(value: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _get(value: Any, key: str) -> Any:
    if not isinstance(value, dict) or key not in value:
        raise ValueError(f"'{key}' is missing")
    return value[key]


def _integer(value: Any, what: str, low: int, high: int = 1 << 60) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{what} is not a whole number from {low} to {high}")
    return value


def _integers(value: Any, what: str, low: int, highs: list[int]) -> list[int]:
    if not isinstance(value, list) or len(value) != len(highs):
        raise ValueError(f"{what} is not a list of {len(highs)} numbers")
    return [_integer(n, what, low, high) for n, high in zip(value, highs, strict=True)]


def _counters(signature: Any, value: dict[str, Any]) -> dict[str, Any]:
    """What changes from save to save, within the bounds that the signature sets."""
    if not isinstance(signature, dict) or set(signature) != set(SIGNATURE):
        raise ValueError(f"its signature does not hold {', '.join(SIGNATURE)}")
    streams = _integer(signature["environments"], "environments", 1, 1 << 16)
    _integer(signature["rows per environment"], "rows per environment", 2, 1 << 48)
    _check_columns(signature["columns"])
    if not isinstance(signature["fields"], dict):
        raise ValueError("its fields are not a table")
    count = _integers(_get(value, "count"), "count", 0, [1 << 60] * streams)
    floor = _integers(_get(value, "floor"), "floor", 0, count)
    cursor = _integers(_get(value, "cursor"), "cursor", 0, count)
    rng = _rng(_get(value, "rng"))
    return {"count": count, "floor": floor, "cursor": cursor, "rng": rng}


def _rng(value: Any) -> dict[str, Any]:
    inner = _get(value, "state")
    if _get(value, "bit_generator") != "PCG64":
        raise ValueError("its random generator is not PCG64")
    return {
        "bit_generator": "PCG64",
        "state": {k: _integer(_get(inner, k), k, 0, (1 << 128) - 1) for k in ("state", "inc")},
        "has_uint32": _integer(_get(value, "has_uint32"), "has_uint32", 0, 1),
        "uinteger": _integer(_get(value, "uinteger"), "uinteger", 0, (1 << 32) - 1),
    }


def _check_version(value: Any) -> None:
    version = _get(value, "version")
    if type(version) is not int or version != VERSION:
        raise ValueError(f"its version is {version!r:.20}, not {VERSION}")


def _check_columns(value: Any) -> None:
    if not isinstance(value, dict):
        raise ValueError("its columns are not a table")
    for name, about in value.items():
        if not isinstance(about, dict) or set(about) != {f.name for f in fields(Column)}:
            raise ValueError(f"column {name!r:.40} is not described as it must be")
        shape, dtype, below = about["shape"], about["dtype"], about["below"]
        _check_shape(f"column {name!r:.40}", shape, len(shape) if isinstance(shape, list) else 0)
        types = type(dtype), type(about["rewritable"]), type(below)
        if types[:2] != (str, bool) or types[2] not in (int, type(None)):
            raise ValueError(f"column {name!r:.40} is not described as it must be")
        _check_name(COLUMN + name)


def _check_shape(what: str, shape: Any, axes: int) -> tuple[int, ...]:
    lengths = tuple(_integers(shape, "shape", 1, [1 << 31] * axes))
    if axes > 8 or math.prod(lengths) > 1 << 40:
        raise ValueError(f"{what} is impossibly large")
    return lengths


def _check_name(field: str) -> None:
    if len(file_name(field, 0)) > 255:
        raise ValueError(f"{field!r:.40} is too long a name")


def _spec(value: Any) -> EnvSpec:
    given = _get(value, "obs")
    if not isinstance(given, dict):
        raise ValueError("its observations are not a table")
    obs = {}
    for key, entry in given.items():
        kind, lengths = _get(entry, "kind"), {"image": 3, "vector": 1, "discrete": 1, "recorded": 1}
        if kind not in lengths:
            raise ValueError(f"observation {key!r:.40} is of an unknown kind")
        _check_name(f"obs.{key}")
        shape = _check_shape(f"observation {key!r:.40}", _get(entry, "shape"), lengths[kind])
        obs[key] = ObsSpec(kind, shape, _sizes(entry))
    action = _get(value, "action")
    if _get(action, "kind") not in ("continuous", "discrete"):
        raise ValueError("its actions are of an unknown kind")
    return EnvSpec(obs, ActionSpec(action["kind"], _sizes(action)))


def _sizes(value: Any) -> tuple[int, ...]:
    sizes = _get(value, "sizes")
    if not isinstance(sizes, list):
        raise ValueError("sizes is not a list")
    if len(sizes) > 1 << 20:
        raise ValueError("sizes has too many entries")
    return tuple(_integers(sizes, "sizes", 1, [1 << 20] * len(sizes)))


def _sums(value: Any, fields: list[str], filled: list[int]) -> dict[str, np.ndarray]:
    if not isinstance(value, dict) or len(value) != len(fields) * len(filled):
        raise ValueError("its checksums are not those of its files")
    sums = {}
    for stream, rows in enumerate(filled):
        for name in (file_name(field, stream) for field in fields):
            text = _get(value, name)
            if not isinstance(text, str) or len(text) != 8 * blocks(rows):
                raise ValueError(f"{name:.80} has not the checksums of {rows:,} rows")
            sums[name] = np.frombuffer(bytes.fromhex(text), "<u4").astype(np.uint32)
            if len(sums[name]) != blocks(rows):  # there were spaces in it
                raise ValueError(f"the checksums of {name:.80} are no hexadecimal numbers")
    return sums
