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


def learned_enough(config: TrainConfig, counters: Counters) -> bool:
    """Whether the last update is done, where their number is what was asked for."""
    return 0 < config.updates <= counters.updates


def is_late(config: TrainConfig, seconds: float) -> bool:
    """Whether the time is up after so many seconds of training."""
    return config.max_minutes is not None and seconds >= 60 * config.max_minutes


def is_over(config: TrainConfig, counters: Counters, agenda: Agenda | None) -> bool:
    """Whether the last step or update is done, or the time is up."""
    if learned_enough(config, counters) or is_late(config, counters.train_seconds):
        return True
    if agenda is None or config.offline:
        done = position(config, counters, agenda) >= config.length
    else:
        done = agenda.collecting and counters.agent_steps >= config.steps
    return done or (agenda is not None and agenda.finished)
