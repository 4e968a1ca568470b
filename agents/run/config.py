"""What a run is asked to do, how far it is, and whose folder it writes to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.base import Agent
from agents.run import report
from worldmodel import checkpoint, config
from worldmodel.config import ConfigError, RunError
from worldmodel.envs import EnvConfig
from worldmodel.log import METRICS
from worldmodel.replay import Replay, ReplayConfig

CONFIG = "config.yaml"
NO_ENV = "none"  # the id of no environment
# Settings that may differ when a run is continued: they change how long it lasts and what is
# shown of it, not what is learned.
FREE = (
    "run", "steps", "max_minutes", "device", "threads", "log_every", "eval_every",
    "eval_episodes", "final_episodes", "eval_envs", "video_every", "checkpoint_minutes",
    "checkpoints_kept", "accept_changes", "nonfinite_limit", "max_rollbacks", "env.timeout",
    "env.max_failures", "updates", "overlap", "agent.cuda_graph",
)  # fmt: skip


@dataclass
class TrainConfig:
    """One training run. Steps are agent steps: transitions, over all environments (and ranks)
    together.

    With `offline` there are none: nothing is collected, the clock is the updates, and what is said
    here in steps (log_every, eval_every, video_every) counts updates.
    """

    run: str = ""  # run folder; empty: runs/<environment>-<agent>-<seed>
    seed: int = 0
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    threads: int = 0  # CPU threads inside operations; 0 leaves torch's choice
    steps: int = 500_000  # agent steps after which the run ends
    # Gradient updates after which the run ends, if sooner; 0 means no limit, and offline as many as
    # those steps would have earned.
    updates: int = 0
    max_minutes: float | None = None  # of training (not evaluation) after which it ends, if sooner
    train_ratio: float = 512.0  # replayed rows per agent step
    prefill: int = 0  # agent steps with random actions before the first update
    log_every: int = 1000  # agent steps between two lines of metrics
    eval_every: int = 50_000  # agent steps between two evaluations; 0 means none
    eval_episodes: int = 5  # of each evaluation on the way
    final_episodes: int = 20  # of the evaluation at the end
    eval_envs: int = 10  # environments that play evaluation episodes at the same time
    video_every: int = 50_000  # agent steps between two films of a dream; 0 means none
    checkpoint_minutes: float = 5.0  # of training between two checkpoints
    checkpoints_kept: int = 2  # newest ones; should one be damaged, the one before it is used
    accept_changes: bool = False  # continue a run although its settings were others
    # Updates while environments step, where those have processes of their own (env.vector=async):
    # a step's actions are then chosen before the updates that the step before it has earned.
    overlap: bool = True
    deterministic: bool = False  # only operations that give the same bits each time
    nonfinite_limit: int = 10  # skipped updates in a row after which the run goes back
    max_rollbacks: int = 3  # times that it goes back, at half the learning rate, before it stops
    # Learn from a recording alone: a run or replay folder, .npz or .hdf5 episodes, minari:ID. The
    # environment is for evaluation, and says what actions mean; env=none where there is none.
    offline: str = ""
    offline_alignment: str = "auto"  # auto, taken_at, led_to: where equal lengths leave it open
    offline_done: str = "auto"  # auto, terminated, truncated: what a lone flag `done` means
    offline_action_range: list[float] | None = None  # [low, high] of recorded actions
    from_run: str = ""  # a run whose weights this one starts with
    # Which of its parts: encoder, core, decoder, heads, ensemble, actor, critic.
    load_parts: list[str] = field(
        default_factory=lambda: [
            "encoder", "core", "decoder", "heads", "ensemble", "actor", "critic",
        ]
    )  # fmt: skip
    env: EnvConfig = field(default_factory=EnvConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    agent: Any = None  # the `Config` of a registered agent

    def __post_init__(self) -> None:
        at_least = {
            "steps": 1, "threads": 0, "prefill": 0, "log_every": 1, "eval_every": 0,
            "eval_episodes": 1, "final_episodes": 1, "eval_envs": 1, "video_every": 0, "seed": 0,
            "checkpoints_kept": 1, "nonfinite_limit": 1, "max_rollbacks": 0, "updates": 0,
        }  # fmt: skip
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        for name in ("train_ratio", "checkpoint_minutes", "max_minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:  # a NaN fails too
                raise ConfigError(f"{name} is {value}; it must be more than 0, and finite.")
        if not self.offline and not self.has_env:
            raise ConfigError(
                "env=none is for learning from a recording: name one with offline=..., or name an "
                "environment."
            )

    @property
    def has_env(self) -> bool:
        """Whether an environment is named."""
        return self.env.id != NO_ENV

    @property
    def length(self) -> int:
        """How long the run is, by its clock: agent steps, or updates where it is offline.

        Raises ConfigError where nobody says how many updates.
        """
        if not self.offline:
            return self.steps
        if self.updates:
            return self.updates
        if self.budget < 1:
            raise ConfigError("Say how long to learn from the recording: updates=...")
        return self.budget

    @property
    def budget(self) -> int:
        """Updates that `steps` agent steps earn; 0 where the agent's batches have no size."""
        rows = getattr(self.agent, "batch_size", 0) * getattr(self.agent, "batch_length", 0)
        return round((self.steps - self.prefill) * self.train_ratio / rows) if rows else 0

    @property
    def replay_folder(self) -> Path:
        """Where the replay lies."""
        return Path(self.replay.directory or self.folder / "replay")

    @property
    def folder(self) -> Path:
        """The run folder."""
        task = self.env.id if self.has_env else Path(self.offline).stem
        task = task.replace("/", "-").replace(":", "-")
        return Path(self.run or f"runs/{task}-{self.agent.name}-{self.seed}")


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


