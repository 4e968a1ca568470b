"""A tiny run of a counting environment, its rewards, and a replay made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from agents.dreamer import DreamerConfig
from agents.run.config import TrainConfig
from agents.run.train import train
from worldmodel.envs import EnvConfig
from worldmodel.replay import Replay, ReplayConfig
from worldmodel.rssm import ModelConfig
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec

HERE = "tests.agents.rewards_run"
LENGTH = 8  # steps of an episode: rows 0 to 8
TINY = DreamerConfig(
    batch_size=2,
    batch_length=6,
    horizon=3,
    model=ModelConfig(deter=16, hidden=8, groups=2, classes=4, depth=8, units=8, mults=[1, 1, 1]),
)


def make_run(folder: Path, **changes: Any) -> Path:
    """Train for moments: pictures that tell episode and step; `count` recorded, unseen."""
    config = TrainConfig(
        run=str(folder),
        steps=70,
        train_ratio=2.0,
        log_every=1000,
        eval_every=0,
        video_every=0,
        final_episodes=1,
        device="cpu",
        threads=1,
        env=EnvConfig(
            "tests.envs_for_tests:CountingEnv",
            image_size=[32, 32],
            keys=["image"],
            record=["count"],
            kwargs={"length": LENGTH, "actions": "box", "end": "truncated"},
        ),
        replay=ReplayConfig(capacity=500),
        agent=TINY,
        **changes,
    )
    assert train(config, lambda text: None) == 0
    return folder


def replay_of(lengths: list[int], spec: EnvSpec | None = None) -> Replay:
    """Episodes of so many rows; `x` holds (episode, step), the action (episode, step) / 100."""
    spec = spec or EnvSpec({"x": ObsSpec("vector", (2,))}, ActionSpec("continuous", (2,)))
    replay = Replay(spec, ReplayConfig(capacity=1000), 1)
    for episode, length in enumerate(lengths):
        for step in range(length):
            where = np.array([[episode, step]], np.float32)
            row: dict[str, Any] = {
                "x": where,
                "action": where / 100 if step else 0 * where,
                "reward": np.array([float(step)], np.float32),
                "is_first": np.array([step == 0]),
                "is_last": np.array([step == length - 1]),
                "is_terminal": np.array([step == length - 1]),
            }
            replay.add(row)
    return replay


def step_of(obs: Any, action: Any, next_obs: Any, info: Any) -> float:
    return float(next_obs["count"][1])


def bright(obs: Any, action: Any, next_obs: Any, info: Any) -> float:
    """The step, read off the picture."""
    return float(next_obs["image"][0, 0, 1])


def effort(obs: Any, action: Any, next_obs: Any, info: Any) -> float:
    return float(np.square(action).sum())


def never(obs: Any, action: Any, next_obs: Any, info: Any) -> float:
    return 0.5


def once(obs: Any, action: Any, next_obs: Any, info: Any) -> float:
    return float(info["episode"] == 2 and info["step"] == 3)


def raises(obs: Any, action: Any, next_obs: Any, info: Any) -> float:
    if (info["episode"], info["step"]) == (1, 4):
        raise RuntimeError("no such luck")
    return 0.0


def absent(obs: Any, action: Any, next_obs: Any, info: Any) -> float:
    return float(obs["speed"])


def pair(obs: Any, action: Any, next_obs: Any, info: Any) -> Any:
    return np.ones(2)


def nan(obs: Any, action: Any, next_obs: Any, info: Any) -> float:
    return float("nan") if info["step"] == 5 else 1.0
