"""The states that a frozen model passes through while it is shown recorded episodes, kept once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.apps.rewards.experience import Experience
from worldmodel.replay import RowIndex
from worldmodel.seeding import Stream
from worldmodel.types import Batch, LatentState, start_of

SIDE_BY_SIDE = 64  # episodes that are filtered together
CHUNK = 64  # rows of them at a time


class Latents:
    """The posteriors of whole episodes, packed as replay stores them; on the CPU.

    episodes: numbers of the filtered episodes. first: the row of `columns` where each of them
    begins.
    """

    def __init__(self, model: Any, episodes: Sequence[int], lengths: np.ndarray) -> None:
        self._model = model
        self.episodes = list(episodes)
        ends = np.cumsum([lengths[number] for number in self.episodes])
        begins = [0, *ends[:-1].tolist()]
        self.first = dict(zip(self.episodes, begins, strict=True))
        count = int(ends[-1]) if len(ends) else 0
        self.columns = {
            name: np.zeros((count, *column.shape), column.dtype)
            for name, column in model.columns.items()
        }

    def __len__(self) -> int:
        """How many rows."""
        return len(next(iter(self.columns.values())))

    def rows(self, episode: int, steps: np.ndarray) -> np.ndarray:
        """Row numbers of steps of an episode."""
        return self.first[episode] + np.asarray(steps, np.int64)

    def states(self, rows: np.ndarray) -> LatentState:
        """The states [N, ...] of rows [N], float32 on the CPU."""
        values = {name: torch.from_numpy(x[rows]) for name, x in self.columns.items()}
        state: LatentState = self._model.unpack(values)
        return state

    def feat(self, rows: np.ndarray) -> Tensor:
        """Their features [N, F]."""
        return self.states(rows).feat


@torch.no_grad()
def filtered(model: Any, experience: Experience, episodes: Sequence[int], seed: int = 0) -> Latents:
    """Show whole episodes to a model, each from its beginning on, and keep its posteriors.

    An episode whose beginning is overwritten starts from the state that replay stored before it,
    or from nothing. Draws no global random numbers.
    """
    latents = Latents(model, episodes, experience.lengths)
    device = next(model.parameters()).device
    # Episodes of like lengths go together; those that have ended leave the group.
    order = sorted(latents.episodes, key=lambda number: -experience.lengths[number])
    with Stream(seed, device):
        for i in range(0, len(order), SIDE_BY_SIDE):
            _follow(model, experience, latents, order[i : i + SIDE_BY_SIDE], device)
    return latents


def _follow(
    model: Any,
    experience: Experience,
    latents: Latents,
    group: list[int],
    device: torch.device,
) -> None:
    """Filter some episodes side by side, longest first, a chunk of rows at a time."""
    state: LatentState | None = None
    begin = 0
    while group:
        # Every chunk ends where the shortest episode of the group does, or earlier.
        length = min(CHUNK, int(experience.lengths[group[-1]]) - begin)
        batch = gathered(experience, group, begin, length).to(device)
        if state is None:
            state = start_of(model, batch)
        else:
            batch.is_first[:, 0] = False  # replay may know no state before these rows; we do
        states = model.observe(state, batch.obs, batch.action, batch.is_first)
        packed = {name: value.cpu().numpy() for name, value in model.pack(states).items()}
        for i, number in enumerate(group):
            rows = latents.rows(number, np.arange(begin, begin + length))
            for name, value in packed.items():
                latents.columns[name][rows] = value[i]
        begin += length
        group = [number for number in group if experience.lengths[number] > begin]
        state = LatentState(*(part[: len(group), -1] for part in states))  # longest first


def gathered(experience: Experience, episodes: Sequence[int], begin: int, length: int) -> Batch:
    """`length` rows of some episodes from a step on, [n, length, ...]; only what models see."""
    places = [experience.places[number] for number in episodes]
    stream = np.array([place[0] for place in places], np.int64)
    start = np.array([place[1] + begin for place in places], np.int64)
    batch = experience.replay.gather(
        RowIndex(stream, start, length), context=experience.replay.columns
    )
    batch.obs = {key: batch.obs[key] for key in experience.spec.seen}
    return batch
