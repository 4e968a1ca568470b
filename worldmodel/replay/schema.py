"""What one replay row holds, and the check of every row that comes in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from worldmodel.replay.latents import LatentSpec
from worldmodel.types import EnvSpec

FIRST, LAST, TERMINAL, LATENT = 1, 2, 4, 8  # bits of a row's "flags"
FLAGS = {"is_first": FIRST, "is_last": LAST, "is_terminal": TERMINAL}
ROW = "row"  # the absolute number of the row in a slot, or -1 while it is being written


class Field(NamedTuple):
    """One array of a row: its shape and element type."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes per row."""
        return math.prod(self.shape) * self.dtype.itemsize


class Schema:
    """The fields of a row. Observations are named "obs.<key>", so that no key can collide."""

    def __init__(self, spec: EnvSpec, latent: LatentSpec | None) -> None:
        self.spec, self.latent = spec, latent
        reserved = {"action", "reward", *FLAGS, "deter", "stoch"} & set(spec.obs)
        if reserved:
            raise ValueError(f"Observation keys {sorted(reserved)} are reserved; rename them.")
        float32 = np.dtype(np.float32)
        self.fields = {
            f"obs.{key}": Field(obs.shape, np.dtype(np.uint8) if obs.kind == "image" else float32)
            for key, obs in spec.obs.items()
        }
        self.fields["action"] = Field((spec.action.size,), float32)
        self.fields["reward"] = Field((), float32)
        self.fields["flags"] = Field((), np.dtype(np.uint8))
        if latent is not None:
            self.fields["deter"] = Field((latent.deter,), np.dtype(np.float16))
            self.fields["stoch"] = Field((latent.groups,), latent.stoch_dtype)
        self.fields[ROW] = Field((), np.dtype(np.int64))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, all fields together."""
        return sum(field.nbytes for field in self.fields.values())

    def signature(self) -> dict[str, Any]:
        """What two replays must share to read each other's files, as JSON holds it."""
        return {
            "fields": {k: [list(f.shape), f.dtype.str] for k, f in self.fields.items()},
            "action": {"kind": self.spec.action.kind, "sizes": list(self.spec.action.sizes)},
            "latent": None if self.latent is None else asdict(self.latent),
        }

    def pack(self, rows: Mapping[str, Any], num: int) -> dict[str, np.ndarray]:
        """Rows as they come, [N, ...] per key -> arrays by field name; raises ValueError for
        wrong names, shapes or types and for values that are not finite."""
        latent = self.latent is not None and ("deter" in rows or "stoch" in rows)
        expected = {*self.spec.obs, "action", "reward", *FLAGS, *(["deter", "stoch"] * latent)}
        if set(rows) != expected:
            raise ValueError(
                f"Rows have the keys {sorted(rows)}; expected {sorted(expected)}"
                f"{'' if self.latent else ' (this replay stores no latents)'}."
            )
        values = {
            f"obs.{key}": _checked(key, rows[key], num, self.fields[f"obs.{key}"])
            for key in self.spec.obs
        }
        for name in ("action", "reward"):
            values[name] = _checked(name, rows[name], num, self.fields[name])
        flags = np.zeros(num, np.uint8)
        for name, bit in FLAGS.items():
            given = _checked(name, rows[name], num, Field((), np.dtype(bool)))
            flags |= np.where(given, bit, 0).astype(np.uint8)
        if np.any(flags & (LAST | TERMINAL) == TERMINAL):
            raise ValueError("A row is terminal but not last: is_terminal needs is_last.")
        if latent and self.latent is not None:
            values["deter"], values["stoch"] = self.latent.pack(rows["deter"], rows["stoch"])
            if values["deter"].shape[:-1] != (num,):
                raise ValueError(f"deter is {list(values['deter'].shape)}; expected [{num}, D].")
            flags |= LATENT
        values["flags"] = flags
        return values


def _checked(name: str, value: Any, num: int, field: Field) -> np.ndarray:
    array = np.asarray(value)
    shape = (num, *field.shape)
    if array.shape != shape:
        raise ValueError(f"'{name}' has shape {list(array.shape)}; expected {list(shape)}.")
    exact = field.dtype != np.float32
    if exact and array.dtype != field.dtype:
        raise ValueError(f"'{name}' is {array.dtype}; expected {field.dtype}.")
    if array.dtype != field.dtype:
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused below
            array = array.astype(field.dtype)
    if not exact and not np.isfinite(array).all():
        raise ValueError(f"'{name}' has values that are not finite: {array[~np.isfinite(array)]}.")
    return array
