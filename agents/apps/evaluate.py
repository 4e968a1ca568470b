"""Whole episodes with a trained agent: as it acts, or as a planner decides in its world."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING

import agents
from agents.apps.plans import draw_decision
from agents.apps.rewards.score import score
from agents.apps.rewards.store import with_heads
from agents.planning.acting import Planned, planned
from agents.planning.tally import SearchTally
from agents.planning.words import split_words
from agents.run import report
from agents.run.evaluate import EvalResult, evaluate, frames_of
from worldmodel import config
from worldmodel.envs.config import MOST_ENVS, with_words
from worldmodel.folders import make_folder
from worldmodel.log import write_video

MOST_EPISODES = 1_000_000
LONGEST = 120  # characters of a folder's name


@dataclass
class EvaluateConfig:
    """Which run to play, and how.

    run: its folder. episodes, seed, num_envs: of the evaluation; num_envs environments play at the
    same time. mode: the likeliest action, or "sample" as while training. control: heads of the
    run, weighted, that a planner maximises and by which the score is taken; none: the task's
    reward. planner=NAME and planner.SETTING=... (--help planner=NAME lists them): plan each action
    in the run's world. env: settings of the environment that are others than in training:
    env.time_limit=300, or another level, env.kwargs.level=2; what it observes and takes must stay
    the same. to: folder for returns, video and drawings; empty: <run>/evaluation, and in it folders
    of the planner's name, of control, and of what is other about the environment.
    """

    run: str = MISSING
    episodes: int = 20
    seed: int = 0
    mode: str = "mode"
    num_envs: int = 10
    env: dict[str, Any] = field(default_factory=dict)
    device: str = "auto"
    control: dict[str, float] = field(default_factory=dict)
    to: str = ""

    def __post_init__(self) -> None:
        ranges = {"episodes": (1, MOST_EPISODES), "num_envs": (1, MOST_ENVS), "seed": (0, 2**63)}
        config.check_ranges(self, ranges)

    def folder(self, planner: Any) -> Path:
        """Where results go: nobody's replace those of the policy itself."""
        kinds = ([planner.name] if planner else []) + (["control"] if self.control else [])
        if self.env:
            kinds.append(_folder_of(self.env))
        return Path(self.to or Path(self.run, "evaluation", *kinds))


def _folder_of(env: Mapping[str, Any]) -> str:
    """A name for these settings of an environment, of which no others have the same."""
    others = ",".join(f"{name}={value}" for name, value in sorted(config.keys_of(env).items()))
    plain = re.sub(r"[^A-Za-z0-9_.,=+-]", "_", others)
    if plain == others and len(plain) <= LONGEST:
        return plain
    return f"{plain[:LONGEST]}-{hashlib.sha256(others.encode()).hexdigest()[:8]}"


def evaluate_command(say: Callable[[str], None], arguments: Sequence[str]) -> int:
    """Play whole episodes with the agent of a run folder; returns and a video go to its
    `evaluation` folder, those of a planner or by control to folders of their own in it."""
    return config.guarded(lambda: _evaluate(arguments, say), say)


def _evaluate(words: Sequence[str], say: Callable[[str], None]) -> int:
    planner, rest = split_words(words)
    settings = config.from_cli(EvaluateConfig, rest, planner=planner)
    try:
        policy = agents.load(settings.run, settings.device)
        policy = replace(policy, env=with_words(policy.env.judged, rest))
        if planner is not None:
            world = with_heads(settings.run, settings.control, policy) if settings.control else None
            policy = planned(policy, planner, settings.seed, world, trusts=not settings.control)
            say(f"planning each action: {planner.name}")
        folder = make_folder(settings.folder(planner), "to")
        many = (settings.episodes, settings.seed, settings.num_envs)
        if settings.control:
            found = score(policy, settings.control, settings.run, *many, settings.mode)
            result = EvalResult(found.returns, found.lengths)
        else:
            about = (policy.agent, policy.spec, policy.env)
            result = evaluate(*about, *many, settings.mode, record=True)
    except ValueError as error:
        raise config.ConfigError(str(error)) from error
    asked = {"task": policy.env.id, "mode": settings.mode, "seed": settings.seed}
    asked |= {"env": settings.env, "kwargs": policy.env.kwargs}
    asked |= {} if planner is None else {"planner": asdict(planner)}
    asked |= {"control": settings.control} if settings.control else {}
    tally = policy.agent.tally if isinstance(policy.agent, Planned) else SearchTally()
    for name, text in tally.rows():
        say(f"{name}: {text}")
    if policy.env.kwargs:
        say("environment: " + ", ".join(f"{k}={v}" for k, v in policy.env.kwargs.items()))
    say(result.line() + (" by control" if settings.control else ""))  # now: a disk may be full
    report.write_returns(folder, result, asked | tally.summary())
    frames = []
    if result.rows:
        frames = frames_of(result, policy.agent, policy.spec, policy.env, settings.seed)
    video = folder / "episode.mp4"
    video.unlink(missing_ok=True)  # of an earlier evaluation
    if frames:
        write_video(video, frames)
    if isinstance(policy.agent, Planned) and policy.agent.shown is not None:
        for path in draw_decision(folder, policy.agent.model, policy.spec, *policy.agent.shown):
            say(f"one decision: {path}")
    say(f"returns{' and video' * bool(frames)}: {os.fspath(folder)}")
    return 0
