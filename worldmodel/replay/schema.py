"""What one replay row holds, and the check of every row that comes in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldmodel.types import Column, EnvSpec

FIRST, LAST, TERMINAL, STORED = 1, 2, 4, 8  # bits of a row's "flags"; STORED: it has its columns
FLAGS = {"is_first": FIRST, "is_last": LAST, "is_terminal": TERMINAL}
ROW = "row"  # the absolute number of the row in a slot, or -1 while it is being written
PRIORITY = "priority"  # how often the row is drawn; a field only where draws have priorities
OBS, COLUMN = "obs.", "column."  # how the fields of observations and columns begin


class Field(NamedTuple):
    """One array of a row: its shape and element type, and whether it may change later."""

    shape: tuple[int, ...]
    dtype: np.dtype
    changes: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes per row."""
        return math.prod(self.shape) * self.dtype.itemsize


class Schema:
    """The fields of a row. Observations are named "obs.<key>" and columns "column.<name>", so that
    no key can collide.

    Raises ValueError for names that are taken or not clear, and for impossible columns.
    """

    def __init__(
        self, spec: EnvSpec, columns: Mapping[str, Column], priorities: bool = False
    ) -> None:
        self.spec, self.columns = spec, dict(columns)
        reserved = {"action", "reward", *FLAGS}
        for what, names in (("Observation", reserved), ("Column", {*reserved, *spec.obs})):
            taken = names & set(spec.obs if what == "Observation" else columns)
            if taken:
                raise ValueError(f"{what} keys {sorted(taken)} are reserved; rename them.")
        float32, byte = np.dtype(np.float32), np.dtype(np.uint8)
        self.fields = {
            f"obs.{key}": Field(obs.shape, byte if obs.kind == "image" else float32)
            for key, obs in spec.obs.items()
        }
        self.fields["action"] = Field((spec.action.size,), float32)
        self.fields["reward"] = Field((), float32)
        self.fields["flags"] = Field((), byte, changes=True)
        for name, column in self.columns.items():
            dtype = np.dtype(column.dtype)
            if dtype.kind not in "fiub" or dtype.name != column.dtype:
                raise ValueError(
                    f"Column '{name}' is of type '{column.dtype}'; allowed are NumPy's names of "
                    "numbers: float16, float32, uint8, int32, bool and so on."
                )
            self.fields[COLUMN + name] = Field(tuple(column.shape), dtype, column.rewritable)
        if priorities:
            self.fields[PRIORITY] = Field((), float32, changes=True)
        self.fields[ROW] = Field((), np.dtype(np.int64))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, all fields together."""
        return sum(field.nbytes for field in self.fields.values())

    def signature(self) -> dict[str, Any]:
        """What two replays must share to read each other's files, as JSON holds it."""
        columns = {k: {**asdict(c), "shape": list(c.shape)} for k, c in self.columns.items()}
        return {
            "fields": {k: [list(f.shape), f.dtype.str] for k, f in self.fields.items()},
            "action": {"kind": self.spec.action.kind, "sizes": list(self.spec.action.sizes)},
            "columns": columns,
        }

    def pack(self, rows: Mapping[str, Any], num: int) -> dict[str, np.ndarray]:
        """Rows as they come, [N, ...] per key -> arrays by field name; raises ValueError for
        wrong names, shapes or types and for values that are not finite."""
        stored = any(name in rows for name in self.columns)
        expected = {*self.spec.obs, "action", "reward", *FLAGS, *(self.columns if stored else ())}
        if set(rows) != expected:
            raise ValueError(
                f"Rows have the keys {sorted(rows)}; expected {sorted(expected)}, and all of the "
                f"columns {sorted(self.columns)} or none."
            )
        values = {
            f"obs.{key}": _checked(key, rows[key], (num,), self.fields[f"obs.{key}"])
            for key in self.spec.obs
        }
        for name in ("action", "reward"):
            values[name] = _checked(name, rows[name], (num,), self.fields[name])
        flags = np.zeros(num, np.uint8)
        for name, bit in FLAGS.items():
            given = _checked(name, rows[name], (num,), Field((), np.dtype(bool)))
            flags |= np.where(given, bit, 0).astype(np.uint8)
        if np.any(flags & (LAST | TERMINAL) == TERMINAL):
            raise ValueError("A row is terminal but not last: is_terminal needs is_last.")
        if stored:
            values |= self.pack_columns({name: rows[name] for name in self.columns}, (num,))
            flags |= STORED
        values["flags"] = flags
        return values

    def pack_columns(
        self, values: Mapping[str, Any], lead: tuple[int, ...]
    ) -> dict[str, np.ndarray]:
        """Values of columns [*lead, ...], on any device, as arrays by field name; raises ValueError
        for unknown names and for values that cannot be theirs."""
        packed = {}
        for name, value in values.items():
            array = _checked(name, value, lead, self.fields[COLUMN + name])
            below = self.columns[name].below
            if below is not None and array.max(initial=0) >= below:
                raise ValueError(f"'{name}' has values of {array.max()}; allowed: below {below}.")
            packed[COLUMN + name] = array
        return packed


def finite(array: np.ndarray) -> np.ndarray:
    """Which numbers are finite, bool [...]; NumPy is slow to tell for float16."""
    if array.dtype == np.float16:
        return (array.view(np.uint16) & 0x7C00) != 0x7C00
    return np.isfinite(array)


def _checked(name: str, value: Any, lead: tuple[int, ...], field: Field) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.float() if value.dtype is torch.bfloat16 else value  # unknown to NumPy
    array = np.asarray(value)
    shape = (*lead, *field.shape)
    if array.shape != shape:
        raise ValueError(f"'{name}' has shape {list(array.shape)}; expected {list(shape)}.")
    real = field.dtype.kind == "f"
    if not real and array.dtype != field.dtype:
        raise ValueError(f"'{name}' is {array.dtype}; expected {field.dtype}.")
    if array.dtype != field.dtype:
        with np.errstate(over="ignore"):  # what the type cannot hold is refused below
            array = array.astype(field.dtype)
    if real and not (sound := finite(array)).all():
        raise ValueError(f"'{name}' has values that are not finite: {array[~sound]}.")
    return array
