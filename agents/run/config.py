"""What a run is asked to do."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.base import MODES
from worldmodel.config import ConfigError, check_ranges, free, unknown
from worldmodel.envs import EnvConfig
from worldmodel.replay import ReplayConfig

CONFIG = "config.yaml"
NO_ENV = "none"  # the id of no environment


@dataclass
class TrainConfig:
    """One training run. Steps are agent steps: transitions, over all environments (and ranks)
    together.

    With `offline` there are none: nothing is collected, the clock is the updates, and what is said
    here in steps (log_every, eval_every, video_every) counts updates. Settings that are `free` may
    differ when a run is continued: they change how long it lasts and what is shown of it.
    """

    run: str = free("")  # run folder; empty: runs/<environment>-<agent>-<seed>
    seed: int = 0
    device: str = free("auto")  # auto, cpu, cuda, cuda:1, mps
    threads: int = free(0)  # CPU threads inside operations; 0 leaves torch's choice
    steps: int = free(500_000)  # agent steps after which the run ends
    # Gradient updates after which the run ends, if sooner; 0 means no limit, and offline as many as
    # those steps would have earned.
    updates: int = free(0)
    # Minutes of training, not of evaluation, after which the run ends, if sooner.
    max_minutes: float | None = free(None)
    train_ratio: float = 512.0  # replayed rows per agent step
    prefill: int = 0  # agent steps with random actions before the first update
    first_updates: int = 0  # more updates, at once, when those steps are done
    log_every: int = free(1000)  # agent steps between two lines of metrics
    eval_every: int = free(50_000)  # agent steps between two evaluations; 0 means none
    eval_episodes: int = free(5)  # of each evaluation on the way
    final_episodes: int = free(20)  # of the evaluation at the end; 0 means none
    eval_mode: str = free("mode")  # the likeliest action, or "sample": published scores sample
    # Environments that play evaluation episodes at the same time, made for it; 0 means the training
    # environment itself, between two of its episodes: a robot, a world of which there is only one.
    eval_envs: int = free(10)
    video_every: int = free(50_000)  # agent steps between two films of a dream; 0 means none
    checkpoint_minutes: float = free(5.0)  # of training between two checkpoints
    checkpoints_kept: int = free(2)  # newest ones; should one be damaged, the one before it is used
    accept_changes: bool = free(False)  # continue a run although its settings were others
    # Updates while environments step, where those have processes of their own (env.vector=async):
    # a step's actions are then chosen before the updates that the step before it has earned.
    overlap: bool = free(True)
    deterministic: bool = False  # only operations that give the same bits each time
    nonfinite_limit: int = free(10)  # skipped updates in a row after which the run goes back
    max_rollbacks: int = free(3)  # times that it goes back, each time at half the learning rate
    # Learn from a recording alone: a run or replay folder, .npz or .hdf5 episodes, minari:ID. The
    # environment is for evaluation, and says what actions mean; env=none where there is none.
    offline: str = ""
    # auto, taken_at, led_to: where equal lengths leave it open; next_step, same_step: autoresets
    offline_alignment: str = "auto"
    offline_done: str = "auto"  # auto, terminated, truncated: what a lone flag `done` means
    offline_action_range: list[float] | None = None  # [low, high] of recorded actions
    offline_actions: str = "auto"  # auto, continuous, discrete, one_hot: what recorded actions are
    # Which axis of stacked arrays counts the episodes: auto, episodes_first, steps_first.
    offline_axes: str = "auto"
    # Which array is what, where its name does not say: {reward: my_score}, {observation: [a, b]},
    # or null where there is none. Parts: observation, next_observation, action, reward, is_first,
    # is_last, terminated, truncated, done, episode, skip.
    offline_names: dict[str, Any] = field(default_factory=dict)
    from_run: str = ""  # a run whose weights this one starts with
    load_parts: list[str] = field(default_factory=list)  # which of its parts; [] means all
    env: EnvConfig = field(default_factory=EnvConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    agent: Any = None  # the `Config` of a registered agent

    def __post_init__(self) -> None:
        some, many, positive = (0, math.inf), (1, math.inf), (1e-9, 1e12)
        check_ranges(self, {
            "steps": many, "threads": some, "prefill": some, "log_every": many, "eval_every": some,
            "eval_episodes": many, "final_episodes": some, "eval_envs": some, "video_every": some,
            "seed": some, "checkpoints_kept": many, "nonfinite_limit": many, "max_rollbacks": some,
            "updates": some, "first_updates": some, "train_ratio": positive,
            "checkpoint_minutes": positive, "max_minutes": positive,
        })  # fmt: skip
        if self.eval_mode not in MODES:
            raise ConfigError(unknown("eval_mode", self.eval_mode, MODES))
        if self.eval_envs == 0 and (self.offline or self.env.num_envs > 1):
            raise ConfigError(
                "eval_envs=0 plays evaluations on the training environment, of which there must be "
                "one: give env.num_envs=1, or eval_envs=1 for an environment beside it."
            )
        if self.eval_envs == 0 and self.env.eval_kwargs:
            raise ConfigError(
                f"env.eval_kwargs ({self.env.eval_kwargs}) asks for other environments in "
                "evaluations, and eval_envs=0 for the training's own. Leave one of them out."
            )
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
        sizes = vars(self.agent)
        rows = sizes.get("batch_size", 0) * sizes.get("batch_length", 1)
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


def crossed(before: float, after: float, every: float) -> bool:
    """Whether a multiple of `every` lies in (before, after]; never where every is 0."""
    return every > 0 and after // every > before // every
