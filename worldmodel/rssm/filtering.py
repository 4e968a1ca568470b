"""The states of all that was recorded: the replay's rows, seen through the world model once."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import torch

from worldmodel.capabilities import start_of
from worldmodel.replay import Replay, RowIndex
from worldmodel.rssm.model import WorldModel

CHUNK = 64  # rows of an episode that are filtered at once
ROWS = 4096  # rows of one batch


@torch.no_grad()
def filter_replay(model: WorldModel, replay: Replay) -> None:
    """Store the posterior of every row in the replay, from each episode's beginning on.

    For a model that learns no more: its states of recorded rows never change, so nothing need be
    encoded again. An episode whose beginning is overwritten starts from what the replay still
    holds. Episodes go side by side, in chunks of time, each from the states that the chunk before
    it stored. Draws from torch's generators. Raises ValueError where the replay has no columns for
    the model's states.
    """
    device = next(model.parameters()).device
    spans = [(stream, start, stop - start) for stream, start, stop in replay.episodes()]
    for begin in range(0, max((length for *_, length in spans), default=0), CHUNK):
        pieces = [
            (min(CHUNK, length - begin), stream, start + begin)
            for stream, start, length in spans
            if length > begin
        ]
        for length, group in groupby(sorted(pieces), key=lambda piece: piece[0]):
            places = np.array([place for _, *place in group], np.int64)
            many = max(1, ROWS // length)
            for first in range(0, len(places), many):
                stream, start = places[first : first + many].T
                index = RowIndex(stream, start, length)
                batch = replay.gather(index, context=model.columns).to(device)
                state = start_of(model, batch)
                states = model.observe(state, batch.obs, batch.action, batch.is_first)
                replay.rewrite(index, model.pack(states))
