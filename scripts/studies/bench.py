"""Measurements: `scripts/bench.py what=...` prints one JSON line for each figure.

A measure is a module with a dataclass `Settings` and `measure(settings)`, which yields figures.
Timings are medians over windows after a warm-up; figures that are compared are taken in one run.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from agents.run.report import code_version, versions
from worldmodel import config

# name -> module; a module is imported only when its name is asked for.
MEASURES: dict[str, str] = {
    "act": "scripts.studies.bench_act",
    "deploy": "scripts.studies.bench_deploy",
    "dyna": "scripts.studies.bench_dyna",
    "env": "scripts.studies.bench_env",
    "faults": "scripts.studies.bench_faults",
    "guard": "scripts.studies.bench_guard",
    "memory": "scripts.studies.bench_memory",
    "ood": "scripts.studies.bench_ood",
    "overlap": "scripts.studies.bench_overlap",
    "play": "scripts.studies.bench_play",
    "replay": "scripts.studies.bench_replay",
    "reuse": "scripts.studies.bench_reuse",
    "scaling": "scripts.studies.bench_scaling",
    "train": "scripts.studies.bench_train",
    "update": "scripts.studies.bench_update",
}


def bench_command(say: Callable[[str], None], arguments: Sequence[str]) -> int:
    """Measure what the words ask for; the process's exit code."""
    return config.guarded(lambda: _bench(list(arguments), say), say)


def _bench(words: list[str], say: Callable[[str], None]) -> int:
    asked = [word.partition("=")[2] for word in words if word.startswith("what=")]
    if len(asked) != 1:
        raise config.ConfigError(
            f"Say what to measure: what=NAME, once. Known: {', '.join(sorted(MEASURES))}."
        )
    if asked[0] not in MEASURES:
        raise config.ConfigError(config.unknown("measure", asked[0], MEASURES))
    module: Any = importlib.import_module(MEASURES[asked[0]])
    rest = [word for word in words if not word.startswith("what=")]
    settings = config.from_cli(module.Settings, rest)
    figures: Iterator[Mapping[str, Any]] = module.measure(settings)
    about = {"what": asked[0], **machine(), "settings": config.keys_of(settings)}
    for figure in figures:
        say(json.dumps({**figure, **about}))
    return 0


def machine() -> dict[str, Any]:
    """What a figure depends on beside the code: versions, cores, threads, device."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "code": code_version(),
    }
