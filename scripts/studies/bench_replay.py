"""`what=replay`: how fast the replay takes rows in and hands batches out, beside a plain copy.

Nothing can hand out bytes faster than memory gives them, so that the bandwidth of a plain copy is
measured in turn with the batches, by the same threads.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from scripts.studies import bench_subject
from scripts.studies.bench_timing import in_own_process, rate, resident, rounded, timed
from worldmodel.accel.devices import keep_freed_memory, set_threads
from worldmodel.config import check_ranges
from worldmodel.replay import Replay, ReplayConfig
from worldmodel.types import ActionSpec, Column, EnvSpec, ObsSpec

# Dreamer's, of the paper's size 1m.
COLUMNS = {"memory": Column((512,), "float16"), "classes": Column((32,), "uint8", below=4)}
BOUND = 0.5  # of a copy's bandwidth, from which on memory is what binds


@dataclass
class Settings:
    """image: side of an RGB image. envs: streams. capacity: rows, which should be many times what
    a processor's cache holds. batch, length: of one draw. seconds: of one window. folder: for the
    mapped files; empty: the system's for temporary files."""

    image: int = 64
    envs: int = 1
    capacity: int = 40_000
    batch: int = 16
    length: int = 64
    windows: int = 7
    seconds: float = 0.3
    threads: int = 1
    folder: str = ""

    def __post_init__(self) -> None:
        check_ranges(self, {
            "image": (1, 1024), "envs": (1, 1024), "capacity": (2, 1e9), "batch": (1, 65536),
            "length": (1, 65536), "windows": (1, 1e6), "seconds": (1e-4, 1e6), "threads": (0, 1024),
        })  # fmt: skip


def measure(settings: Settings) -> Iterator[Mapping[str, Any]]:
    """One figure for the replay in memory and one for mapped files that the page cache holds."""
    yield in_own_process(_measured, settings, "memory", None)
    with tempfile.TemporaryDirectory(dir=settings.folder or None) as folder:
        yield in_own_process(_measured, settings, "disk", folder)


def _measured(settings: Settings, storage: str, folder: str | None) -> dict[str, Any]:
    set_threads(settings.threads)
    keep_freed_memory()
    before = resident()
    side = settings.image
    spec = EnvSpec({"image": ObsSpec("image", (side, side, 3))}, ActionSpec("continuous", (6,)))
    config = ReplayConfig(capacity=settings.capacity, storage=storage)
    replay = Replay(spec, config, settings.envs, COLUMNS, directory=folder)
    adds = _fill(replay)
    if folder is not None:
        replay.save(folder)
        replay.commit()  # what is read from now on lies in the files, and in the page cache
    index = replay.sample(settings.batch, settings.length).index
    lead = (settings.batch, settings.length)
    fresh = {name: np.zeros((*lead, *c.shape), c.dtype) for name, c in COLUMNS.items()}
    big = torch.ones(max(1 << 20, replay.capacity * side * side * 3 // 2), dtype=torch.uint8)
    other = torch.zeros_like(big)

    def sample() -> None:
        replay.sample(settings.batch, settings.length, online=False, context=COLUMNS)

    rates: dict[str, list[float]] = {"copy": [], "sample": [], "write": []}
    for _ in range(settings.windows + 1):  # the first one warms up
        rates["copy"].append(rate(lambda: other.copy_(big), settings.seconds) * len(big))
        rates["sample"].append(rate(sample, settings.seconds))
        rates["write"].append(rate(lambda: replay.rewrite(index, fresh), settings.seconds))
    copy, batches, writes = (statistics.median(found[1:]) for found in rates.values())
    steps, bytes_each = settings.batch * settings.length, _handed_out(replay)
    share = batches * steps * bytes_each / copy
    return {
        "figure": "replay",
        "storage": storage,
        "sampled_steps_per_s": rounded(batches * steps),
        "best_window_steps_per_s": rounded(max(rates["sample"][1:]) * steps),
        "sampled_gb_per_s": rounded(batches * steps * bytes_each / 1e9),
        "copy_gb_per_s": rounded(copy / 1e9),
        "best_window_copy_gb_per_s": rounded(max(rates["copy"][1:]) / 1e9),
        "of_a_copy": rounded(share),
        "binds": "memory bandwidth" if share >= BOUND else "not memory",
        "batch_ms": rounded(1e3 / batches),
        "rewritten_steps_per_s": rounded(writes * steps),
        "adds_per_s": rounded(adds),
        "rows": len(replay),
        "row_bytes": replay.row_bytes,
        "full_mb": rounded(replay.capacity * replay.row_bytes / 1e6),
        "resident_mb": rounded((resident() - before - 2 * len(big)) / 1e6),
    }


def _fill(replay: Replay) -> float:
    """Rows per second that went in, until it is full."""
    rng = np.random.default_rng(0)
    row = bench_subject.rows(replay.spec, replay.columns, replay.num_envs, 1, rng)
    add = partial(replay.add, row)
    count = replay.capacity // replay.num_envs
    return replay.num_envs / timed(time.perf_counter, add, count).wall


def _handed_out(replay: Replay) -> int:
    """Bytes of one row that a draw copies."""
    beside = sum(math.prod(c.shape) * np.dtype(c.dtype).itemsize for c in COLUMNS.values())
    return replay.row_bytes - beside - 8  # less columns and row number
