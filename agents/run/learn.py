"""Updates of a run: counted, and skipped where they are not finite, with the batch dumped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from agents.run.state import RunState
from worldmodel import tree
from worldmodel.config import RunError
from worldmodel.log import write_tensors
from worldmodel.types import Batch

FOLDER = "nonfinite"
MOST_DUMPS = 3  # of one run; each holds the agent's whole state


class Diverged(RuntimeError):
    """Too many updates in a row were not finite."""


class Learner:
    """Updates the agent of a run, and counts the updates and their metrics.

    folder: where `nonfinite` gets the first batches whose loss or gradient was not finite, with
    the agent's state (where updates settle late, after the one that has begun since). limit:
    skipped updates in a row after which Diverged is raised. say: prints a line for each of them.
    """

    def __init__(
        self, state: RunState, folder: Path, limit: int, say: Callable[[str], None]
    ) -> None:
        self._state, self._folder, self._limit, self._say = state, folder / FOLDER, limit, say
        self.failed = 0  # updates in a row

    def update(self) -> None:
        """One update. A GPU's is only begun, and the one before may fail here: that one is then
        not counted. Raises Diverged."""
        state = self._state
        state.counters.owed -= 1
        self._count(lambda: state.agent.update(state.replay), 1)

    def settle(self) -> None:
        """End the update that a GPU may have begun. Raises Diverged."""
        self._count(lambda: self._state.agent.settle(self._state.replay), 0)

    def _count(self, learn: Callable[[], Mapping[str, Any]], begun: int) -> None:
        counters = self._state.counters
        try:
            metrics = learn()
        except FloatingPointError as error:
            later = getattr(error, "under_way", 0)
            counters.skipped += 1
            counters.updates += begun - 1 - later
            self._skip(error)
            counters.updates += later
            return
        if not isinstance(metrics, Mapping):
            raise RunError(
                f"{type(self._state.agent).__name__} must return a dict of metrics from an update "
                f"({{}} where it has none), but returned a {type(metrics).__name__}."
            )
        self._state.means.add(metrics)
        if metrics:  # it was finite
            self.failed = 0
        counters.updates += begun

    def _skip(self, error: FloatingPointError) -> None:
        """Note a skipped update, and keep what made it."""
        self.failed += 1
        updates, where = self._state.counters.updates, self._dump(error)
        if self.failed >= self._limit:
            raise Diverged(
                f"{self.failed} updates in a row were not finite, the last one after update "
                f"{updates}: {error} {where}"
            ) from error
        self._say(f"skipped update {updates + 1}: {error} {where}")

    def _dump(self, error: FloatingPointError) -> str:
        """Keep the batch and the agent's state; where they lie."""
        batch = getattr(error, "batch", None)
        there = len(list(self._folder.glob("*.pt")))
        if there >= MOST_DUMPS:
            return f"'{self._folder}' keeps the first {MOST_DUMPS}."
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{there + 1}-after-update-{self._state.counters.updates:09d}.pt"
        named = batch.tensors().items() if isinstance(batch, Batch) else tree.leaves(batch)
        rows = {name: x for name, x in named if isinstance(x, torch.Tensor)}
        agent = self._state.agent.state_dict()
        write_tensors(path, {"error": str(error), "agent": agent, "batch": rows})
        return f"Batch and state are in '{path}'."
