"""Small runs, whose folders are then damaged."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.dreamer import DreamerConfig
from agents.run.config import TrainConfig
from agents.run.trainer import Trainer
from tests.agents.counting_agent import ENV
from worldmodel.envs import EnvConfig
from worldmodel.replay import ReplayConfig
from worldmodel.rssm import ModelConfig

TINY = DreamerConfig(
    batch_size=2,
    batch_length=4,
    horizon=2,
    actor_layers=1,
    critic_layers=1,
    model=ModelConfig(
        deter=8, hidden=4, groups=2, classes=3, depth=2, units=4, blocks=2, layers=1, mults=[1, 1]
    ),
)


@dataclass
class DreamerRun(TrainConfig):
    """As the command line makes it: with the settings of one agent."""

    agent: DreamerConfig = field(default_factory=DreamerConfig)


def settings(folder: Path, agent: Any) -> TrainConfig:
    """Twelve steps in two environments that count."""
    return TrainConfig(
        run=str(folder),
        steps=12,
        train_ratio=2.0,
        log_every=4,
        eval_every=0,
        video_every=0,
        final_episodes=1,
        eval_envs=1,
        device="cpu",
        threads=1,
        env=EnvConfig(id=ENV, kwargs={"length": 5}, state=True, image_size=[32, 32], num_envs=2),
        replay=ReplayConfig(capacity=60),
        agent=agent,
    )


def make(folder: Path, agent: Any) -> TrainConfig:
    """A run folder with a checkpoint, a replay, metrics and a config."""
    chosen = settings(folder, agent)
    trainer = Trainer(chosen, lambda text: None)
    trainer.run()
    trainer.close()
    return chosen


def copy(run: Path, to: Path) -> Path:
    """A fresh copy of a run folder."""
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(run, to))
