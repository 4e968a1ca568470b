"""The commands behind scripts/: settings in, exit code out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig

import agents
from agents.run import report
from agents.run.config import TrainConfig
from agents.run.evaluate import evaluate, frames_of
from agents.run.train import train
from worldmodel import config
from worldmodel.accel.ranks import launched_first
from worldmodel.compose import launch, store
from worldmodel.envs.config import MOST_ENVS, EnvConfig
from worldmodel.log import write_video
from worldmodel.words import for_hydra, texts

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
GROUP = "agent"
MOST_EPISODES = 1_000_000


def register(words: Sequence[str] = ()) -> None:
    """Tell Hydra which settings exist: TrainConfig, and those of each agent, which the files of
    configs/agent build on as `/schema: NAME`.

    words: of the command line; "agent=module:Class" adds a user's own agent.
    """
    store("train_schema", TrainConfig)
    for name in agents.AGENTS:
        store(name, agents.agent_class(name).Config, "schema", GROUP)
    given = [word.partition("=")[2] for word in words if word.startswith(f"{GROUP}=")]
    for name in (name for names in given for name in names.split(",") if ":" in name):
        store(name, agents.agent_class(name).Config, GROUP)


def complete_words(words: Sequence[str]) -> list[str]:
    """The words of a command with its two short forms written out.

    `agent=NAME` leaves out the default experiment, which is of the default agent; and a setting
    that only the named agent has needs no "agent." before it: `agent=dyna_q n=50`.
    """
    given = dict(word.split("=", 1) for word in words if "=" in word)
    if GROUP not in given:
        return list(words)
    own: set[str] = set()
    if given[GROUP] in agents.AGENTS:
        own = {field.name for field in fields(agents.agent_class(given[GROUP]).Config)}
        own -= {path.name for path in CONFIGS.iterdir()} | {f.name for f in fields(TrainConfig)}
    done = [f"{GROUP}.{word}" if word.split("=", 1)[0] in own else word for word in words]
    return done if "experiment" in given else [*done, "experiment=none"]


def train_command(say: Callable[[str], None], arguments: Sequence[str]) -> int:
    """Train as the command line says; under torchrun as one of its ranks."""
    wrong = say if launched_first() else lambda text: None  # all ranks read the same words

    def start() -> int:
        words = complete_words(arguments)
        register(words)
        known = texts(TrainConfig)
        return launch(job, CONFIGS, "train", for_hydra(words, known, _sweeps(words)), wrong)

    def job(composed: DictConfig) -> int:
        def go() -> int:
            settings = config.build(composed, TrainConfig)
            return config.guarded(lambda: train(settings, say), say)

        return config.guarded(go, wrong)

    return config.guarded(start, wrong)


def _sweeps(words: Sequence[str]) -> bool:
    return "-m" in words or "--multirun" in words


@dataclass
class EvaluateConfig:
    """Which run to play, and how."""

    run: str = MISSING  # run folder
    episodes: int = 20
    seed: int = 0  # of the evaluation's environments
    mode: str = "mode"  # mode: the likeliest action | sample: as while training
    num_envs: int = 10  # environments that play at the same time
    # Settings of the environment that are others than in training: env.time_limit=300, say, or
    # another level, env.kwargs.level=2. What it observes and takes must stay the same.
    env: dict[str, Any] = field(default_factory=dict)
    device: str = "auto"

    def __post_init__(self) -> None:
        ranges = {"episodes": (1, MOST_EPISODES), "num_envs": (1, MOST_ENVS), "seed": (0, 2**63)}
        config.check_ranges(self, ranges)


def evaluate_command(say: Callable[[str], None], arguments: Sequence[str]) -> int:
    """Play whole episodes with the agent of a run folder; returns and a video go to its
    `evaluation` folder."""
    return config.guarded(lambda: _evaluate(arguments, say), say)


def _evaluate(words: Sequence[str], say: Callable[[str], None]) -> int:
    settings = config.from_cli(EvaluateConfig, words)
    try:
        policy = agents.load(settings.run, settings.device)
        changes = [word.removeprefix("env.") for word in words if word.startswith("env.")]
        env = config.from_cli(EnvConfig, changes, like=policy.env)
        about = (policy.agent, policy.spec, env)
        many = (settings.episodes, settings.seed, settings.num_envs)
        result = evaluate(*about, *many, settings.mode, record=True)
    except ValueError as error:
        raise config.ConfigError(str(error)) from error
    folder = Path(settings.run) / "evaluation"
    asked = {"task": env.id, "mode": settings.mode, "seed": settings.seed, "env": settings.env}
    report.write_returns(folder, result, asked)
    frames = frames_of(result, policy.agent, policy.spec, env, settings.seed)
    if frames:
        write_video(folder / "episode.mp4", frames)
    say(result.line())
    say(f"returns and video: {os.fspath(folder)}")
    return 0
