"""One training run: collect one step, learn what is owed, report, save, repeat.

    collect a step -> updates owed (train ratio) -> metrics -> log | evaluate | film | checkpoint
    (offline: one update; an agent with phases says which of the two comes next)

Where the environments have processes of their own, the updates that step k earned are done while
step k + 1 is under way there: its actions were chosen before them. No step is under way when
anything is logged or saved.

Several ranks (`accel.ranks`) go through it side by side, and meet where this says `ranks`:
everything that decides what happens next is equal on all of them.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import agents
from agents.run import checkpoints, clock, report, setup, shares
from agents.run.collect import Collector, Episode
from agents.run.config import CONFIG, TrainConfig, crossed
from agents.run.evaluate import EvalResult, evaluate
from agents.run.folder import check_disk, check_memory, check_unused
from agents.run.learn import Learner
from agents.run.progress import Progress, Stopper
from agents.run.state import RunState
from agents.run.warm import warm_start
from worldmodel import checkpoint, config, seeding
from worldmodel.accel.devices import keep_freed_memory, set_deterministic, set_threads
from worldmodel.accel.ranks import RankLost, Ranks
from worldmodel.config import RunError
from worldmodel.entry import OutputGone
from worldmodel.envs import EnvError, Vector, describe, env_spec, make_vector, notes
from worldmodel.folders import make_folder
from worldmodel.log import RunLog
from worldmodel.replay.datasets import Dataset
from worldmodel.types import EnvSpec


class Trainer:
    """One run, ready to go on: new, or restored from the newest intact checkpoint in its folder.

    A restored run continues to the bit: weights, optimizer, generators, counters, the rows of the
    replay, episodes in progress, metrics not yet written, and the logs' ends.
    ranks: of which this is one, with its share of the run (`shares`); alone by default.
    Raises ConfigError where the settings are impossible or the folder holds another run.
    """

    log: RunLog  # on rank 0

    def __init__(
        self, settings: TrainConfig, say: Callable[[str], None], ranks: Ranks | None = None
    ) -> None:
        self.config, self.folder = settings, settings.folder
        self.ranks = ranks = ranks or Ranks()
        self.say, self.say_here = shares.say_once(say, ranks), shares.say_with_rank(say, ranks)
        share = ranks.all_or_none(lambda: shares.share_of(settings, ranks))
        self.device = ranks.all_or_none(lambda: ranks.device(settings.device))
        ranks.all_or_none(lambda: set_threads(settings.threads))
        set_deterministic(settings.deterministic)
        keep_freed_memory()
        seeding.seed_everything(settings.seed)
        make_folder(self.folder, "run")
        begun = ranks.gather_objects(checkpoint.exists(self.folder))[0]
        if not begun:
            ranks.all_or_none(lambda: check_unused(self.folder))
        self._open = ExitStack()  # what `close` closes
        self._began = time.monotonic()  # the step under way
        self._evaluation_due = False  # but waits for the end of an episode
        self.envs, dataset, spec, rows = ranks.all_or_none(lambda: self._open_world(share, begun))
        try:
            self.state = ranks.all_or_none(lambda: self._new_state(share, spec, rows, begun))
            place, limit = shares.shard(self.folder, ranks.rank), settings.nonfinite_limit
            self.learner = Learner(self.state, place, limit, self.say)
            self._begin(share, dataset, begun)
        except BaseException:
            self.close()
            raise

    def _open_world(
        self, share: TrainConfig, begun: bool
    ) -> tuple[Vector | None, Dataset | None, EnvSpec, int]:
        """The environments, or what was recorded of one (needed once, to fill the replay); what
        the agent will see, and in how many rows."""
        if not share.offline:
            whole = agents.agent_class(share.agent.name).whole_episodes
            envs = make_vector(share.env, None, seeding.spawn(share.seed, "environments"), whole)
            self._open.callback(envs.close)
            setup.check_judged(share.env, env_spec(envs))
            return envs, None, env_spec(envs), share.steps // self.ranks.size
        if begun:
            return None, None, *setup.recorded(share)
        dataset = setup.recording(share, self.say)
        return None, dataset, dataset.spec, dataset.rows

    def _new_state(self, share: TrainConfig, spec: EnvSpec, rows: int, begun: bool) -> RunState:
        """Agent and replay, new, once it is known that there is room for them."""
        ranks, settings = self.ranks, self.config
        self.say(describe(spec, notes(self.envs) if self.envs else {}))
        agent = agents.make(share.agent.name, spec, share.agent, self.device)
        if agent.learns:
            self.say(f"maximised: {report.objective(agent.control, share.env.reward)}")
        if not ranks.first:
            seeding.seed_everything(share.seed)  # all begin alike, and then draw their own
        place = shares.shard(settings.replay_folder, ranks.rank)
        replay = setup.make_replay(share, spec, agent, not begun, place, rows)
        if ranks.first and not begun:
            shares.clear_others(place, ranks.size)
        self.say(replay.footprint())
        check_disk(share, agent, replay, 0 if begun else rows, self.say, ranks.size)
        setup.check_can_learn(share, agent, replay, ranks.size, None if begun else self.say)
        return RunState(spec, agent, replay, place)

    def _begin(self, share: TrainConfig, dataset: Dataset | None, begun: bool) -> None:
        """Bring agent, replay, episodes, log and generators to where the run begins or goes on."""
        ranks, state, saved = self.ranks, self.state, None
        if begun:
            saved = checkpoints.restore(state, self.folder, ranks, self.say, self.say_here)
        else:
            ranks.all_or_none(lambda: warm_start(share, state.agent, state.spec, self.say))
        shares.join(state.agent, ranks)
        if dataset is not None:
            ranks.all_or_none(lambda: setup.fill(state.replay, dataset, state.agent))
        if (envs := self.envs) is not None:
            seed = seeding.spawn(share.seed, "exploration")
            episodes = saved and saved["collector"]
            state.collector = ranks.all_or_none(
                lambda: Collector(
                    envs, state.spec, state.agent, seed, saved=episodes, say=self.say_here
                )
            )
        if ranks.first:
            config.write(self.folder / CONFIG, self.config)
            self.log = RunLog(self.folder, saved and saved["log"])
            self._open.callback(self.log.close)
        if saved:
            with checkpoint.explain_errors("rng", self.folder):
                seeding.set_rng_state(saved["rng"])  # last: making things may have drawn numbers
        else:
            self.save()  # so that a folder with a config can always be continued

    @property
    def finished(self) -> bool:
        """Whether the last step or update is done, or the time is up."""
        return clock.is_over(self.config, self.state.counters, self.state.agent.agenda)

    @property
    def _learned_enough(self) -> bool:
        counters, since = self.state.counters, time.monotonic() - self._began
        late = clock.is_late(self.config, counters.train_seconds + since)
        return (late and self.ranks.size == 1) or clock.learned_enough(self.config, counters)

    @property
    def clock(self) -> int:
        """Where the run stands; see agents.run.clock."""
        return clock.position(self.config, self.state.counters, self.state.agent.agenda)

    @property
    def overlap(self) -> bool:
        """Whether updates are done while environments step: where they can, side by side."""
        return self.config.overlap and self.config.env.vector == "async"

    def run(self) -> int | None:
        """Train until finished; the number of the signal, where one asked to stop earlier."""
        start = (self.clock, self.state.counters.updates)
        agenda = self.state.agent.agenda
        length, unit = clock.length(self.config, agenda), clock.unit(self.config, agenda)
        seconds = self.config.max_minutes and 60 * self.config.max_minutes
        bar = Progress(length, start, seconds, self.say, unit, self.ranks.first)
        with Stopper(alone=self.ranks.size == 1) as stop:
            try:
                while not self.finished and not stop.asked:
                    self.one_step(bar, stop)
                self._learn_owed(stop)
                self.save()
            except RankLost:  # a checkpoint takes all of them
                raise
            except (RunError, OutputGone):  # an environment that fails, say
                self.save()  # what was learned until then is sound
                raise
            finally:
                bar.close()
        return stop.signal

    def one_step(self, bar: Progress, stop: Stopper) -> None:
        """One agent step in every environment and the updates that it earned, or offline one
        update; then what is due."""
        counters, self._began = self.state.counters, time.monotonic()
        before, agenda = replace(counters), self.state.agent.agenda
        if self.state.collector is None or (agenda is not None and not agenda.collecting):
            counters.owed = 1.0
            self._learn_owed(stop)
        else:
            self._collect(self.state.collector, bar, stop)
        self._report(clock.position(self.config, before, agenda), bar)
        spent, self._began = time.monotonic() - self._began, time.monotonic()
        counters.train_seconds += spent - (counters.eval_seconds - before.eval_seconds)
        self._agree_on(stop)
        minutes = before.train_seconds / 60, counters.train_seconds / 60
        if crossed(*minutes, self.config.checkpoint_minutes):
            self.learner.settle()
            if not self.learner.failed:
                self.save()
                self.ranks.all_or_none(lambda: check_memory(counters.agent_steps))
        if agenda is not None:
            bar.total, bar.phase = clock.length(self.config, agenda), agenda.phase
        bar.update(self.clock, counters.updates, counters.train_seconds)

    def _agree_on(self, stop: Stopper) -> None:
        """The time, which is that of rank 0, and whether anybody asked to stop."""
        ranks, counters = self.ranks, self.state.counters
        if ranks.size == 1:
            return
        noted = stop.noted or (signal.SIGTERM if ranks.orphaned else 0)
        spent = counters.train_seconds if ranks.first else 0.0
        counters.train_seconds, asked = ranks.largest(spent, noted)
        stop.signal = int(asked) or None

    def _collect(self, collector: Collector, bar: Progress, stop: Stopper) -> None:
        """One agent step in every environment, and what it earns; what is owed is learned
        meanwhile or after it."""
        ranks, replay, before = self.ranks, self.state.replay, collector.steps
        explore = self.state.counters.agent_steps < self.config.prefill
        if self.overlap:
            ranks.all_or_none(lambda: collector.begin(explore))
            self._learn_owed(stop)
            episodes = ranks.all_or_none(lambda: collector.finish(replay))
        else:
            episodes = ranks.all_or_none(lambda: collector.step(replay, explore))
        self._earn(collector.steps - before, len(collector.failures), episodes, bar)
        if not self.overlap:
            self._learn_owed(stop)

    def _earn(self, steps: int, failures: int, episodes: list[Episode], bar: Progress) -> None:
        """Count what this rank collected together with all others, and the updates owed for it."""
        state, ranks = self.state, self.ranks
        counters, agent = state.counters, state.agent
        sums = ranks.sums(steps, failures, len(episodes), not state.can_sample)
        new, failed, ended, waiting = map(int, sums)
        counters.agent_steps += new
        counters.env_frames = counters.agent_steps * self.config.env.action_repeat
        counters.env_failures += failed
        if ended:
            for episode in (one for part in ranks.gather_objects(episodes) for one in part):
                counters.episodes += 1
                score = {"episode/return": episode.score, "episode/length": episode.length}
                state.scores.add(score)
                bar.score = episode.score
        if agent.agenda is None and not waiting and counters.agent_steps >= self.config.prefill:
            rows = ranks.size * agent.batch_size * agent.batch_length
            counters.earn(new * self.config.train_ratio / rows, self.config.first_updates)

    def _learn_owed(self, stop: Stopper) -> None:
        while self.state.counters.owed >= 1 and not (stop.asked or self._learned_enough):
            self.learner.update()

    def _report(self, before: int, bar: Progress) -> None:
        """The line of metrics, the evaluation and the film that are due since the clock said
        `before`; rank 0 alone makes them, and the others wait."""
        settings, ranks, now = self.config, self.ranks, self.clock
        if crossed(before, now, settings.log_every):
            self.learner.settle()
            values = report.metrics(self.state, ranks)
            if ranks.first:
                self.log.scalars(now, values)
        evaluates = settings.has_env and not self.finished
        evaluates &= crossed(before, now, settings.eval_every) or self._evaluation_due
        if evaluates and settings.eval_envs == 0 and (collector := self.state.collector):
            self._evaluation_due = not collector.rows["is_first"].all()
            evaluates = not self._evaluation_due
        films = crossed(before, now, settings.video_every)
        if evaluates or films:
            ranks.all_or_none(lambda: self._show(bar, evaluates, films) if ranks.first else None)

    def _show(self, bar: Progress, evaluates: bool, films: bool) -> None:
        state, now = self.state, self.clock
        if evaluates:
            result = self.evaluate(self.config.eval_episodes)
            if result is not None:
                self.log.scalars(now, report.scores(result, state.counters))
                bar.say(f"{bar.unit} {now:,}: evaluation {result.line()}")
        if films and state.counters.agent_steps >= self.config.prefill and state.can_sample:
            report.log_dream(self.log, now, state)

    def evaluate(self, episodes: int, record: bool = False) -> EvalResult | None:
        """Episodes as `eval_mode` says, always the same ones, on separate environments (or on
        the training's, if eval_envs is 0); None, with the reason said, where those fail."""
        began, settings, collector = time.monotonic(), self.config, self.state.collector
        inside = self.envs if settings.eval_envs == 0 else None
        seed = seeding.spawn(settings.seed, "evaluation")
        about = self.state.agent, self.state.spec, settings.env, episodes, seed, settings.eval_envs
        try:
            result = evaluate(*about, settings.eval_mode, record=record, inside=inside)
            if inside is not None and collector is not None:
                again = f"environments after an evaluation at {collector.steps}"
                collector.begin_episodes(seeding.spawn(settings.seed, again))
            return result
        except (RunError, EnvError) as error:
            self.say(
                f"warning: the evaluation failed, and the run goes on without it. {error} Should "
                "there be no room for other environments beside the training's, give eval_envs=1 "
                "for the last evaluation, eval_envs=0 to play in the training's own, or "
                "final_episodes=0 and eval_every=0 for none."
            )
            return None
        finally:
            self.state.counters.eval_seconds += time.monotonic() - began

    def save(self) -> None:
        """Checkpoint everything, all or nothing."""
        self.learner.settle()
        log = self.log if self.ranks.first else None
        checkpoints.save(self.state, self.folder, log, self.config.checkpoints_kept, self.ranks)

    def finish(self) -> dict[str, Any] | None:
        """The last evaluation, summary.json, video and one dream; None on other ranks than 0."""
        settings, state, first = self.config, self.state, self.ranks.first
        episodes, result = settings.final_episodes, None
        if self.envs is not None and not state.counters.episodes:
            self.say(
                f"No episode ended in {state.counters.agent_steps:,} steps of training. Should "
                "nothing end one, evaluations cut it off (env.longest_episode); env.time_limit=... "
                "gives training an end, too."
            )
        if self.envs is not None and settings.eval_envs:
            self.envs.close()  # there may be room for no more than these
        if settings.has_env and episodes:
            result = self.ranks.all_or_none(
                lambda: self.evaluate(episodes, record=True) if first else None
            )
        self.save()
        if self.envs is not None:
            self.envs.close()  # before the film's is made
        if not first:
            return None
        if result is not None:
            self.log.scalars(self.clock, report.scores(result, state.counters))
        summary = report.summarise(settings, state, self.device, result)
        report.write_last(self.log, self.clock, state, settings.env, result)
        report.write_summary(self.folder, summary)
        return summary

    def close(self) -> None:
        """Let go of environments and log files."""
        self._open.close()
