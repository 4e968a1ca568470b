"""`what=overlap`: what it saves to do updates while environments step, each in its own process.

Two runs of an experiment are trained in turns, one with `overlap` and one without, in environments
whose step takes so many milliseconds: waiting, as for a simulator elsewhere, or computing, which
needs a core that is free.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from agents.run.config import TrainConfig
from scripts.studies import bench_subject
from scripts.studies.bench_timing import Clock, rounded, summary, timed
from worldmodel.config import check_ranges
from worldmodel.envs import EnvConfig

EPISODE = 200  # steps
WARM = 2  # updates before anything is timed


@dataclass
class Settings(bench_subject.Subject):
    """milliseconds: of one step of an environment. waits: whether it waits, or computes.
    ratio: replayed rows for each agent step; null: as the experiment says. windows: whose medians
    count, each of so many steps of all environments, in turns."""

    experiment: str = "pendulum"
    milliseconds: float = 20.0
    waits: bool = True
    num_envs: int = 1
    ratio: float | None = None
    windows: int = 5
    steps: int = 40

    def __post_init__(self) -> None:
        check_ranges(self, {
            "milliseconds": (0, 1e4), "num_envs": (1, 1024), "windows": (1, 1e6), "steps": (1, 1e6),
        })  # fmt: skip


class SlowEnv(gymnasium.Env[Any, Any]):
    """Random images and no reward; a step takes its time."""

    def __init__(self, milliseconds: float, waits: bool, size: int) -> None:
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self._seconds, self._waits, self._count = milliseconds / 1e3, waits, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._count = 0
        return self._image(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._waits:
            time.sleep(self._seconds)
        else:
            until = time.process_time() + self._seconds
            while time.process_time() < until:
                pass
        self._count += 1
        return self._image(), 0.0, False, self._count >= EPISODE, {}

    def _image(self) -> np.ndarray:
        shape = self.observation_space.shape
        return self.np_random.integers(0, 256, shape, dtype=np.uint8)


def measure(settings: Settings) -> Iterator[Mapping[str, Any]]:
    """One figure: seconds of one step of all environments with the updates that it earns, with
    and without overlap."""
    with tempfile.TemporaryDirectory() as folder:
        configs = [
            _config(settings, Path(folder) / str(overlap), overlap) for overlap in (False, True)
        ]
        with bench_subject.trainings(*configs) as runs:
            for trainer, step in runs:
                while trainer.state.counters.updates < WARM:
                    step()
            windows = [
                [timed(Clock(trainer.device), step, settings.steps) for trainer, step in runs]
                for _ in range(settings.windows)
            ]
    without, beside = (summary(found) for found in zip(*windows, strict=True))
    yield {
        "figure": "overlap",
        "without": without,
        "with": beside,
        "speed_up": rounded(without["seconds"] / beside["seconds"]),
        "speed_up_quickest": rounded(without["quickest_s"] / beside["quickest_s"]),
    }


def _config(settings: Settings, folder: Path, overlap: bool) -> TrainConfig:
    config = bench_subject.compose(settings)
    side = config.env.image_size[0]
    slow = {"milliseconds": settings.milliseconds, "waits": settings.waits, "size": side}
    env = EnvConfig(
        id=f"{__name__}:SlowEnv", kwargs=slow, image_size=[side, side],
        num_envs=settings.num_envs, vector="async",
    )  # fmt: skip
    return replace(
        bench_subject.endless(config, folder), checkpoint_minutes=1e9, env=env, overlap=overlap,
        prefill=config.agent.batch_size * config.agent.batch_length,
        train_ratio=config.train_ratio if settings.ratio is None else settings.ratio,
    )  # fmt: skip
