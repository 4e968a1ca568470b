"""From a run folder or an export folder to a runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

import agents
from agents.deploy.config import DeployConfig
from agents.deploy.earnings import Earnings, of_calibration
from agents.deploy.export.engine import ExportEngine
from agents.deploy.export.manifest import MANIFEST
from agents.deploy.inference import AgentEngine, Engine, PolicyJob
from agents.deploy.inputs import blank
from agents.deploy.retrain import RetrainRequest
from agents.deploy.runtime import Runtime
from agents.deploy.timing import Clock, SystemClock
from agents.deploy.worker import Answer, ProcessWorker, ThreadWorker, Worker
from agents.planning.acting import planned
from agents.run.config import CONFIG
from worldmodel import config
from worldmodel.checkpoint import CheckpointError
from worldmodel.config import ConfigError, RunError
from worldmodel.envs import EnvConfig
from worldmodel.ood import store
from worldmodel.ood.detector import Detector
from worldmodel.types import EnvSpec


def is_export(path: str | Path) -> bool:
    """Whether a folder was written by scripts/export.py."""
    return (Path(path) / MANIFEST).is_file()


def load_policy(run: str | Path) -> agents.Policy:
    """The trained agent of a run, on the CPU. Raises ConfigError and RunError."""
    above = Path(run).parent
    if not Path(run).exists() and (above / CONFIG).is_file():
        raise config.ConfigError(
            f"The folder '{run}' does not exist, and '{above}' is a run. To export that, run "
            f"scripts/export.py run={above}, which makes '{above / 'export'}'."
        )
    try:
        return agents.load(run, "cpu")
    except CheckpointError as error:
        raise RunError(str(error)) from error


def load_detector(run: str | Path, policy: agents.Policy) -> Detector | None:
    """The detector of a run, for its policy as loaded, or None where none was fitted. Raises
    RunError for a changed one."""
    if not store.exists(run):
        return None
    return store.load(run, policy.spec, policy.model, policy.device)


@dataclass(frozen=True)
class Source:
    """Where an agent comes from; small enough to be sent to another process, which then loads it.

    path: a run or an export. robots: B. guard: with the detector, where there is one. graph,
    expected: of an export, as `ExportEngine` takes them. max_gap, errors: as of `PolicyJob`.
    planner: the settings of one that plans each action, or None.
    """

    path: str
    robots: int = 1
    guard: bool = True
    graph: str | None = None
    max_gap: int = 10
    errors: bool = True
    expected: str | None = None
    planner: Any = None

    def engine(self) -> tuple[Engine, EnvSpec]:
        """The engine, loaded. Raises ConfigError and RunError."""
        if is_export(self.path):
            if self.planner is not None:
                raise ConfigError(
                    f"'{self.path}' is an export, which holds a policy and no search: plan in the "
                    "run that it was made of, run=RUN planner=..."
                )
            exported = ExportEngine(self.path, self.graph, self.expected)
            if not self.guard:
                exported.ignore_scores()
            return exported, exported.spec
        if self.graph is not None or self.expected is not None:
            raise ConfigError(
                f"graph and expected are of an export, and '{self.path}' is a run folder. Leave "
                f"them out, or give its export, run={Path(self.path) / 'export'} "
                f"(scripts/export.py run={self.path} makes it)."
            )
        policy = load_policy(self.path)
        if self.planner is not None:
            policy = planned(policy, self.planner, seed=0)
        detector = load_detector(self.path, policy) if self.guard else None
        return AgentEngine(policy.agent, detector), policy.spec

    def __call__(self) -> PolicyJob:
        """The job of a worker."""
        return self.job(*self.engine(), SystemClock())

    def job(self, engine: Engine, spec: EnvSpec, clock: Clock) -> PolicyJob:
        """The job of a worker, with an engine that is loaded already."""
        kinds = {key: one.kind for key, one in spec.obs.items()}
        return PolicyJob(engine, self.robots, self.max_gap, kinds, self.errors, clock.now)


def open_runtime(
    path: str | Path,
    settings: DeployConfig | None = None,
    robots: int = 1,
    guard: bool = True,
    graph: str | None = None,
    expected: str | None = None,
    clock: Clock | None = None,
    on_retrain: Callable[[RetrainRequest], None] = lambda request: None,
    planner: Any = None,
) -> Runtime:
    """A runtime for the agent in a run folder or an export folder; call its `start` next.

    guard: with the detector that was fitted for the run, where there is one. The range of rewards,
    where the settings leave it open, is that of the recorded ones. planner: settings of one that
    plans each action; without a deadline of its own it has until soft_ms. Raises
    ConfigError and RunError for whatever can be wrong with either.
    """
    settings = settings or DeployConfig()
    if settings.retrain.reward_range is None:
        ranged = replace(settings.retrain, reward_range=reward_range(path))
        settings = replace(settings, retrain=ranged)
    time = clock or SystemClock()
    planner = planner and on_time(planner, settings)
    wanted = settings.retrain.image is not None or settings.retrain.reward_range is not None
    source = Source(str(path), robots, guard, graph, settings.max_gap, wanted, expected, planner)
    if settings.isolation == "process":
        spec = spec_of(path)
        empty = blank(spec, robots)

        def worker(seen: Callable[[Answer], None]) -> Worker:
            patience = settings.restart_ms / 1e3
            try:
                return ProcessWorker(source, empty, time, patience, seen)
            except RuntimeError as error:
                raise RunError(str(error)) from error

    else:
        engine, spec = source.engine()

        def worker(seen: Callable[[Answer], None]) -> Worker:
            return ThreadWorker(source.job(engine, spec, time), time, seen)

    known = earnings_of(path) if guard else None
    return Runtime(spec, worker, settings, robots, time, on_retrain, str(path), earnings=known)


def on_time(planner: Any, settings: DeployConfig) -> Any:
    """The settings of a planner, whose deadline is soft_ms where it has none."""
    if planner.bounds.deadline_ms:
        return planner
    return replace(planner, bounds=replace(planner.bounds, deadline_ms=settings.soft_ms))


def spec_of(path: str | Path) -> EnvSpec:
    """What one robot observes and does."""
    return ExportEngine(path).spec if is_export(path) else load_policy(path).spec


def env_of(path: str | Path) -> EnvConfig:
    """The environment that the agent was trained in."""
    if not is_export(path):
        return load_policy(path).env
    saved = ExportEngine(path).manifest["env"]
    return config.build(OmegaConf.create(saved), EnvConfig)


def earnings_of(path: str | Path) -> Earnings | None:
    """What policy and fallbacks are known to earn, where that was measured."""
    if is_export(path):
        return of_calibration(ExportEngine(path).manifest["about"].get("calibration"))
    return of_calibration(store.read(path)["calibration"]) if store.exists(path) else None


def reward_range(path: str | Path) -> float | None:
    """From the 1st to the 99th percentile of the recorded rewards; None where that is not known."""
    if is_export(path):
        known = ExportEngine(path).manifest["about"].get("reward_range")
        return float(known) if isinstance(known, int | float) and known > 0 else None
    try:
        replay = agents.load_replay(path)
    except config.ConfigError:
        return None
    rewards = []
    for stream, start, stop in replay.episodes():
        rewards.append(replay.rows(stream, start, stop)["reward"][1:])
    found = np.concatenate(rewards) if rewards else np.zeros(0)
    if not len(found):
        return None
    low, high = np.percentile(found, [1, 99])
    return float(high - low) or None
