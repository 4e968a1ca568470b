"""`what=reuse`: one world model, several tasks, from the default pixel experiment.

    usual     the default experiment: model, replay and an agent for the usual reward
    explore   the same without any reward (experiment=explore)
    direct    an agent trained on each new reward itself, in the environment, from nothing
    random    uniformly random actions

Two rewards that no model saw (hang, spin) are fitted on the replay of `usual`, and an actor for
each is trained in dreams alone; the same from `explore`, there for the usual reward too; and the
usual task is learned once more from the recorded replay alone. Every figure is the mean return in
the real environment by the reward itself, and its share of the way from random to direct.

Parts that are finished in the folder are not done again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

import agents
from agents.apps.reuse import DreamConfig, dream_settings
from agents.apps.rewards.pipeline import FitConfig, fit_head
from agents.random import Random, RandomConfig
from agents.run import cli, report
from agents.run.config import TrainConfig
from agents.run.evaluate import evaluate
from agents.run.train import train
from scripts.studies.bench import check_known
from worldmodel import config, seeding
from worldmodel.compose import compose_config
from worldmodel.envs import EnvConfig, env_spec, make_env
from worldmodel.rssm.fitted import head_names

FUNCTIONS = Path(__file__).resolve().parents[2] / "docs" / "examples" / "pendulum_rewards.py"
NEW = ("hang", "spin")
PARTS = ("usual", "explore", "offline")


@dataclass
class Settings:
    """Where, which seeds, and which figures."""

    folder: str = "runs/reuse"
    seeds: list[int] = field(default_factory=lambda: [0])
    parts: list[str] = field(default_factory=lambda: list(PARTS))  # usual, explore, offline
    tasks: list[str] = field(default_factory=lambda: ["reward", *NEW])
    updates: int = 0  # of an actor in dreams, and of the offline run; 0: as the default experiment
    episodes: int = 20  # of each score

    def __post_init__(self) -> None:
        check_known("part", self.parts, PARTS)
        check_known("task", self.tasks, ("reward", *NEW))


def measure(settings: Settings) -> Iterator[Mapping[str, Any]]:
    """One figure for each source, task and seed."""
    for seed in settings.seeds:
        study = Study(settings, seed)
        for source in ("usual", "explore"):
            for task in settings.tasks:
                # The usual reward is no new task for a model that was trained on it.
                if source in settings.parts and (source, task) != ("usual", "reward"):
                    yield study.dreamt(source, task)
        if "offline" in settings.parts:
            yield study.offline()


class Study:
    """The runs of one seed, each made when it is first needed."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.folder = Path(settings.folder)

    def dreamt(self, source: str, task: str) -> Mapping[str, Any]:
        """An actor for a task, out of the dreams of a model that never saw its reward."""
        run = self.base(source)
        began = time.monotonic()
        if task != "reward" and task not in head_names(run):
            words = FitConfig(run=str(run), name=task, reward=f"{FUNCTIONS}:{task}")
            fit_head(words, quiet)
        fitting = time.monotonic() - began
        folder = self.folder / f"{source}-{task}-{self.seed}"
        asked = DreamConfig(str(run), {task: 1.0}, str(folder), self.settings.updates)
        finish(dream_settings(asked))
        figure = self.figure(source, task, folder, self.direct(task))
        return {**figure, "fit_seconds": round(fitting, 1)}

    def offline(self) -> Mapping[str, Any]:
        """The usual task, from the recorded replay alone."""
        folder = self.folder / f"offline-{self.seed}"
        settings = self.composed("pendulum", folder)
        recording = str(self.base("usual") / "replay")
        finish(replace(settings, offline=recording, updates=self.settings.updates))
        return self.figure("offline", "reward", folder, self.direct("reward"))

    def base(self, source: str) -> Path:
        """The run whose model is used again."""
        folder = self.folder / f"{source}-{self.seed}"
        finish(self.composed({"usual": "pendulum"}.get(source, source), folder))
        return folder

    def direct(self, task: str) -> Path:
        """The run that was trained on a task's own reward in the environment."""
        if task == "reward":
            return self.base("usual")
        folder = self.folder / f"direct-{task}-{self.seed}"
        settings = self.composed("pendulum", folder)
        finish(replace(settings, env=paid(settings.env, task)))
        return folder

    def composed(self, experiment: str, folder: Path) -> TrainConfig:
        """The settings of a ready experiment, without films and evaluations on the way."""
        cli.register()
        words = [f"experiment={experiment}", f"seed={self.seed}", "eval_every=0", "video_every=0"]
        found = compose_config(cli.CONFIGS, "train", words)
        made = config.build(found, TrainConfig)
        # Recorded for the rewards, which then need not read angles off pictures; no model sees it.
        return replace(made, run=str(folder), env=replace(made.env, record=["state"]))

    def figure(self, source: str, task: str, run: Path, direct: Path) -> dict[str, Any]:
        """A run's score, and the share of the way from random to direct that it came."""
        summary = report.read_summary(run)
        assert summary is not None
        score, reference = self.score(run, task), self.score(direct, task)
        chance = self.random(task)
        return {
            "from": source,
            "task": task,
            "seed": self.seed,
            "score": round(score, 2),
            "direct": round(reference, 2),
            "random": round(chance, 2),
            "share": round((score - chance) / (reference - chance), 3),
            "agent_steps": summary["agent_steps"],
            "updates": summary["updates"],
            "train_seconds": summary["wall_clock_s"],
        }

    @cache  # noqa: B019 - as long as the study
    def score(self, run: Path, task: str) -> float:
        """The mean return of a run's agent in the environment, by the task's own reward."""
        policy = agents.load(run, "cpu")
        env = paid(policy.env, task)
        episodes, seed = self.settings.episodes, 1000 + self.seed
        return evaluate(policy.agent, policy.spec, env, episodes, seed).mean

    @cache  # noqa: B019
    def random(self, task: str) -> float:
        """The mean return of uniformly random actions in the same episodes."""
        env = paid(self.composed("pendulum", self.folder).env, task)
        made = make_env(env)
        spec = env_spec(made)
        made.close()
        with seeding.Stream(self.seed):  # it seeds itself from torch's generator
            agent: Any = Random(spec, RandomConfig(), torch.device("cpu"))
        return evaluate(agent, spec, env, self.settings.episodes, 1000 + self.seed).mean


def paid(env: EnvConfig, task: str) -> EnvConfig:
    """The same environment, paying for a task."""
    return replace(env, reward=None if task == "reward" else f"{FUNCTIONS}:{task}")


def finish(settings: TrainConfig) -> None:
    """Train to the end; RunError where somebody asked for a stop, since half a run is no figure."""
    code = train(settings, quiet)
    if code:
        raise config.RunError(
            f"'{settings.folder}' was stopped ({code}); the same command continues the study."
        )


def quiet(text: str) -> None:
    """A study speaks in figures."""
