"""What a run's length and its "every" are counted in: agent steps; updates, where it learns from a
recording; or both, where its agent learns in phases (`Agent.agenda`)."""

from __future__ import annotations

from agents.base import Agenda
from agents.run.config import TrainConfig
from agents.run.state import Counters


def position(config: TrainConfig, counters: Counters, agenda: Agenda | None) -> int:
    """Where a run stands."""
    if config.offline:
        return counters.updates
    return counters.agent_steps + (counters.updates if agenda is not None else 0)


def length(config: TrainConfig, agenda: Agenda | None) -> int:
    """Where it ends; with phases, about."""
    return config.length if agenda is None or config.offline else agenda.length


def unit(config: TrainConfig, agenda: Agenda | None) -> str:
    """What is counted, in a word."""
    return "update" if config.offline else "step" if agenda is None else "turn"


def is_over(config: TrainConfig, counters: Counters, agenda: Agenda | None) -> bool:
    """Whether the last step or update is done, or the time is up."""
    minutes = config.max_minutes
    late = minutes is not None and counters.train_seconds >= 60 * minutes
    if 0 < config.updates <= counters.updates or late:
        return True
    if agenda is None or config.offline:
        done = position(config, counters, agenda) >= config.length
    else:
        done = agenda.collecting and counters.agent_steps >= config.steps
    return done or (agenda is not None and agenda.finished)
