"""The training loop: collect one step, learn what is owed, log, evaluate, save, repeat.

    collect a step -> updates owed (train ratio) -> metrics -> log | evaluate | film | checkpoint

It knows the Agent protocol and no algorithm.
"""

from __future__ import annotations

import errno
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

import agents
from agents.run import report
from agents.run.collect import Collector, Episode
from agents.run.evaluate import EvalResult, evaluate
from agents.run.progress import Progress, Stopper
from agents.run.settings import (
    CONFIG,
    Counters,
    TrainConfig,
    check_can_learn,
    check_folder,
    check_unused,
    crossed,
)
from worldmodel import checkpoint, config, seeding
from worldmodel.accelerate import keep_freed_memory, pick_device, set_threads
from worldmodel.config import ConfigError, RunError
from worldmodel.envs import describe, env_spec, make_vector
from worldmodel.log import Means, RunLog
from worldmodel.replay import Replay
from worldmodel.types import Batch

NAN_BATCH = "nan_batch.pt"


class Trainer:
    """One run, ready to go on: new, or restored from the checkpoint in its folder.

    Raises ConfigError where the settings are impossible or the folder holds another run.
    """

    def __init__(self, settings: TrainConfig, say: Callable[[str], None]) -> None:
        self.config, self.say, self.folder = settings, say, settings.folder
        self.counters = Counters()
        self.device = pick_device(settings.device)
        set_threads(settings.threads)
        keep_freed_memory()
        seeding.seed_everything(settings.seed)
        saved = checkpoint.load(self.folder) if checkpoint.exists(self.folder) else None
        if saved:
            self.counters = Counters(**saved["counters"])
        else:
            check_unused(self.folder)
        done = self.counters.agent_steps
        # A continued run gets new episodes, not those of its beginning once more.
        seed = seeding.spawn(settings.seed, f"environments from step {done}")
        self.envs = make_vector(settings.env, seed=seed)
        try:
            self.spec = env_spec(self.envs)
            say(describe(self.spec))
            self.agent = agents.make(settings.agent.name, self.spec, settings.agent, self.device)
            self.replay = self._make_replay(fresh=saved is None)
            self._check_disk()
            check_can_learn(settings, self.agent, self.replay.capacity, self.envs.num_envs)
            if saved:
                self._restore(saved)
            self.collector = Collector(
                self.envs, self.spec, self.agent, seeding.spawn(seed, "exploration"), steps=done
            )
            config.write(self.folder / CONFIG, settings)
            self.log = RunLog(self.folder, done)
        except BaseException:
            self.envs.close()
            raise
        self.means, self.scores = Means(), Means()
        if saved is None:
            self.save()  # so that a folder with a config can always be continued

    @property
    def finished(self) -> bool:
        """Whether the last step is done, or the time is up."""
        limit = self.config.max_minutes
        return self.counters.agent_steps >= self.config.steps or (
            limit is not None and self.counters.train_seconds >= 60 * limit
        )

    def run(self) -> int | None:
        """Train until finished; the number of the signal, where one asked to stop earlier."""
        limit = self.config.max_minutes
        start = (self.counters.agent_steps, self.counters.updates)
        bar = Progress(self.config.steps, start, limit and 60 * limit, self.say)
        with Stopper() as stop:
            try:
                while not self.finished and not stop.asked:
                    self.one_step(bar, stop)
                self.save()
            except RunError:
                self.save()  # what was learned until then is sound
                raise
            finally:
                bar.close()
        return stop.signal

    def one_step(self, bar: Progress, stop: Stopper) -> None:
        """One agent step in every environment, the updates that it earned, and what is due."""
        counters, began = self.counters, time.monotonic()
        before = replace(counters)
        explore = counters.agent_steps < self.config.prefill
        episodes = self.collector.step(self.replay, explore)
        counters.agent_steps = self.collector.steps
        counters.env_frames = counters.agent_steps * self.config.env.action_repeat
        self._note(episodes, bar)
        if self._ready():
            rows = self.agent.batch_size * self.agent.batch_length
            new_steps = counters.agent_steps - before.agent_steps
            counters.owed += new_steps * self.config.train_ratio / rows
            while counters.owed >= 1 and not stop.asked:
                self.learn()
        self._log_when_due(before, bar)
        evaluating = counters.eval_seconds - before.eval_seconds
        counters.train_seconds += time.monotonic() - began - evaluating
        minutes = before.train_seconds / 60, counters.train_seconds / 60
        if crossed(*minutes, self.config.checkpoint_minutes):
            self.save()
        bar.update(counters.agent_steps, counters.updates, counters.train_seconds)

    def learn(self) -> None:
        """One update. Raises RunError, after keeping the batch, where it is not finite."""
        try:
            self.means.add(self.agent.update(self.replay))
        except FloatingPointError as error:
            where = self._keep_batch(getattr(error, "batch", None))
            raise RunError(
                f"Update {self.counters.updates + 1} at step {self.counters.agent_steps} is not "
                f"finite: {error} {where} The last checkpoint is intact; to go on from it, lower "
                "the learning rate in a new run, or look for the cause in the batch."
            ) from error
        self.counters.owed -= 1
        self.counters.updates += 1

    def evaluate(self, episodes: int, record: bool = False) -> EvalResult:
        """Episodes on separate environments with the policy's mode, always the same ones."""
        began = time.monotonic()
        result = evaluate(
            self.agent,
            self.spec,
            self.config.env,
            episodes,
            seeding.spawn(self.config.seed, "evaluation"),
            self.config.eval_envs,
            record=record,
        )
        self.counters.eval_seconds += time.monotonic() - began
        return result

    def save(self) -> None:
        """Checkpoint everything; the replay first, so that the checkpoint never outruns it."""
        self.replay.save(self.place)
        state = {
            "agent": self.agent.state_dict(),
            "spec": checkpoint.spec_to_dict(self.spec),
            "counters": asdict(self.counters),
            "rng": seeding.rng_state(),
            "name": self.config.agent.name,
        }
        checkpoint.save(self.folder, state)

    def finish(self) -> dict[str, Any]:
        """The last evaluation, summary.json, the agent's video and one dream."""
        result = self.evaluate(self.config.final_episodes, record=True)
        self.save()
        scores = {"eval/return": result.mean, "eval/return_std": result.std}
        self.log.scalars(self.counters.agent_steps, {**scores, **self._progress()})
        summary = report.summarise(self, result)
        report.write_media(self, result)
        report.write_summary(self.folder, summary)
        return summary

    def close(self) -> None:
        """Let go of environments and log files."""
        self.envs.close()
        self.log.close()

    def _ready(self) -> bool:
        """Whether replay holds enough to learn from."""
        rows = len(self.replay)
        return (
            self.counters.agent_steps >= self.config.prefill
            and rows >= self.agent.min_rows
            and self.replay.can_sample(self.agent.batch_length)
        )

    def _note(self, episodes: list[Episode], bar: Progress) -> None:
        for episode in episodes:
            self.counters.episodes += 1
            self.scores.add({"episode/return": episode.score, "episode/length": episode.length})
            bar.score = episode.score

    def _log_when_due(self, before: Counters, bar: Progress) -> None:
        settings = self.config
        old, new = before.agent_steps, self.counters.agent_steps
        if crossed(old, new, settings.log_every):
            self.log.scalars(new, self._metrics())
        if crossed(old, new, settings.eval_every) and not self.finished:
            result = self.evaluate(settings.eval_episodes)
            scores = {"eval/return": result.mean, "eval/return_std": result.std}
            self.log.scalars(new, {**scores, **self._progress()})
            bar.say(
                f"step {new:,}: evaluation {result.mean:.1f} ± {result.std:.1f} over "
                f"{len(result.returns)} episodes"
            )
        if crossed(old, new, settings.video_every) and self._ready():
            report.film_dream(self)

    def _progress(self) -> dict[str, float]:
        """What every line of metrics holds beside its agent steps."""
        counters = self.counters
        return {
            "agent_steps": counters.agent_steps,
            "env_frames": counters.env_frames,
            "updates": counters.updates,
            "episodes": counters.episodes,
            "wall_clock_s": counters.train_seconds,
        }

    def _metrics(self) -> dict[str, float]:
        """Means since the last line, counters and rates."""
        counters = self.counters
        seconds = max(counters.train_seconds, 1e-9)
        return {
            **self.means.read(),
            **self.scores.read(),
            **self._progress(),
            "steps_per_s": counters.agent_steps / seconds,
            "updates_per_s": counters.updates / seconds,
            "replay_rows": len(self.replay),
        }

    @property
    def place(self) -> Path:
        """Where the replay lies."""
        return Path(self.config.replay.directory or self.folder / "replay")

    def _make_replay(self, fresh: bool) -> Replay:
        if fresh:  # files left by a run that was killed before its first checkpoint
            for pattern in ("*.bin", "index.json"):
                for path in self.place.glob(pattern):
                    path.unlink()
        replay = Replay(
            self.spec,
            self.config.replay,
            self.envs.num_envs,
            self.agent.latent_spec,
            seeding.spawn(self.config.seed, "replay"),
            self.place,
        )
        self.say(replay.footprint())
        return replay

    def _check_disk(self) -> None:
        """Say what the run will need, and refuse where it cannot fit."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"'{self.folder}' cannot be a run folder ({error}). Choose another run=..."
            ) from error
        shapes = checkpoint.tensors(self.agent.state_dict()).values()
        # An optimizer's two moments may not be there yet.
        state = 4 * max(sum(map(math.prod, shapes)), 3 * report.count_parameters(self.agent))
        rows = min(self.replay.capacity, self.config.steps + self.envs.num_envs)
        need = 3 * state + rows * self.replay.row_bytes  # newest, previous, and the next one
        held = sum(f.stat().st_size for f in self.folder.rglob("*") if f.is_file())
        free = shutil.disk_usage(self.folder).free
        self.say(
            f"run folder: {self.folder} (needs up to {need / 1e9:.2g} GB, holds "
            f"{held / 1e9:.2g}, {free / 1e9:.3g} GB free)"
        )
        if need - held > free:
            raise ConfigError(
                f"'{self.folder}' needs up to {need / 1e9:.2g} GB for checkpoints and replay, but "
                f"only {free / 1e9:.2g} GB are free. Make room, choose another run=..., or lower "
                "replay.capacity."
            )

    def _restore(self, saved: dict[str, Any]) -> None:
        checkpoint.restore(self.agent, saved["agent"], self.folder)
        self.replay.load(self.place)
        seeding.set_rng_state(saved["rng"])
        self.say(
            f"continuing '{self.folder}' at step {self.counters.agent_steps:,}, update "
            f"{self.counters.updates:,}"
        )

    def _keep_batch(self, batch: Batch | None) -> str:
        if batch is None:
            return ""
        path = self.folder / NAN_BATCH
        state = {
            **batch.obs,
            **{k: getattr(batch, k) for k in ("action", "reward", "is_first", "is_last")},
            "is_terminal": batch.is_terminal,
            "context": None if batch.context is None else tuple(batch.context),
        }
        torch.save(state, path)
        return f"The batch is in '{path}'."


def train(settings: TrainConfig, say: Callable[[str], None]) -> int:
    """Train to the end, evaluate and summarise; the process's exit code.

    0 when finished (or already was), 128 + n when signal n asked for a stop. Raises ConfigError
    for impossible settings and RunError where the run cannot go on.
    """
    summary = check_folder(settings)
    if summary is not None:
        say(f"'{settings.folder}' is finished already; for more, raise steps or max_minutes.")
        say(report.table(summary))
        return 0
    try:
        trainer = build(settings, say)
        try:
            signal = trainer.run()
            if signal is not None:
                say(
                    f"stopped at step {trainer.counters.agent_steps:,} with a checkpoint; the same "
                    "command continues."
                )
                return 128 + signal
            say(report.table(trainer.finish()))
        finally:
            trainer.close()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunError(
            f"The disk is full ({error}). The last checkpoint in '{settings.folder}' is intact: "
            "make room and give the same command again."
        ) from error
    return 0


def build(settings: TrainConfig, say: Callable[[str], None]) -> Trainer:
    """A Trainer; whatever it finds impossible becomes a ConfigError."""
    try:
        return Trainer(settings, say)
    except (checkpoint.CheckpointError, FileNotFoundError) as error:
        raise RunError(str(error)) from error
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
