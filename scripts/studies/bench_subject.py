"""What the measures of speed measure: an experiment's agent, and random experience."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import agents
from agents.run.cli import CONFIGS, complete_words, register
from agents.run.config import TrainConfig
from agents.run.progress import Progress, Stopper
from agents.run.train import build
from agents.run.trainer import Trainer
from worldmodel import config, seeding
from worldmodel.accel.devices import keep_freed_memory, pick_device, set_deterministic, set_threads
from worldmodel.compose import compose_config
from worldmodel.envs import env_spec, make_env
from worldmodel.replay import Replay, ReplayConfig
from worldmodel.types import ActionSpec, Column, EnvSpec, ObsSpec

ACTIONS = 6  # of the environment that is made up where no experiment names one: a walker's
EPISODE = 200  # rows of an episode that is made up
FILLED = 4096  # rows of made-up experience, at least


@dataclass
class Subject:
    """experiment: of configs/experiment, or an agent of configs/agent; "none" is the paper's agent
    at `size`, for an image and 6 continuous actions. What is null stays as the experiment says
    (paper: 1m, 64 pixels, batches of 16 x 64, horizon 15, imagination from all states). set: more
    settings, as 'set=[agent.model.deter=1024]'. threads: 0 leaves torch's choice."""

    experiment: str = "none"
    size: str | None = None
    batch: int | None = None
    length: int | None = None
    image: int | None = None
    horizon: int | None = None
    imagination_starts: int | None = None
    precision: str | None = None
    device: str = "auto"
    threads: int = 1
    set: list[str] = field(default_factory=list)


class Made(NamedTuple):
    """A subject, ready: its agent, the settings and the specification behind it, its device."""

    agent: Any
    settings: TrainConfig
    spec: EnvSpec
    device: torch.device


def compose(subject: Subject) -> TrainConfig:
    """The settings of a training run of the subject. Raises ConfigError for impossible ones."""
    made_up = subject.experiment == "none"
    choice = "agent" if subject.experiment in agents.AGENTS else "experiment"
    words = complete_words([f"{choice}={subject.experiment}"])
    if made_up:
        words += ["env=dmc", f"size={subject.size or '1m'}"]
    elif subject.size is not None:
        words.append(f"size={subject.size}")
    given = {
        "agent.batch_size": subject.batch,
        "agent.batch_length": subject.length,
        "agent.horizon": subject.horizon,
        "agent.imagination_starts": subject.imagination_starts,
        "agent.precision": subject.precision,
        "env.image_size": subject.image and [subject.image, subject.image],
    }
    words += [f"{key}={value}" for key, value in given.items() if value is not None]
    words += [f"device={subject.device}", f"threads={subject.threads}", *subject.set]
    register()
    return config.build(compose_config(CONFIGS, "train", words), TrainConfig)


def endless(config: TrainConfig, folder: Path | str) -> TrainConfig:
    """The same run in a folder, without an end, evaluations and films."""
    return replace(
        config, run=str(folder), steps=1 << 40, max_minutes=None, eval_every=0, video_every=0
    )


@contextlib.contextmanager
def trainings(*configs: TrainConfig) -> Iterator[list[tuple[Trainer, Callable[[], None]]]]:
    """Trainers, each with a function that takes one step of its loop; it raises RunError once
    somebody has asked for a stop."""
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(Stopper())
        found: list[tuple[Trainer, Callable[[], None]]] = []
        for config in configs:
            trainer = build(config, lambda text: None)
            stack.callback(trainer.close)
            bar = Progress(config.steps, (0, 0), None, lambda text: None)
            found.append((trainer, partial(_step, trainer, bar, stop)))
        yield found


def _step(trainer: Trainer, bar: Progress, stop: Stopper) -> None:
    trainer.one_step(bar, stop)
    if stop.asked:
        raise config.RunError("Stopped before the measurement was done.")


def make(subject: Subject) -> Made:
    """The agent with fresh weights, on its device; threads and memory are set as in training."""
    settings = compose(subject)
    set_threads(settings.threads)
    set_deterministic(settings.deterministic)
    keep_freed_memory()
    seeding.seed_everything(0)
    try:
        device = pick_device(settings.device)
        spec = _spec(subject, settings)
        agent = agents.make(settings.agent.name, spec, settings.agent, device)
    except config.ConfigError:
        raise
    except ValueError as error:
        raise config.ConfigError(str(error)) from error
    return Made(agent, settings, spec, device)


def _spec(subject: Subject, settings: TrainConfig) -> EnvSpec:
    """What the experiment's environment shows, or the one that is made up."""
    if subject.experiment == "none":
        height, width = settings.env.image_size
        image = ObsSpec("image", (height, width, 3))
        return EnvSpec({"image": image}, ActionSpec("continuous", (ACTIONS,)))
    env = make_env(settings.env)
    try:
        return env_spec(env)
    finally:
        env.close()


def observations(spec: EnvSpec, batch: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random observations [B, ...] of every key; one-hot keys and masks hold ones."""
    out = {}
    for key, obs in spec.obs.items():
        shape = (batch, *obs.shape)
        if obs.kind == "image":
            out[key] = rng.integers(0, 256, shape, np.uint8)
        elif obs.kind == "vector" and key != "action_mask":
            out[key] = rng.standard_normal(shape, np.float32)
        else:
            out[key] = np.ones(shape, np.float32)
    return out


def rows(
    spec: EnvSpec, columns: Mapping[str, Column], envs: int, at: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Row number `at` of made-up experience in every environment, as `Replay.add` takes it."""
    place = np.full(envs, at % EPISODE)
    actions = rng.uniform(-1, 1, (envs, spec.action.size)).astype(np.float32)
    found: dict[str, Any] = {
        **observations(spec, envs, rng),
        "action": actions,
        "reward": rng.standard_normal(envs).astype(np.float32),
        "is_first": place == 0,
        "is_last": place == EPISODE - 1,
        "is_terminal": np.zeros(envs, bool),
    }
    for name, column in columns.items():
        found[name] = np.zeros((envs, *column.shape), column.dtype)
    return found


def filled_replay(made: Made) -> Replay:
    """A replay in memory with random experience, enough for the agent's batches to differ."""
    agent = made.agent
    count = max(FILLED, 2 * agent.batch_size * agent.batch_length)
    replay = Replay(made.spec, ReplayConfig(capacity=count), 1, agent.columns)
    rng = np.random.default_rng(0)
    for at in range(count):
        replay.add(rows(made.spec, replay.columns, 1, at, rng))
    return replay
