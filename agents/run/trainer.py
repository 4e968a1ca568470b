"""One training run: collect one step, learn what is owed, log, evaluate, save, repeat.

    collect a step -> updates owed (train ratio) -> metrics -> log | evaluate | film | checkpoint
    (offline: one update)

Where the environments have processes of their own, the updates that step k earned are done while
step k + 1 is under way there: its actions were chosen before them. No step is under way when
anything is logged or saved.

It knows the Agent protocol and no algorithm. Several ranks (`accel.ranks`) go through it side by
side, and meet where this says `ranks`: everything that decides what happens next is equal on
all of them.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import agents
from agents.run import checkpoints, report, reporting, setup, shares
from agents.run.collect import Collector, Episode
from agents.run.config import (
    CONFIG,
    Counters,
    TrainConfig,
    check_can_learn,
    check_unused,
    crossed,
)
from agents.run.evaluate import EvalResult, evaluate
from agents.run.nonfinite import NonFinite
from agents.run.progress import Progress, Stopper
from agents.run.resources import check_room, make_folder, still_room
from agents.run.warm import warm_start
from worldmodel import checkpoint, config, seeding
from worldmodel.accel.devices import keep_freed_memory, set_deterministic, set_threads
from worldmodel.accel.ranks import RankLost, Ranks
from worldmodel.config import RunError
from worldmodel.envs import Vector, describe, env_spec, make_vector
from worldmodel.log import Means, RunLog, log_sizes
from worldmodel.replay import Replay
from worldmodel.replay.datasets import Dataset


class Trainer:
    """One run, ready to go on: new, or restored from the newest whole checkpoint in its folder.

    A restored run continues to the bit: weights, optimizer, generators, counters, the rows and
    latents of the replay, episodes in progress, metrics not yet written, and the logs' ends.
    ranks: of which this is one, with its share of the run (`shares`); alone by default.
    Raises ConfigError where the settings are impossible or the folder holds another run.
    """

    agent: agents.Agent
    replay: Replay
    log: RunLog  # on rank 0

    def __init__(
        self, settings: TrainConfig, say: Callable[[str], None], ranks: Ranks | None = None
    ) -> None:
        self.config, self.folder = settings, settings.folder
        self.ranks = ranks = ranks or Ranks()
        self.say, self.tell = shares.voices(say, ranks)
        self.share = ranks.all_or_none(lambda: shares.share_of(settings, ranks))
        self.counters = Counters()
        self.device = ranks.all_or_none(lambda: ranks.device(settings.device))
        ranks.all_or_none(lambda: set_threads(settings.threads))
        set_deterministic(settings.deterministic)
        keep_freed_memory()
        seeding.seed_everything(settings.seed)
        make_folder(self.folder)
        begun = ranks.gather_objects(checkpoint.exists(self.folder))[0]
        if not begun:
            ranks.all_or_none(lambda: check_unused(self.folder))
        self.means, self.scores = Means(), Means()
        self.nonfinite = NonFinite(shares.shard(self.folder, ranks.rank), settings.nonfinite_limit)
        self.envs, dataset = ranks.all_or_none(lambda: self._world(begun))
        try:
            ranks.all_or_none(lambda: self._make(begun, dataset))
            saved = checkpoints.restore(self) if begun else None
            if not begun:
                ranks.all_or_none(lambda: warm_start(self.share, self.agent, self.spec, self.say))
            shares.join(self.agent, ranks)
            if dataset is not None:
                ranks.all_or_none(lambda: setup.fill(self.replay, dataset, self.agent))
            self.collector = ranks.all_or_none(lambda: self._make_collector(saved))
            if ranks.first:
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

    def _make(self, begun: bool, dataset: Dataset | None) -> None:
        """Agent and replay, new, once it is known that there is room for them."""
        settings, say = self.share, self.say
        say(describe(self.spec))
        self.agent = agents.make(settings.agent.name, self.spec, settings.agent, self.device)
        if not self.ranks.first:
            seeding.seed_everything(settings.seed)  # all begin alike, and then draw their own
        self.replay = setup.make_replay(
            settings,
            self.spec,
            self.agent.columns,
            not begun,
            shares.shard(self.place, self.ranks.rank),
        )
        if self.ranks.first and not begun:
            shares.clear_others(self.place, self.ranks.size)
        say(self.replay.footprint())
        steps = len(self.replay) if begun else settings.steps // self.ranks.size
        rows = dataset.rows if dataset else steps
        check_room(settings, self.agent, self.replay, rows, say, self.ranks.size)
        check_can_learn(settings, self.agent, self.replay)

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
        seconds = limit and 60 * limit
        bar = Progress(self.config.length, start, seconds, self.say, unit, self.ranks.first)
        with Stopper(alone=self.ranks.size == 1) as stop:
            try:
                while not self.finished and not stop.asked:
                    self.one_step(bar, stop)
                self._learn_owed(stop)
                self.save()
            except RankLost:  # a checkpoint takes all of them
                raise
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
            self._learn_owed(stop)
        else:
            self._collect(self.collector, bar, stop)
        reporting.show(self, before, bar)
        evaluating = counters.eval_seconds - before.eval_seconds
        counters.train_seconds += time.monotonic() - began - evaluating
        self._agree_on(stop)
        minutes = before.train_seconds / 60, counters.train_seconds / 60
        if crossed(*minutes, self.config.checkpoint_minutes):
            self.settle()
            if not self.nonfinite.row:
                self.save()
                self.ranks.all_or_none(lambda: still_room(self))
        bar.update(self.clock, counters.updates, counters.train_seconds)

    def _agree_on(self, stop: Stopper) -> None:
        """The time, which is that of rank 0, and whether anybody asked to stop."""
        ranks, counters = self.ranks, self.counters
        if ranks.size == 1:
            return
        noted = stop.noted or (signal.SIGTERM if ranks.orphaned else 0)
        spent = counters.train_seconds if ranks.first else 0.0
        counters.train_seconds, asked = ranks.largest(spent, noted)
        stop.signal = int(asked) or None

    def _collect(self, collector: Collector, bar: Progress, stop: Stopper) -> None:
        """One agent step in every environment, and what it earns; what is owed is learned
        meanwhile or after it."""
        ranks, before = self.ranks, collector.steps
        explore = self.counters.agent_steps < self.config.prefill
        if self.overlap:
            ranks.all_or_none(lambda: collector.begin(explore))
            self._learn_owed(stop)
            episodes = ranks.all_or_none(lambda: collector.finish(self.replay))
        else:
            episodes = ranks.all_or_none(lambda: collector.step(self.replay, explore))
        self._earn(collector.steps - before, len(collector.failures), episodes, bar)
        if not self.overlap:
            self._learn_owed(stop)

    @property
    def overlap(self) -> bool:
        """Whether updates are done while environments step: where they can, side by side."""
        return self.config.overlap and self.config.env.vector == "async"

    def _earn(self, steps: int, failures: int, episodes: list[Episode], bar: Progress) -> None:
        """Count what this rank collected together with all others, and the updates owed for it."""
        counters, ranks = self.counters, self.ranks
        told = ranks.sums(steps, failures, len(episodes), not self._can_sample())
        new, failed, ended, waiting = map(int, told)
        counters.agent_steps += new
        counters.env_frames = counters.agent_steps * self.config.env.action_repeat
        counters.env_failures += failed
        if ended:
            self._note(shares.flattened(ranks.gather_objects(episodes)), bar)
        if not waiting and counters.agent_steps >= self.config.prefill:
            rows = ranks.size * self.agent.batch_size * self.agent.batch_length
            counters.owed += new * self.config.train_ratio / rows

    def _learn_owed(self, stop: Stopper) -> None:
        while self.counters.owed >= 1 and not (stop.asked or self._learned_enough):
            self.learn()

    def learn(self) -> None:
        """One update; skipped, and its batch kept, where it is not finite. Raises Diverged where
        too many in a row are not.

        A GPU's is only begun, and the one before may fail here: that one is then not counted.
        """
        self.counters.owed -= 1
        self._count(lambda: self.agent.update(self.replay), 1)

    def settle(self) -> None:
        """Bring the update that a GPU may have begun to its end: it belongs to what is kept."""
        self._count(lambda: self.agent.settle(self.replay), 0)

    def _count(self, learn: Callable[[], Mapping[str, Any]], begun: int) -> None:
        counters = self.counters
        try:
            metrics = learn()
        except FloatingPointError as error:
            later = getattr(error, "under_way", 0)
            counters.skipped += 1
            counters.updates += begun - 1 - later
            self.say(self.nonfinite.skip(error, self.agent, counters.updates))
            counters.updates += later
            return
        self.means.add(metrics)
        if metrics:  # it was finite
            self.nonfinite.row = 0
        counters.updates += begun

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
        """Checkpoint everything, all or nothing."""
        self.settle()
        checkpoints.save(self)

    def finish(self) -> dict[str, Any] | None:
        """The last evaluation, where there is an environment, summary.json, the agent's video and
        one dream; None on other ranks than 0."""
        first = self.ranks.first
        result = None
        if self.config.has_env:
            result = self.ranks.all_or_none(lambda: self._last_evaluation() if first else None)
        self.save()
        if not first:
            return None
        if result is not None:
            scores = {"eval/return": result.mean, "eval/return_std": result.std}
            self.log.scalars(self.clock, {**scores, **report.progress(self.counters)})
        summary = report.summarise(self, result)
        report.write_media(self, result)
        report.write_summary(self.folder, summary)
        return summary

    def _last_evaluation(self) -> EvalResult:
        return self.evaluate(self.config.final_episodes, record=True)

    def close(self) -> None:
        """Let go of environments and log files."""
        self._close_envs()
        if self.ranks.first:
            self.log.close()

    def _close_envs(self) -> None:
        if self.envs is not None:
            self.envs.close()

    @property
    def ready(self) -> bool:
        """Whether there is enough to learn from, here."""
        return self.counters.agent_steps >= self.config.prefill and self._can_sample()

    def _can_sample(self) -> bool:
        enough = self.agent.learns and len(self.replay) >= self.agent.min_rows
        return enough and self.replay.can_sample(self.agent.batch_length)

    def _note(self, episodes: list[Episode], bar: Progress) -> None:
        for episode in episodes:
            self.counters.episodes += 1
            self.scores.add({"episode/return": episode.score, "episode/length": episode.length})
            bar.score = episode.score

    @property
    def place(self) -> Path:
        """Where the replay lies, that of rank 0 and below it those of the others."""
        return self.config.replay_folder

    def _world(self, begun: bool) -> tuple[Vector | None, Dataset | None]:
        """The environments, or what was recorded of one (needed once, to fill the replay); and
        with them what the agent will see."""
        settings = self.share
        if not settings.offline:
            envs = make_vector(settings.env, seed=seeding.spawn(settings.seed, "environments"))
            self.spec = env_spec(envs)
            return envs, None
        dataset = None if begun else setup.recording(settings, self.say)
        self.spec = setup.recorded_spec(settings) if dataset is None else dataset.spec
        return None, dataset

    def _make_collector(self, saved: dict[str, Any] | None) -> Collector | None:
        """The collector, where there is something to collect, in the middle of its episodes."""
        if self.envs is None:
            return None
        collector = Collector(
            self.envs,
            self.spec,
            self.agent,
            seeding.spawn(self.share.seed, "exploration"),
            saved=saved and saved["collector"],
            say=self.tell,
        )
        if saved and not saved["collector"]:
            collector.steps = self.counters.agent_steps
        return collector
