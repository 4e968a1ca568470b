"""Arrays without a known name that may be a reward, an end or an episode's number: when to ask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from worldmodel.replay.datasets.recording import DatasetError
from worldmodel.replay.datasets.vocabulary import LOOKS, looks_like

FLAGS = ("terminated", "truncated", "done", "is_last", "goes_on")
ENDS = {*FLAGS, "is_first", "episode"}
NEEDS = {"reward": {"reward"}, "done": ENDS, "episode": ENDS}  # what makes a question needless
# Which end a name that looks like one speaks of, by a part of it.
SPEAKS = (("trunc", "truncated"), ("time", "truncated"), ("termin", "terminated"))


def check_looks(where: str, arrays: Mapping[str, np.ndarray], out: Mapping[str, str],
                roles: Mapping[str, np.ndarray], given: Mapping[str, Any]) -> None:  # fmt: skip
    """Ask where the only reward, end or number of the episode has a name of its own, or where it
    marks ends that nothing else does. out: why arrays are not used. Raises DatasetError."""
    for name, why in out.items():
        look = next((x for x in LOOKS if why == looks_like(x[0])), None)
        if look is None or look[1] not in NEEDS or look[1] in given:
            continue
        value = arrays[name]
        one = value.ndim == 1 or (value.ndim == 2 and value.shape[1] == 1)
        same = len(value) < 2 or len(np.unique(value)) < 2
        if same and value.size in (1, len(roles.get("action", ()))):
            continue  # it tells nothing apart
        known = NEEDS[look[1]] & set(roles)
        if not one or (known and not (look[1] == "done" and _ends_more(value, roles))):
            continue
        role = next(
            (r for word, r in SPEAKS if look[1] == "done" and word in name.lower()), look[1]
        )
        how = "marks rows that no other flag does" if known else "nothing else does"
        raise DatasetError(
            f"{where}: '{name}' looks like {look[0]}, and {how}. Say it: "
            f"offline_names={{{role}: {name}}}, or {{{look[1]}: null}} where it is none."
        )


def check_columns(
    where: str, columns: Iterable[tuple[str, np.ndarray]], roles: Mapping[str, np.ndarray]
) -> None:
    """Ask where nothing says how episodes end, and a column of a few ones among zeros, the last of
    them in the last row, would be observed. Raises DatasetError."""
    if ENDS & set(roles):
        return
    for name, value in columns:
        one = 0 < value.size == len(value) == len(roles.get("action", ()))
        if one and _is_flag(value) and np.ravel(value)[-1] and 2 * np.sum(value) < len(value):
            raise DatasetError(
                f"{where}: '{name}' holds zeros, and ones where episodes may end, and nothing else "
                f"says where they do. Say it: offline_names={{done: {name}}}, or {{done: null}} "
                "where it is an observation."
            )


def _is_flag(value: np.ndarray) -> bool:
    return bool(np.isin(value, (0, 1)).all())


def _ends_more(value: np.ndarray, roles: Mapping[str, np.ndarray]) -> bool:
    """Whether flags [T] mark rows but the last that nothing known marks as ends."""
    marks = np.ravel(value)
    ends = np.zeros(len(marks), bool)
    for role, flags in roles.items():
        known = np.ravel(flags)
        if role not in ENDS or len(known) != len(marks):
            continue
        if role == "episode":
            ends[:-1] |= known[1:] != known[:-1]
        elif role == "is_first":
            ends[:-1] |= known[1:] != 0
        else:
            ends |= (known == 0) if role == "goes_on" else (known != 0)
    return _is_flag(marks) and bool((marks.astype(bool) & ~ends)[:-1].any())
