"""What a run's checkpoint says of the run, checked before any of it is believed.

The bytes of a checkpoint may be whole and still be nonsense: written by hand, by another version,
or by somebody who means harm. Agent, replay and environments check their own parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from agents.run.collect import told
from agents.run.config import Counters
from worldmodel import checkpoint

MOST = 1 << 62  # of anything that is counted
MAY_BE_NONE = ("replay", "collector", "log")  # in the first format, and where nothing is collected
GENERATOR = 624  # words of Python's and NumPy's global generators


def check_saved(saved: Mapping[str, Any], where: Path) -> None:
    """CheckpointError, which names the part, unless counters, metrics, logs' ends and generators
    are what a run writes. What the first format lacked is None or absent."""
    parts = {
        "counters": _counters, "means": _means, "scores": _means, "log": _log, "rng": _rng,
        "collector": _collector,
    }  # fmt: skip
    for name in ("agent", "counters", "rng", "replay", "collector", "log"):
        with checkpoint.understood(name, where):
            if name not in saved or (saved[name] is None and name not in MAY_BE_NONE):
                raise ValueError("it is missing")
    for name, check in parts.items():
        if name in saved and (saved[name] is not None or name not in MAY_BE_NONE):
            with checkpoint.understood(name, where):
                check(saved[name])


def _counters(value: Any) -> None:
    kinds = {field.name: field.type for field in fields(Counters)}
    for name, number in value.items():
        if name not in kinds:
            raise ValueError(f"'{name}' is not counted")
        if kinds[name] == "int":
            _whole(number, name)
        else:
            _number(number, name)


def _means(value: Any) -> None:
    if value["sums"].keys() != value["counts"].keys():
        raise ValueError("sums and counts are of different metrics")
    for name, total in value["sums"].items():
        if not (isinstance(total, Tensor) and total.numel() == 1 and not total.is_complex()):
            _number(total, name, finite=False)
        _whole(value["counts"][name], name, least=1)


def _log(value: Any) -> None:
    for name, size in value.items():
        _whole(size, str(name))


def _rng(value: Any) -> None:
    """NumPy takes any position in its words, and reads beyond them."""
    numpy = value["numpy"]
    key = numpy["key"]
    if not isinstance(key, Tensor) or tuple(key.shape) != (GENERATOR,) or key.dtype.is_complex:
        raise ValueError(f"numpy.key is {told(key)}")
    _whole(numpy["pos"], "numpy.pos", most=GENERATOR)
    _whole(numpy["has_gauss"], "numpy.has_gauss", most=1)
    _number(numpy["gauss"], "numpy.gauss")
    version, words, _ = value["python"]
    if version != 3 or len(words) != GENERATOR + 1:
        raise ValueError("python is no state of a generator")
    if not isinstance(value["torch"], Tensor) or not isinstance(value["cuda"], list):
        raise ValueError("torch or cuda is no state of a generator")


def _collector(value: Any) -> None:
    for name in ("envs", "rows", "agent", "rng", "returns", "lengths", "steps"):
        if name not in value:
            raise ValueError(f"'{name}' is missing")
    _whole(value["steps"], "steps")
    for env in value["envs"]:
        for name in ("seed", "episode"):
            _whole(env[name], name)
        _whole(env.get("failures", 0), "failures")
        _number(env["reward"], "reward")
        for step in env["resets"]:
            _whole(step, "resets")
        actions = env["actions"]
        if isinstance(actions, Tensor) and not actions.is_complex():
            actions = actions.numpy()
        if np.asarray(actions).dtype.kind not in "iuf":
            raise ValueError(f"actions are {told(actions)}")
        if type(env["terminated"]) is not bool or type(env["truncated"]) is not bool:
            raise ValueError("terminated or truncated is no flag")


def _whole(value: Any, name: str, least: int = 0, most: int = MOST) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is {told(value)}, not a whole number from {least} to {most}")


def _number(value: Any, name: str, finite: bool = True) -> None:
    if type(value) not in (int, float) or (finite and not abs(value) < 1e18):  # a NaN fails too
        raise ValueError(f"{name} is {told(value)}, not a number")
