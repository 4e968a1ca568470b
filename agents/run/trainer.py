"""One training run: collect one step, learn what is owed, log, evaluate, save, repeat.

    collect a step -> updates owed (train ratio) -> metrics -> log | evaluate | film | checkpoint
    (offline: one update)

It knows the Agent protocol and no algorithm.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import agents
from agents.run import begin, report
from agents.run.collect import Collector, Episode
from agents.run.evaluate import EvalResult, evaluate
from agents.run.nonfinite import SLOWER, Diverged, NonFinite
from agents.run.progress import Progress, Stopper
from agents.run.room import check_room, make_folder, still_room
from agents.run.saved import check_saved
from agents.run.settings import (
    CONFIG,
    Counters,
    TrainConfig,
    check_can_learn,
    check_unused,
    crossed,
)
from agents.run.warm import warm_start
from worldmodel import checkpoint, config, seeding
from worldmodel.accelerate import (
    keep_freed_memory,
    pick_device,
    set_deterministic,
    set_threads,
)
from worldmodel.config import RunError
from worldmodel.envs import Vector, describe, env_spec, make_vector
from worldmodel.log import Means, RunLog, log_sizes
from worldmodel.replay import ReplayDamaged
from worldmodel.replay.datasets import Dataset


class Trainer:
    """One run, ready to go on: new, or restored from the newest whole checkpoint in its folder.

    A restored run continues to the bit: weights, optimizer, generators, counters, the rows and
    latents of the replay, episodes in progress, metrics not yet written, and the logs' ends.
    Raises ConfigError where the settings are impossible or the folder holds another run.
    """

    def __init__(self, settings: TrainConfig, say: Callable[[str], None]) -> None:
        self.config, self.say, self.folder = settings, say, settings.folder
        self.counters = Counters()
        self.device = pick_device(settings.device)
        set_threads(settings.threads)
        set_deterministic(settings.deterministic)
        keep_freed_memory()
        seeding.seed_everything(settings.seed)
        make_folder(self.folder)
        begun = checkpoint.exists(self.folder)
        if not begun:
            check_unused(self.folder)
        self.means, self.scores = Means(), Means()
        self.nonfinite = NonFinite(self.folder, settings.nonfinite_limit)
        self.envs, dataset = self._world(begun)
        try:
            say(describe(self.spec))
            self.agent = agents.make(settings.agent.name, self.spec, settings.agent, self.device)
            latent = self.agent.latent_spec
            self.replay = begin.make_replay(settings, self.spec, latent, fresh=not begun)
            say(self.replay.footprint())
            steps = len(self.replay) if begun else settings.steps
            check_room(settings, self.agent, self.replay, dataset.rows if dataset else steps, say)
            check_can_learn(settings, self.agent, self.replay)
            saved = self._restore() if begun else None
            if not begun:
                warm_start(settings, self.agent, self.spec, say)
            if dataset is not None:
                begin.fill(self.replay, dataset, self.agent)
            self.collector = self._make_collector(saved)
            config.write(self.folder / CONFIG, settings)
            # A log of the first format has no positions; nothing of it is dropped.
            self.log = RunLog(self.folder, saved and (saved["log"] or log_sizes(self.folder)))
        except BaseException:
            self._close_envs()
            raise
        if saved:
            with checkpoint.understood("rng", self.folder):
                seeding.set_rng_state(saved["rng"])  # last: making things may have drawn numbers
        else:
            self.save()  # so that a folder with a config can always be continued

    @property
    def finished(self) -> bool:
        """Whether the last step or update is done, or the time is up."""
        minutes = self.config.max_minutes
        over = minutes is not None and self.counters.train_seconds >= 60 * minutes
        return self.clock >= self.config.length or self._learned_enough or over

    @property
    def _learned_enough(self) -> bool:
        return 0 < self.config.updates <= self.counters.updates

    @property
    def clock(self) -> int:
        """What the run's length and its "every" are counted in: agent steps, or offline updates."""
        return self.counters.updates if self.config.offline else self.counters.agent_steps

    def run(self) -> int | None:
        """Train until finished; the number of the signal, where one asked to stop earlier."""
        limit = self.config.max_minutes
        start = (self.clock, self.counters.updates)
        unit = "update" if self.config.offline else "step"
        bar = Progress(self.config.length, start, limit and 60 * limit, self.say, unit)
        with Stopper() as stop:
            try:
                while not self.finished and not stop.asked:
                    self.one_step(bar, stop)
                self.save()
            except RunError:  # an environment that fails, say
                self.save()  # what was learned until then is sound
                raise
            finally:
                bar.close()
        return stop.signal

    def one_step(self, bar: Progress, stop: Stopper) -> None:
        """One agent step in every environment and the updates that it earned, or offline one
        update; then what is due."""
        counters, began = self.counters, time.monotonic()
        before = replace(counters)
        if self.collector is None:
            counters.owed = 1.0
        else:
            self._collect(self.collector, bar)
        while counters.owed >= 1 and not (stop.asked or self._learned_enough):
            self.learn()
        self._log_when_due(before, bar)
        evaluating = counters.eval_seconds - before.eval_seconds
        counters.train_seconds += time.monotonic() - began - evaluating
        minutes = before.train_seconds / 60, counters.train_seconds / 60
        if crossed(*minutes, self.config.checkpoint_minutes) and not self.nonfinite.row:
            self.save()
            still_room(self)
        bar.update(self.clock, counters.updates, counters.train_seconds)

    def _collect(self, collector: Collector, bar: Progress) -> None:
        """One agent step in every environment, and what it earns."""
        counters, before = self.counters, self.counters.agent_steps
        episodes = collector.step(self.replay, before < self.config.prefill)
        counters.agent_steps = collector.steps
        counters.env_frames = counters.agent_steps * self.config.env.action_repeat
        counters.env_failures += len(collector.failures)
        self._note(episodes, bar)
        if self._ready():
            rows = self.agent.batch_size * self.agent.batch_length
            counters.owed += (counters.agent_steps - before) * self.config.train_ratio / rows

    def learn(self) -> None:
        """One update; skipped, and its batch kept, where it is not finite. Raises Diverged where
        too many in a row are not."""
        counters = self.counters
        counters.owed -= 1
        try:
            self.means.add(self.agent.update(self.replay))
        except FloatingPointError as error:
            counters.skipped += 1
            self.say(self.nonfinite.skip(error, self.agent, counters.updates))
            return
        self.nonfinite.row = 0
        counters.updates += 1

    def go_back(self, error: Diverged) -> None:
        """Having been restored from the last checkpoint: lower the learning rate, and keep that.

        Raises RunError where the agent cannot, or where that was tried often enough.
        """
        slow_down = getattr(self.agent, "slow_down", None)
        if slow_down is None or self.counters.rollbacks >= self.config.max_rollbacks:
            raise RunError(
                f"{error} The run went back to its last checkpoint {self.counters.rollbacks} times "
                "with a lower learning rate and that did not help, so it stopped. Look for the "
                "cause in what was kept, or start a new run with a lower learning rate."
            ) from error
        self.counters.rollbacks += 1
        slow_down(SLOWER)
        self.save()
        self.say(
            f"{error} Went back to step {self.counters.agent_steps:,}, update "
            f"{self.counters.updates:,}, with {SLOWER:g} times the learning rate "
            f"({self.counters.rollbacks} of {self.config.max_rollbacks})."
        )

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
        """Checkpoint everything, all or nothing.

        replay.save        what changed, in a new file; older checkpoints lose nothing
        checkpoint.save    the one moment at which the new state holds
        replay.commit      the changes become part of the replay's files
        """
        replay = self.replay.save(self.place)
        state = {
            "agent": self.agent.state_dict(),
            "spec": checkpoint.spec_to_dict(self.spec),
            "counters": asdict(self.counters),
            "rng": seeding.rng_state(),
            "name": self.config.agent.name,
            "replay": replay,
            "collector": self.collector and self.collector.state_dict(),
            "log": self.log.position(),
            "means": self.means.state_dict(),
            "scores": self.scores.state_dict(),
        }
        checkpoint.save(self.folder, state, self.config.checkpoints_kept)
        self.replay.commit()

    def finish(self) -> dict[str, Any]:
        """The last evaluation, where there is an environment, summary.json, the agent's video and
        one dream."""
        result = None
        if self.config.has_env:
            result = self.evaluate(self.config.final_episodes, record=True)
        self.save()
        if result is not None:
            scores = {"eval/return": result.mean, "eval/return_std": result.std}
            self.log.scalars(self.clock, {**scores, **report.progress(self.counters)})
        summary = report.summarise(self, result)
        report.write_media(self, result)
        report.write_summary(self.folder, summary)
        return summary

    def close(self) -> None:
        """Let go of environments and log files."""
        self._close_envs()
        self.log.close()

    def _close_envs(self) -> None:
        if self.envs is not None:
            self.envs.close()

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
        offline = bool(settings.offline)
        old, new = before.updates if offline else before.agent_steps, self.clock
        if crossed(old, new, settings.log_every):
            self.log.scalars(new, report.metrics(self))
        evaluates = settings.has_env and not self.finished
        if evaluates and crossed(old, new, settings.eval_every):
            result = self.evaluate(settings.eval_episodes)
            scores = {"eval/return": result.mean, "eval/return_std": result.std}
            self.log.scalars(new, {**scores, **report.progress(self.counters)})
            bar.say(
                f"{bar.unit} {new:,}: evaluation {result.mean:.1f} ± {result.std:.1f} over "
                f"{len(result.returns)} episodes"
            )
        if crossed(old, new, settings.video_every) and self._ready():
            report.film_dream(self)

    @property
    def place(self) -> Path:
        """Where the replay lies."""
        return self.config.replay_folder

    def _world(self, begun: bool) -> tuple[Vector | None, Dataset | None]:
        """The environments, or what was recorded of one (needed once, to fill the replay); and
        with them what the agent will see."""
        settings = self.config
        if not settings.offline:
            envs = make_vector(settings.env, seed=seeding.spawn(settings.seed, "environments"))
            self.spec = env_spec(envs)
            return envs, None
        dataset = None if begun else begin.recording(settings, self.say)
        self.spec = begin.recorded_spec(settings) if dataset is None else dataset.spec
        return None, dataset

    def _make_collector(self, saved: dict[str, Any] | None) -> Collector | None:
        """The collector, where there is something to collect, in the middle of its episodes."""
        if self.envs is None:
            return None
        collector = Collector(
            self.envs,
            self.spec,
            self.agent,
            seeding.spawn(self.config.seed, "exploration"),
            saved=saved and saved["collector"],
            say=self.say,
        )
        collector.steps = self.counters.agent_steps
        return collector

    def _restore(self) -> dict[str, Any]:
        """Agent, replay and counters of the newest checkpoint that is whole together with its
        replay; returns that checkpoint."""
        for saved in checkpoint.candidates(self.folder, self.say):
            check_saved(saved, self.folder)
            try:
                begin.load_replay(self.replay, self.place, saved["replay"], self.say)
            except ReplayDamaged as error:
                self.say(f"{error} Trying the checkpoint before.")
                continue
            checkpoint.restore(self.agent, saved["agent"], self.folder)
            self.counters = Counters(**saved["counters"])
            for means, name in ((self.means, "means"), (self.scores, "scores")):
                if name in saved:  # the first format kept none
                    means.load_state_dict(saved[name])
            self.say(
                f"continuing '{self.folder}' at step {self.counters.agent_steps:,}, update "
                f"{self.counters.updates:,}"
            )
            return saved
        raise AssertionError("candidates ends with an error")
