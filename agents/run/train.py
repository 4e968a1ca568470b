"""From settings to a trained agent: one run folder, one process, to the end."""

from __future__ import annotations

import errno
from collections.abc import Callable

from agents.run import report
from agents.run.lock import RunLock
from agents.run.nonfinite import Diverged
from agents.run.room import make_folder
from agents.run.settings import TrainConfig, check_folder
from agents.run.trainer import Trainer
from worldmodel import checkpoint
from worldmodel.accelerate import out_of_memory
from worldmodel.config import ConfigError, RunError


def train(settings: TrainConfig, say: Callable[[str], None]) -> int:
    """Train to the end, evaluate and summarise; the process's exit code.

    0 when finished (or already was), 128 + n when signal n asked for a stop. Raises ConfigError
    for impossible settings and RunError where the run cannot go on; its last checkpoint is then
    intact.
    """
    make_folder(settings.folder)
    with RunLock(settings.folder, say):
        summary = check_folder(settings, say)
        if summary is not None:
            say(f"'{settings.folder}' is finished already; for more, raise steps or max_minutes.")
            say(report.table(summary))
            return 0
        try:
            return _train(settings, say)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise RunError(
                f"The disk is full ({error}). The last checkpoint in '{settings.folder}' is "
                "intact: make room and give the same command again."
            ) from error
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise RunError(
                f"Memory ran out ({str(error) or 'no more to be had'}). The last checkpoint in "
                f"'{settings.folder}' is intact: free memory and give the same command again, or "
                "start a smaller run (replay.storage=disk, replay.capacity, size)."
            ) from error


def _train(settings: TrainConfig, say: Callable[[str], None]) -> int:
    """Train; when too many updates fail, go back to the last checkpoint and try more slowly."""
    trainer = build(settings, say)
    try:
        while True:
            try:
                signal = trainer.run()
                break
            except Diverged as error:
                trainer.close()
                trainer = build(settings, say)
                trainer.go_back(error)
        if signal is not None:
            say(
                f"stopped at step {trainer.counters.agent_steps:,} with a checkpoint; the same "
                "command continues."
            )
            return 128 + signal
        say(report.table(trainer.finish()))
    finally:
        trainer.close()
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
