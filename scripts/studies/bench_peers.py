"""`what=peers`: DQN and SAC beside those of stable-baselines3, with the same hyperparameters.

For every seed both train on the same task, one after the other in this process, with as many steps,
updates, threads and weights; then both play the same evaluation episodes without exploring. What
differs: in our SAC, weights begin Glorot uniform, and the three losses share a step.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import DQN, SAC

import agents
from agents.run.cli import CONFIGS, register
from agents.run.config import TrainConfig
from agents.run.evaluate import evaluate
from agents.run.trainer import Trainer
from scripts.studies.bench import check_known
from scripts.studies.bench_timing import Window, rounded, timed
from worldmodel import seeding
from worldmodel.compose import compose_config
from worldmodel.config import build
from worldmodel.types import EnvSpec

PEERS = ("dqn", "sac")


@dataclass
class Settings:
    """agents: dqn, sac. seeds: one run of each library for each. episodes: of each evaluation.
    set: more settings of our runs, which the others follow."""

    agents: list[str] = field(default_factory=lambda: list(PEERS))
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    episodes: int = 20
    set: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_known("agent", self.agents, PEERS)


def measure(settings: Settings) -> Iterator[Mapping[str, Any]]:
    """One figure for each agent, library and seed, and one for each agent and library."""
    for name in settings.agents:
        rows: dict[str, list[dict[str, Any]]] = {"ours": [], "stable-baselines3": []}
        for seed in settings.seeds:
            with tempfile.TemporaryDirectory() as folder:
                words = [f"seed={seed}", f"run={Path(folder) / 'run'}", *settings.set]
                config = compose(name, words)
                spec, ours = train_ours(config, settings.episodes)
            theirs = train_theirs(name, config, spec, settings.episodes)
            for library, row in (("ours", ours), ("stable-baselines3", theirs)):
                rows[library].append(row)
                yield {"figure": "run", "agent": name, "library": library, "seed": seed, **row}
        for library, all_seeds in rows.items():
            means = {key: rounded(np.mean([row[key] for row in all_seeds])) for key in all_seeds[0]}
            yield {"figure": "mean", "agent": name, "library": library, **means}


def compose(name: str, words: list[str]) -> TrainConfig:
    """The settings of a run of ours on the CPU, without evaluations on the way."""
    register()
    words = [f"agent={name}", "experiment=none", "device=cpu", "eval_every=0", *words]
    return build(compose_config(CONFIGS, "train", words), TrainConfig)


def train_ours(config: TrainConfig, episodes: int) -> tuple[EnvSpec, dict[str, Any]]:
    """A run of ours: the spec of its task, and its return and times."""
    trainer = Trainer(config, lambda text: None)
    try:
        spent = timed(time.perf_counter, trainer.run)
    finally:
        trainer.close()
    policy = agents.load(config.folder, "cpu")
    return policy.spec, score(policy.agent, config, policy.spec, episodes, spent)


def train_theirs(name: str, config: TrainConfig, spec: EnvSpec, episodes: int) -> dict[str, Any]:
    """stable-baselines3 with the hyperparameters of a run of ours: its return and times."""
    c, updates = config.agent, config.train_ratio / config.agent.batch_size  # of each step
    every = max(1, round(1 / updates))
    options: dict[str, Any] = {
        "learning_rate": c.optim.lr, "buffer_size": int(config.replay.capacity),
        "learning_starts": config.prefill, "batch_size": c.batch_size, "gamma": c.discount,
        "train_freq": every, "gradient_steps": round(updates * every), "seed": config.seed,
        "policy_kwargs": {"net_arch": [c.units] * c.layers}, "device": "cpu",
    }  # fmt: skip
    env = gymnasium.make(config.env.id)
    model: Any
    if name == "dqn":
        model = DQN(
            "MlpPolicy", env, n_steps=c.n_step, max_grad_norm=c.optim.clip,
            target_update_interval=round(c.target_every / updates),
            exploration_fraction=c.epsilon_steps / config.steps,
            exploration_initial_eps=c.epsilon_start, exploration_final_eps=c.epsilon_end, **options,
        )  # fmt: skip
    else:
        model = SAC("MlpPolicy", env, tau=c.target_rate, **options)
    torch.set_num_threads(config.threads)
    spent = timed(time.perf_counter, lambda: model.learn(config.steps))
    high = env.action_space.high if isinstance(env.action_space, gymnasium.spaces.Box) else None
    return score(Theirs(model, spec, high), config, spec, episodes, spent)


class Theirs:
    """A model of stable-baselines3, as `evaluate` asks an agent. high: of continuous actions."""

    def __init__(self, model: Any, spec: EnvSpec, high: np.ndarray | None) -> None:
        self.model, self.spec, self.high = model, spec, high

    def initial(self, batch_size: int) -> None:
        return None

    def act(self, obs: Mapping[str, Any], state: Any, mode: str) -> tuple[np.ndarray, None, Any]:
        native, _ = self.model.predict(obs[next(iter(self.spec.obs))], deterministic=True)
        return (
            self.spec.action.encode(native if self.high is None else native / self.high),
            None,
            {},
        )


def score(
    agent: Any, config: TrainConfig, spec: EnvSpec, episodes: int, spent: Window
) -> dict[str, Any]:
    """The mean return of evaluation episodes and its deviation between them, beside the times."""
    seed = seeding.spawn(config.seed, "evaluation")
    result = evaluate(agent, spec, config.env, episodes, seed, config.eval_envs)
    return {
        "return": rounded(result.mean),
        "std": rounded(result.std),
        "train_s": rounded(spent.wall),
        "train_cpu_s": rounded(spent.cpu),
    }
