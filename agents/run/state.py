"""What a run consists of while it goes on, and a checkpoint keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from agents.base import Agent
from agents.run.collect import Collector
from worldmodel.log import Means
from worldmodel.replay import Replay
from worldmodel.types import EnvSpec


@dataclass
class Counters:
    """What was done so far. env_frames: agent steps times the action repeat."""

    agent_steps: int = 0
    env_frames: int = 0
    updates: int = 0
    episodes: int = 0
    owed: float = 0.0  # updates earned by collected steps and not done yet
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    skipped: int = 0  # updates whose loss or gradient was not finite
    rollbacks: int = 0  # times that the run went back to a checkpoint and lowered its rate
    env_failures: int = 0  # environments that were restarted

    def earn(self, updates: float, first: int) -> None:
        """Owe more updates; the first time, `first` beside them."""
        if not (self.updates or self.owed):
            self.owed += first
        self.owed += updates


@dataclass
class RunState:
    """The parts of a run, on one rank. Agent, counters and scores are equal on all ranks; replay,
    collector and means are each rank's own.

    place: the folder of this rank's replay. means: of metrics, since the last line of the log.
    scores: of episodes, since then. collector: None where a run learns from a recording.
    """

    spec: EnvSpec
    agent: Agent
    replay: Replay
    place: Path
    counters: Counters = field(default_factory=Counters)
    means: Means = field(default_factory=Means)
    scores: Means = field(default_factory=Means)
    collector: Collector | None = None

    @property
    def can_sample(self) -> bool:
        """Whether replay holds enough for an update."""
        enough = self.agent.learns and len(self.replay) >= self.agent.min_rows
        return enough and self.replay.can_sample(self.agent.in_a_row)