def crossed(before: float, after: float, every: float) -> bool:
    """Whether a multiple of `every` lies in (before, after]; never where every is 0."""
    return every > 0 and after // every > before // every


def check_folder(settings: TrainConfig, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The summary of a run that is finished already, or None where there is something to do.

    Raises ConfigError where the folder holds a run with other settings and `accept_changes` does
    not consent to them.
    """
    folder = settings.folder
    if not (folder / CONFIG).is_file():
        return None
    changed = config.differences(config.read(folder / CONFIG), settings, FREE)
    if changed:
        lines = [f"  {key}: there {old}, asked for {new}" for key, (old, new) in changed.items()]
        text = f"'{folder}' holds a run with other settings:\n" + "\n".join(lines)
        if not settings.accept_changes:
            raise ConfigError(
                f"{text}\nGive the same settings to continue it, accept_changes=true to go on with "
                "the new ones, or another run=... to start a new run."
            )
        say(f"{text}\nGoing on with the new ones, as accept_changes says.")
    summary = report.read_summary(folder)
    if summary is None or not checkpoint.exists(folder):
        return None
    limit = settings.max_minutes
    over = limit is not None and summary["wall_clock_s"] >= 60 * limit
    done = summary["updates" if settings.offline else "agent_steps"] >= settings.length
    enough = 0 < settings.updates <= summary["updates"]
    return summary if done or enough or over else None


def check_unused(folder: Path) -> None:
    """RunError where a folder lost its checkpoints but not what a run wrote there."""
    metrics = folder / METRICS
    if metrics.is_file() and metrics.stat().st_size:
        raise RunError(
            f"'{folder}' holds {METRICS} of an earlier run, but none of its checkpoints. Choose "
            "another run=..., put its checkpoints back, or empty the folder."
        )


def check_can_learn(settings: TrainConfig, agent: Agent, replay: Replay) -> None:
    """ConfigError where the first update would never come."""
    need, length = agent.min_rows, agent.batch_length
    if settings.offline:
        if not agent.learns:
            raise ConfigError(f"The agent '{settings.agent.name}' cannot learn from a recording.")
        return
    if not agent.learns:
        return
    capacity, streams = replay.capacity, replay.num_envs
    if capacity < need or capacity // streams < length:
        raise ConfigError(
            f"replay.capacity holds {capacity:,} rows for {streams} environments together; the "
            f"first update needs {need:,}, and {length} of one environment. Raise "
            "replay.capacity, or lower agent.batch_size or agent.batch_length."
        )
    if settings.steps <= settings.prefill:
        raise ConfigError(
            f"steps={settings.steps} must be more than prefill={settings.prefill}, or nothing is "
            "learned."
        )
