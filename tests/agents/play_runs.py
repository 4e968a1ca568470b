"""Small worlds to step into: an untrained Dreamer, with or without a replay or a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from agents.apps.episodes import Episodes
from agents.apps.play.session import Session
from agents.apps.play.world import World
from agents.base import Policy
from agents.dreamer import Dreamer, DreamerConfig
from agents.run.collect import Collector
from agents.run.config import TrainConfig
from agents.run.train import train
from tests.model_batches import scramble, tiny
from worldmodel.envs import EnvConfig, env_spec, make_env, make_vector
from worldmodel.replay import Replay, ReplayConfig

CPU = torch.device("cpu")


def counting(**kwargs: Any) -> EnvConfig:
    """An environment that counts its steps, from its picture alone."""
    known = {"pixels": True, "image_size": [32, 32], "keys": ["image"]}
    return EnvConfig(id="tests.envs_for_tests:CountingEnv", kwargs=kwargs, **known)  # type: ignore[arg-type]


def left_right(**kwargs: Any) -> EnvConfig:
    """A square on the left or right: random, and the same for the same seed."""
    return EnvConfig(id="tests.envs_for_tests:LeftRightEnv", kwargs=kwargs, image_size=[32, 32])


def policy(env: EnvConfig) -> Policy:
    """An untrained agent whose every head says something."""
    made = make_env(env)
    spec = env_spec(made)
    made.close()
    torch.manual_seed(0)
    agent = Dreamer(spec, DreamerConfig(model=tiny()), CPU)
    scramble(agent.module, scale=0.3)
    return Policy(agent, spec, env, CPU)


def recorded(agent: Policy, steps: int) -> Episodes:
    """The experience of `steps` steps of one environment."""
    envs = make_vector(agent.env, 1, seed=0)
    replay = Replay(agent.spec, ReplayConfig(capacity=500), 1, agent.agent.columns)
    collector = Collector(envs, agent.spec, agent.agent, 0)
    for _ in range(steps):
        collector.step(replay)
    envs.close()
    return Episodes(replay, replay.episodes(complete=True) or None)


def session(env: EnvConfig, steps: int = 0, seed: int = 0) -> Session:
    """A walk that has not begun; with a replay of `steps` steps."""
    made = policy(env)
    return Session(World(made), recorded(made, steps) if steps else None, seed)


def run_folder(folder: Path, env: EnvConfig, agent: Any = None) -> Path:
    """A run of a few steps, with config, checkpoint and replay."""
    tiny_dreamer = DreamerConfig(
        batch_size=2, batch_length=4, horizon=2, imagination_starts=1, model=tiny()
    )
    settings = TrainConfig(
        run=str(folder),
        steps=50,
        train_ratio=0.2,
        log_every=25,
        eval_every=0,
        video_every=0,
        final_episodes=1,
        device="cpu",
        env=env,
        replay=ReplayConfig(capacity=500),
        agent=agent or tiny_dreamer,
    )
    assert train(settings, lambda text: None) == 0
    return folder
