"""Updates that a GPU computes while the host goes on with the next one.

    host   draw k | launch k | settle k-1 | draw k+1 | launch k+1 | settle k | ...
    GPU              |------- update k -------|          |------ update k+1 ------|

To settle an update is to wait for it, to store the states that it found with their rows, and to
hand out its metrics; the GPU has the next one to do by then. So a batch may begin at states that
are one update older than they could be, and an update that was not finite is told one late. Where
PyTorch is to be deterministic, each update is settled at once: what is drawn would otherwise depend
on when checkpoints, which settle too, are made.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from worldmodel.accel.graphs import OnItsWay, Recorded, Tensors
from worldmodel.optim import Step
from worldmodel.replay import Replay
from worldmodel.rssm.state import LatentState
from worldmodel.types import Batch

COLUMN = "column."  # how those outputs begin that go to the replay
# Metrics by name, the posteriors [B, T, ...], and what the optimizer met; reads nothing.
Learn = Callable[[Batch], tuple[dict[str, Tensor], LatentState, Step]]
Pack = Callable[[LatentState], dict[str, Tensor]]


class Pipeline:
    """One update after the other of a function that learns from a batch.

    A FloatingPointError has the `batch` that made it, and says how many later updates are
    `under_way`.

    learn: see `Learn`. check: raises FloatingPointError where a step was not finite. pack: how
    fresh states are stored; None where they are not. recorded: as what `learn` runs.
    """

    def __init__(
        self,
        learn: Learn,
        check: Callable[[Step], None],
        pack: Pack | None,
        device: torch.device,
        recorded: Callable[..., Recorded] = Recorded,
    ) -> None:
        self._learn, self._check, self._pack = learn, check, pack
        self._recorded = recorded(self._tensors, device)
        self._names: list[str] = []
        self._under_way: tuple[Batch, OnItsWay] | None = None

    def update(self, replay: Replay, batch: Batch) -> dict[str, float]:
        """Begin an update on a batch, and settle the one before it: its metrics.

        Raises FloatingPointError where the one before was not finite; this one goes on.
        """
        before = self._under_way
        self._under_way = batch, self._recorded.launch(batch.tensors())
        if torch.are_deterministic_algorithms_enabled():
            return self.settle(replay)
        return self._settle(before, replay)

    def settle(self, replay: Replay) -> dict[str, float]:
        """Wait until nothing is under way; the metrics of what was."""
        before, self._under_way = self._under_way, None
        return self._settle(before, replay)

    def _settle(self, update: tuple[Batch, OnItsWay] | None, replay: Replay) -> dict[str, float]:
        if update is None:
            return {}
        batch, coming = update
        found = coming.wait()
        try:
            self._check(Step(found["finite"], found["loss"], found["norms"]))
        except FloatingPointError as error:
            error.batch = batch  # type: ignore[attr-defined]  # for whoever looks for the cause
            error.under_way = int(self._under_way is not None)  # type: ignore[attr-defined]
            raise
        if self._pack is not None:
            names = [name for name in found if name.startswith(COLUMN)]
            values = {name.removeprefix(COLUMN): found[name] for name in names}
            replay.rewrite(batch.index, values)
        return dict(zip(self._names, found["metrics"].tolist(), strict=True))

    def _tensors(self, inputs: Tensors) -> Tensors:
        """What is recorded: an update, and what is to come home of it."""
        metrics, states, step = self._learn(Batch.of(inputs))
        self._names = list(metrics)
        found = {
            "metrics": torch.stack([x.detach().float() for x in metrics.values()]),
            **step._asdict(),
        }
        if self._pack is not None:
            found |= {COLUMN + name: value for name, value in self._pack(states).items()}
        return found
