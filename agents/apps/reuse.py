"""A new task for a model that exists: an actor trained in its dreams, without one new step.

A thin composition. The run is an ordinary one that learns from a recording (the old run's replay),
starts with the old run's model and keeps it as it is, and is paid by the heads in `control`:

    offline=<replay> + from_run=RUN + agent.freeze_model=true + agent.model.control=...

What comes of it is then scored in the real environment: by the task's reward, and by the functions
and keys that the heads were fitted on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING

import agents
from agents.apps.rewards.score import score
from agents.apps.rewards.store import with_heads
from agents.run import report
from agents.run.config import CONFIG, TrainConfig
from agents.run.evaluate import score_line
from agents.run.train import train
from worldmodel import config, seeding


@dataclass
class DreamConfig:
    """Which model to dream with, and what for. Any setting of scripts/train.py may be added
    (agent.horizon=15, eval_every=500, ...); what it counts in steps is counted in updates."""

    run: str = MISSING  # the run whose model and replay are used; it is not changed
    control: dict[str, float] = field(default_factory=dict)  # heads, weighted; none: reward alone
    to: str = ""  # run folder of the new actor; empty: <run>-<names of the heads>
    updates: int = 0  # gradient steps; 0: as many as the old run was to have

    def __post_init__(self) -> None:
        # No default of the field: what is given would be added to it.
        self.control = self.control or {"reward": 1.0}


def dreams_command(say: Callable[[str], None], arguments: Sequence[str]) -> int:
    """Train an actor in the dreams of a run's model, and score it; the process's exit code."""
    return config.guarded(lambda: _train(list(arguments), say), say)


def _train(words: list[str], say: Callable[[str], None]) -> int:
    known = {item.name for item in fields(DreamConfig)}
    ours = [w for w in words if "=" not in w or w.partition("=")[0].split(".")[0] in known]
    asked = config.from_cli(DreamConfig, ours)
    settings = dream_settings(asked, [word for word in words if word not in ours])
    code = train(settings, say)
    if code == 0 and settings.has_env:
        for line in write_score(settings, asked):
            say(line)
    return code


def dream_settings(asked: DreamConfig, overrides: Sequence[str] = ()) -> TrainConfig:
    """The training run that `asked` means: the old run's settings, with a frozen model and its
    replay for a recording.

    Raises ConfigError for unknown heads and settings and for an agent that cannot learn in such
    dreams, and RunError for heads of another state of the model.
    """
    folder = Path(asked.run)
    old = run_settings(folder)
    policy = agents.load(folder, "cpu")
    updates = asked.updates or replace(old, updates=0).budget
    agent = policy.agent.dream_config(with_heads(folder, asked.control, policy), updates)
    if agent is None:
        raise config.ConfigError(
            f"The agent '{policy.agent.name}' of '{folder}' cannot learn in the dreams of a world "
            "that is kept as it is. Use a run of one that can, such as agent=dreamer."
        )
    made = agents.make(policy.agent.name, policy.spec, agent, policy.device)
    for word in overrides:
        if "control" in word.partition("=")[0].split("."):
            raise config.ConfigError(
                f"'{word}': what is maximised in dreams is the command's own setting, "
                "control={name: weight, ...}. Give that instead."
            )
    changes: dict[str, Any] = {
        "run": asked.to or f"{folder}-{'-'.join(asked.control)}",
        "offline": str(old.replay_folder if old.replay.directory else folder / "replay"),
        "updates": updates,
        "from_run": str(folder),
        "load_parts": [name for name, part in made.parts.items() if part.frozen],
        "offline_alignment": "auto",
        "offline_action_range": None,
        "eval_every": 0,
    }
    return changed(replace(old, **changes, agent=agent), overrides)


def run_settings(folder: Path) -> TrainConfig:
    """The settings of a run, from its folder. Raises ConfigError where it is none."""
    saved = config.read(folder / CONFIG)
    name = config.section(saved, "agent", folder / CONFIG).get("name")
    like = TrainConfig(agent=agents.agent_class(str(name)).Config())
    return config.build(saved, TrainConfig, like, saved=True)


def changed(settings: TrainConfig, overrides: Sequence[str]) -> TrainConfig:
    """The same settings with `key=value` words applied; ConfigError where one does not fit."""
    return config.from_cli(TrainConfig, overrides, settings)


def write_score(settings: TrainConfig, asked: DreamConfig) -> list[str]:
    """Score a finished run in the real environment by its control, into summary.json; lines that
    say how it did."""
    folder = settings.folder
    summary = report.read_summary(folder)
    assert summary is not None
    policy = agents.load(folder, settings.device)
    # The episodes of the run's own last evaluation.
    episodes, seed = settings.final_episodes, seeding.spawn(settings.seed, "evaluation")
    found = score(policy, asked.control, asked.run, episodes, seed, settings.eval_envs)
    parts = {name: sum(values) / len(values) for name, values in found.parts.items()}
    summary["control"] = {
        "weights": dict(asked.control),
        "score_mean": found.mean,
        "score_std": found.std,
        "scores": found.returns,
        "parts": parts,
        "measured": found.measured,
    }
    report.write_summary(folder, summary)
    lines = [
        "by control, in the real environment: "
        + score_line(found.mean, found.std, len(found.returns))
    ]
    for name, value in parts.items():
        how = "measured" if found.measured[name] else "as the head judges it"
        lines.append(f"  {name} {asked.control[name]:+g}: {value:.1f} ({how})")
    return [*lines, f"run folder: {os.fspath(folder)}"]
