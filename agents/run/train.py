"""From settings to a trained agent: one run folder, one process or several ranks, to the end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from agents.run import report, shares
from agents.run.config import TrainConfig
from agents.run.folder import HOLDER, RunLock, check_folder
from agents.run.learn import Diverged
from agents.run.trainer import Trainer
from worldmodel import checkpoint
from worldmodel.accel.devices import out_of_memory
from worldmodel.accel.ranks import FailedElsewhere, RankLost, Ranks
from worldmodel.atomic import is_full
from worldmodel.config import ConfigError, RunError
from worldmodel.entry import INTERRUPTED
from worldmodel.folders import make_folder

SLOWER = 0.5  # times the learning rate, each time that a run goes back


def train(settings: TrainConfig, say: Callable[[str], None]) -> int:
    """Train to the end, evaluate and summarise; the process's exit code.

    Under torchrun this is one of several ranks, and returns when all have come to the same end.

    0 when finished (or already was), 128 + n when signal n asked for a stop; 1 on a rank whose
    error rank 0 raises. Raises ConfigError for impossible settings and RunError where the run
    cannot go on; its last checkpoint is then intact.
    """
    ranks = Ranks.join()
    try:
        with ExitStack() as stack:
            ranks.all_or_none(lambda: stack.enter_context(_lock(settings, say, ranks)))
            ranks.all_or_none(lambda: shares.check_shared(settings.folder / HOLDER, ranks))
            code = _train_as(settings, say, ranks)
            ranks.barrier()  # or torchrun takes those for hanging that end a little later
        return code
    except FailedElsewhere:
        return 1
    finally:
        ranks.close()


def _lock(settings: TrainConfig, say: Callable[[str], None], ranks: Ranks) -> RunLock:
    """That of the run folder, or on other ranks than 0 that of the rank's part of the replay."""
    place = settings.folder if ranks.first else shares.shard(settings.replay_folder, ranks.rank)
    make_folder(place, "run")
    return RunLock(place, shares.say_once(say, ranks))


def _train_as(settings: TrainConfig, say: Callable[[str], None], ranks: Ranks) -> int:
    """Train as one of the ranks, whose folder is locked; the exit code."""
    once = shares.say_once(say, ranks)
    summary = ranks.all_or_none(lambda: check_folder(settings, once))
    if summary is not None:
        once(f"'{settings.folder}' is finished already; for more, raise steps or max_minutes.")
        once(report.table(summary))
        return 0
    try:
        return _train(settings, say, ranks)
    except OSError as error:
        if not is_full(error) or not checkpoint.exists(settings.folder):
            raise
        raise RunError(
            f"The disk is full ({error}). The last checkpoint in '{settings.folder}' is "
            "intact: make room and give the same command again."
        ) from error
    except (FailedElsewhere, RankLost):
        raise
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise RunError(
            f"Memory ran out ({str(error) or 'no more to be had'}). The last checkpoint in "
            f"'{settings.folder}' is intact: free memory and give the same command again, or "
            "start a smaller run (replay.storage=disk, replay.capacity, size)."
        ) from error


def _train(settings: TrainConfig, say: Callable[[str], None], ranks: Ranks) -> int:
    """Train; when too many updates fail, go back to the last checkpoint and try more slowly."""
    trainer = build(settings, say, ranks)
    try:
        while True:
            try:
                signal = trainer.run()
                break
            except Diverged as error:
                check_can_go_back(trainer, error)
                trainer.close()
                trainer = build(settings, say, ranks)
                go_back(trainer, error)
        if signal is not None:
            trainer.say(
                f"stopped at step {trainer.state.counters.agent_steps:,} with a checkpoint; the "
                "same command continues."
            )
            return 128 + signal
        try:
            summary = trainer.finish()
        except KeyboardInterrupt:
            trainer.say(
                "stopped in the evaluation at the end; what was learned is saved, and the same "
                "command continues."
            )
            return INTERRUPTED
        if summary is not None:
            trainer.say(f"{report.table(summary)}\nrun folder: {settings.folder}")
    finally:
        trainer.close()
    return 0


def check_can_go_back(trainer: Trainer, error: Diverged) -> None:
    """RunError where a lower learning rate was tried often enough, or the agent has none."""
    done, agent = trainer.state.counters.rollbacks, trainer.state.agent
    if done < trainer.config.max_rollbacks and agent.slow_down(1.0):
        return
    if done:
        times = "once" if done == 1 else f"{done} times"
        tried = f"went back to its last checkpoint {times} with a lower learning rate"
        tried += ", and that did not help"
    elif trainer.config.max_rollbacks == 0:
        tried = "may not go back to its last checkpoint (max_rollbacks=0)"
    else:
        tried = f"cannot go on more slowly: {type(agent).__name__} has no slow_down"
    raise RunError(
        f"{error} The run {tried}, so it stopped. Look for the cause in the dumped batches, or "
        "start a new run with a lower learning rate."
    ) from error


def go_back(trainer: Trainer, error: Diverged) -> None:
    """Lower the learning rate of a run that was restored from its last checkpoint, save it, and
    say so."""
    counters, most = trainer.state.counters, trainer.config.max_rollbacks
    trainer.state.agent.slow_down(SLOWER)
    counters.rollbacks += 1
    trainer.save()
    trainer.say(
        f"{error} Went back to step {counters.agent_steps:,}, update {counters.updates:,}, with "
        f"{SLOWER:g} times the learning rate ({counters.rollbacks} of {most})."
    )


def build(settings: TrainConfig, say: Callable[[str], None], ranks: Ranks | None = None) -> Trainer:
    """A Trainer; whatever it finds impossible becomes a ConfigError."""
    try:
        return Trainer(settings, say, ranks)
    except FileNotFoundError as error:
        raise RunError(str(error)) from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
