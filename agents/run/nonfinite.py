"""What becomes of updates whose loss or gradient is not finite: skipped, kept, and in the end
answered by going back with a lower learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from worldmodel.config import RunError
from worldmodel.types import Batch

if TYPE_CHECKING:
    from agents.run.trainer import Trainer

FOLDER = "nonfinite"
KEPT = 3  # dumps of one run; each holds the agent's whole state
SLOWER = 0.5  # times the learning rate, at each going back


class Diverged(RuntimeError):
    """Too many updates in a row were not finite."""


class NonFinite:
    """Counts skipped updates in a row and keeps the first ones for whoever looks for the cause:
    the batch and the agent's state (where updates settle late, after the one that has begun since).

    limit: skipped updates in a row after which `skip` raises Diverged.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder / FOLDER, limit
        self.row = 0

    def skip(self, error: FloatingPointError, agent: Any, updates: int) -> str:
        """Note one skipped update; says where its batch and the agent's state lie."""
        self.row += 1
        where = self._dump(error, agent, updates)
        if self.row >= self._limit:
            raise Diverged(
                f"{self.row} updates in a row were not finite, the last one after update "
                f"{updates}: {error} {where}"
            ) from error
        return f"skipped update {updates + 1}: {error} {where}"

    def _dump(self, error: FloatingPointError, agent: Any, updates: int) -> str:
        batch: Batch | None = getattr(error, "batch", None)
        there = len(list(self._folder.glob("*.pt")))
        if there >= KEPT:
            return f"'{self._folder}' keeps the first {KEPT}."
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{there + 1}-after-update-{updates:09d}.pt"
        rows = batch and batch.tensors()
        state = {"error": str(error), "agent": agent.state_dict(), "batch": rows}
        torch.save(state, path)
        return f"Batch and state are in '{path}'."


def go_back(trainer: Trainer, error: Diverged) -> None:
    """Lower the learning rate of a trainer that was restored from its last checkpoint, and keep
    that.

    Raises RunError where the agent cannot, or where that was tried often enough.
    """
    counters, most = trainer.counters, trainer.config.max_rollbacks
    if counters.rollbacks >= most or not trainer.agent.slow_down(SLOWER):
        raise RunError(
            f"{error} The run went back to its last checkpoint {counters.rollbacks} times "
            "with a lower learning rate and that did not help, so it stopped. Look for the "
            "cause in what was kept, or start a new run with a lower learning rate."
        ) from error
    counters.rollbacks += 1
    trainer.save()
    trainer.say(
        f"{error} Went back to step {counters.agent_steps:,}, update {counters.updates:,}, with "
        f"{SLOWER:g} times the learning rate ({counters.rollbacks} of {most})."
    )
