"""A planner on a command line: `planner=icem planner.horizon=20 planner.bounds.deadline_ms=8`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, make_dataclass
from typing import Any

from agents.planning import PLANNERS, planner_class
from worldmodel import config
from worldmodel.config import ConfigError

WORD = "planner"


def split_words(words: Sequence[str]) -> tuple[Any, list[str]]:
    """The settings of the planner that the words name, or None, and the words without it.

    Raises ConfigError for an unknown planner or setting, and for settings of no planner.
    """
    ours = [word for word in words if word.partition("=")[0].partition(".")[0] == WORD]
    rest = [word for word in words if word not in ours]
    if not ours:
        return None, rest
    names = [word.partition("=")[2] for word in ours if word.startswith(f"{WORD}=")]
    renamed = any(word.startswith(f"{WORD}.name=") for word in ours)
    if len(names) != 1 or renamed:
        raise ConfigError(
            f"{' '.join(ours)}: give planner=NAME, once; known: {', '.join(PLANNERS)}."
        )
    name = names[0]
    schema = planner_class(name).Config
    section = make_dataclass("Words", [(WORD, schema, field(default_factory=schema))])
    settings = [word for word in ours if word.startswith(f"{WORD}.")]
    if bare := next((word for word in settings if "=" not in word), ""):
        raise ConfigError(
            f"Cannot read '{bare}': settings of a planner are given as {WORD}.SETTING=value; "
            f"--help {WORD}={name} lists them."
        )
    try:
        return getattr(config.from_cli(section, settings), WORD), rest
    except ConfigError as error:
        raise ConfigError(f"planner={name}: {error}") from error
