"""Measurements: `scripts/bench.py what=...` prints one JSON line for each figure.

A measure is a module with a dataclass `Settings` and `measure(settings)`, which yields figures.
Timings are medians over windows after a warm-up; figures that are compared are taken in one run.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from agents.run.report import code_version, versions
from worldmodel import config, progress
from worldmodel.entry import HELP
from worldmodel.envs.shifts import shift_named
from worldmodel.machine import processor

# Each is scripts.studies.bench_NAME, imported only when its name is asked for.
MEASURES = (
    "act", "deploy", "dyna", "env", "faults", "guard", "memory", "ood", "overlap", "peers",
    "planners", "plans", "play", "precision", "preferences", "replay", "reuse", "scaling", "search",
    "tdmpc2", "train", "update", "world_models",
)  # fmt: skip


def bench_command(say: Callable[[str], None], arguments: Sequence[str]) -> int:
    """Measure what the words ask for; the process's exit code."""

    def work() -> int:
        name, rest = split_choice("what", arguments, MEASURES)
        module: Any = importlib.import_module(f"scripts.studies.bench_{name}")
        settings = config.from_cli(module.Settings, rest)
        about = {"what": name, **machine(), "settings": config.keys_of(settings)}
        with progress.step(f"measuring {name}"):
            for figure in module.measure(settings):
                say(json.dumps({**figure, **about}))
        return 0

    return config.guarded(work, say)


def split_choice(key: str, words: Sequence[str], known: Iterable[str]) -> tuple[str, list[str]]:
    """The value of `key=value`, which must stand there once, and all other words. Raises
    ConfigError, and HelpAsked where help is asked for without it."""
    chosen = [word.partition("=")[2] for word in words if word.startswith(f"{key}=")]
    if not chosen and any(word in HELP for word in words):
        names = ", ".join(sorted(known))
        raise config.HelpAsked(
            f"Give {key}=NAME; with --help beside it, its settings. Known: {names}."
        )
    if len(chosen) != 1:
        raise config.ConfigError(f"Give {key}=NAME, once. Known: {', '.join(sorted(known))}.")
    if chosen[0] not in known:
        raise config.ConfigError(config.unknown(key, chosen[0], known))
    return chosen[0], [word for word in words if not word.startswith(f"{key}=")]


def check_known(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    """ConfigError, with the nearest name, unless all names are known."""
    for name in names:
        if name not in known:
            raise config.ConfigError(config.unknown(kind, name, known))


def check_shifts(names: Iterable[str]) -> None:
    """ConfigError, with the nearest name, unless all are shifts, of the catalogue or a user's."""
    for name in names:
        shift_named(name)


def machine() -> dict[str, Any]:
    """What a figure depends on beside the code: versions, cores, threads, device."""
    cpu, cores = processor()
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpu": cpu,
        "cores": cores,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "code": code_version(),
    }
