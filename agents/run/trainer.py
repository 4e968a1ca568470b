"""One training run: collect one step, learn what is owed, log, evaluate, save, repeat.

    collect a step -> updates owed (train ratio) -> metrics -> log | evaluate | film | checkpoint

It knows the Agent protocol and no algorithm.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import agents
from agents.run import report
from agents.run.collect import Collector, Episode
from agents.run.evaluate import EvalResult, evaluate
from agents.run.nonfinite import SLOWER, Diverged, NonFinite
from agents.run.progress import Progress, Stopper
from agents.run.room import check_room, make_folder, still_room
from agents.run.settings import (
    CONFIG,
    Counters,
    TrainConfig,
    check_can_learn,
    check_unused,
    crossed,
)
from worldmodel import checkpoint, config, seeding
from worldmodel.accelerate import (
    keep_freed_memory,
    pick_device,
    set_deterministic,
    set_threads,
)
from worldmodel.config import RunError
from worldmodel.envs import describe, env_spec, make_vector
from worldmodel.log import Means, RunLog, log_sizes
from worldmodel.replay import Replay, ReplayDamaged


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
        self.envs = make_vector(settings.env, seed=seeding.spawn(settings.seed, "environments"))
        try:
            self.spec = env_spec(self.envs)
            say(describe(self.spec))
            self.agent = agents.make(settings.agent.name, self.spec, settings.agent, self.device)
            self.replay = self._make_replay(fresh=not begun)
            check_room(settings, self.agent, self.replay, say)
            check_can_learn(settings, self.agent, self.replay.capacity, self.envs.num_envs)
            saved = self._restore() if begun else None
            self.collector = Collector(
                self.envs,
                self.spec,
                self.agent,
                seeding.spawn(settings.seed, "exploration"),
                saved=saved and saved["collector"],
                say=say,
            )
            self.collector.steps = self.counters.agent_steps
            config.write(self.folder / CONFIG, settings)
            # A log of the first format has no positions; nothing of it is dropped.
            self.log = RunLog(self.folder, saved and (saved["log"] or log_sizes(self.folder)))
        except BaseException:
            self.envs.close()
            raise
        if saved:
            seeding.set_rng_state(saved["rng"])  # last: making things may have drawn numbers
        else:
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
            except RunError:  # an environment that fails, say
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
        counters.env_failures += len(self.collector.failures)
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
        if crossed(*minutes, self.config.checkpoint_minutes) and not self.nonfinite.row:
            self.save()
            still_room(self)
        bar.update(counters.agent_steps, counters.updates, counters.train_seconds)

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
            "collector": self.collector.state_dict(),
            "log": self.log.position(),
            "means": self.means.state_dict(),
            "scores": self.scores.state_dict(),
        }
        checkpoint.save(self.folder, state, self.config.checkpoints_kept)
        self.replay.commit()

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
            "skipped_updates": counters.skipped,
            "env_failures": counters.env_failures,
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

    def _restore(self) -> dict[str, Any]:
        """Agent, replay and counters of the newest checkpoint that is whole together with its
        replay; returns that checkpoint."""
        for saved in checkpoint.candidates(self.folder, self.say):
            try:
                self.replay.load(self.place, saved["replay"])
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
