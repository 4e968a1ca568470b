"""`what=env`: how many frames a second environments give, alone and several together."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from agents.base import random_actions
from agents.run.cli import CONFIGS, register
from agents.run.config import TrainConfig
from scripts.studies.bench_timing import rate, rounded
from worldmodel import config
from worldmodel.compose import compose_config
from worldmodel.config import check_ranges
from worldmodel.envs import EnvConfig, EnvError, env_spec, make_vector

ENVS = ("pendulum", "cartpole", "dmc", "dmc+env.fast_render=true", "atari", "dyna_maze")


@dataclass
class Settings:
    """envs: of configs/env, each with what follows a "+": "dmc+env.fast_render=true". num_envs:
    that step together in a vector. seconds: of one window, and windows: whose median counts."""

    envs: list[str] = field(default_factory=lambda: list(ENVS))
    num_envs: int = 4
    windows: int = 5
    seconds: float = 1.0

    def __post_init__(self) -> None:
        check_ranges(self, {"num_envs": (1, 1024), "windows": (1, 1e6), "seconds": (1e-3, 1e6)})


def measure(settings: Settings) -> Iterator[Mapping[str, Any]]:
    """For each environment one figure alone, one for several one after another in this process
    (sync) and one for a process each (async): agent steps and frames per second, all together.
    Random actions are taken, and observations made as an agent gets them."""
    register()
    for name in settings.envs:
        kind, *words = name.split("+")
        words = ["experiment=none", f"env={kind}", *words]
        env = config.build(compose_config(CONFIGS, "train", words), TrainConfig).env
        several = settings.num_envs
        for vector, count in (("sync", 1), ("sync", several), ("async", several)):
            about = {"figure": "env", "env": name, "id": env.id, "vector": vector, "envs": count}
            try:
                yield {**about, **_stepped(replace(env, vector=vector), count, settings)}
            except EnvError as error:
                yield {**about, "left_out": str(error)}


def _stepped(env: EnvConfig, count: int, settings: Settings) -> dict[str, Any]:
    """Steps per second of `count` environments together, and what they look like."""
    began, rng = time.perf_counter(), np.random.default_rng(0)
    envs = make_vector(env, count, seed=0)
    try:
        spec = env_spec(envs)
        obs, _ = envs.reset()
        start = time.perf_counter() - began

        def step() -> None:
            nonlocal obs
            obs, *_ = envs.step(spec.action.decode(random_actions(spec, obs, count, rng)))

        rate(step, settings.seconds)  # warms up
        rates = [count * rate(step, settings.seconds) for _ in range(settings.windows)]
    finally:
        envs.close()
    return {
        "steps_per_s": rounded(float(np.median(rates))),
        "frames_per_s": rounded(float(np.median(rates)) * env.action_repeat),
        "best_window_frames_per_s": rounded(max(rates) * env.action_repeat),
        "action_repeat": env.action_repeat,
        "start_s": rounded(start),
        "observations": {key: list(one.shape) for key, one in spec.obs.items()},
    }
