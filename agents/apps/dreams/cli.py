"""The command behind scripts/dream.py: a run's folder in, a report of its dreams out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import agents
from agents.apps.dreams import honesty, page
from agents.apps.dreams.drawings import draw_futures, draw_strips
from agents.apps.dreams.episodes import DreamConfig, Experience, experience, windows
from agents.base import Policy
from agents.run import report
from worldmodel import config, seeding
from worldmodel.accel.devices import keep_freed_memory, set_threads
from worldmodel.atomic import is_full
from worldmodel.capabilities import Decodes
from worldmodel.config import ConfigError, RunError
from worldmodel.folders import make_folder
from worldmodel.log import write_json
from worldmodel.types import Dynamics

REPORT, SUMMARY = "report.html", "summary.json"


def dream_command(say: Callable[[str], None], arguments: Sequence[str]) -> int:
    """Write the dreams of a run folder; the process's exit code."""
    return config.guarded(lambda: _dream(list(arguments), say), say)


def _dream(words: list[str], say: Callable[[str], None]) -> int:
    settings = config.from_cli(DreamConfig, words)
    began = time.monotonic()
    set_threads(settings.threads)
    keep_freed_memory()
    try:
        policy = agents.load(settings.run, settings.device)
        missing = left_out(policy, settings.run)
        folder = make_folder(Path(settings.out or Path(settings.run) / "dreams"), "out")
        lived = [experience(policy, settings)]
        lived[0].shown(settings)  # refused before any more is played
        lived += random_experience(policy, settings, missing)
        with seeding.Stream(seeding.spawn(settings.seed, "dreams"), policy.device):
            summary = write(policy, lived, settings, folder, missing)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        if is_full(error):
            raise
        raise RunError(f"The report cannot be written: {error}. Give another out=...") from error
    for text in [*missing, *honesty.headlines(summary)]:
        say(text)
    say(f"report: {folder / REPORT} ({time.monotonic() - began:.0f} s)")
    return 0


def left_out(policy: Policy, run: str) -> list[str]:
    """What a run's dreams cannot show, in words; ConfigError where it has none at all."""
    if not isinstance(policy.model, Dynamics):
        raise ConfigError(
            f"The agent of '{run}' ({policy.agent.name}) has no world model that could dream. Give "
            "a run of an agent that learns one, such as agent=dreamer."
        )
    if not isinstance(policy.model, Decodes):
        return [
            "left out: the model has no decoder, so nothing can be drawn; rewards, continues and "
            "returns follow."
        ]
    if not policy.spec.keys("image"):
        return ["left out: the run has no images, so there are no films; its vectors are drawn."]
    return []


def random_experience(
    policy: Policy, settings: DreamConfig, missing: list[str]
) -> list[Experience]:
    """Episodes of random actions to measure on, too, where fresh ones are asked for; what they
    are too short for is added to what is missing."""
    asked = settings.random_too()
    if asked is None:
        return []
    lived = experience(policy, asked)
    try:
        lived.long_enough(asked)
    except ConfigError as error:
        missing.append(f"left out: random actions, whose episodes are too short. {error}")
        return []
    return [lived]


def write(
    policy: Policy,
    lived: list[Experience],
    settings: DreamConfig,
    folder: Path,
    missing: list[str],
) -> dict[str, Any]:
    """All files of the report, measured on each kind of episodes and drawn from the first; the
    honesty."""
    model, spec = policy.model, policy.spec
    drawn = [
        draw_strips(model, spec, lived[0], settings, folder),
        draw_futures(policy, lived[0], settings, folder),
    ]
    figures = []
    for i, kind in enumerate(lived):
        found = windows(kind, model, settings)
        result = honesty.measure(model, spec, found, settings.context, settings.dreams)
        name = "honesty_random" if i else "honesty"
        drawn.append(honesty.draw(result, kind.about, settings.horizon, folder, name))
        figures.append({"episodes_are": kind.about, **honesty.figures(result)})
    summary = {
        **config.keys_of(settings),
        "task": policy.env.id,
        **figures[0],
        "under_random_actions": figures[1] if len(figures) > 1 else None,
        "left_out": missing,
        "versions": report.versions(),
        "code": report.code_version(),
    }
    write_json(folder / SUMMARY, summary)
    page.write(
        folder / REPORT,
        f"Dreams of {policy.env.id}",
        honesty.headlines(summary),
        honesty.facts(summary),
        [section for section in drawn if section is not None],
        "Every plot has its numbers beside it as CSV, every film is there as MP4 too, and "
        "summary.json holds the means of every curve.",
    )
    return summary
