"""Whole episodes through a scorer, side by side, tick by tick."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.ood.api import Memory, Track
from worldmodel.ood.look import Look
from worldmodel.ood.scorer import Scorer
from worldmodel.rssm.state import LatentState

TOGETHER = 64  # episodes

# One tick: observations, state, action, is_first and memory to columns [B, K] and memory.
Tick = Callable[..., tuple[Tensor, Memory]]


@torch.inference_mode()
def trace(scorer: Scorer, tracks: Sequence[Track], tick: Tick) -> list[np.ndarray]:
    """Columns [T, K] of each track, float32, as `tick` answers when it is called as
    `Scorer.levels` is."""
    order = sorted(range(len(tracks)), key=lambda i: len(tracks[i]))
    out: list[np.ndarray] = [np.empty(0)] * len(tracks)
    for first in range(0, len(order), TOGETHER):
        group = order[first : first + TOGETHER]
        for index, columns in zip(group, _side_by_side(scorer, tracks, group, tick), strict=True):
            out[index] = columns
    return out


def _side_by_side(
    scorer: Scorer, tracks: Sequence[Track], group: list[int], tick: Tick
) -> Iterator[np.ndarray]:
    """Tracks of one group; what has ended repeats its last row, and is cut off after."""
    lengths = [len(tracks[i]) for i in group]
    memory = scorer.initial(len(group))
    columns = []
    for t in range(max(lengths)):
        rows = [(tracks[i], min(t, n - 1)) for i, n in zip(group, lengths, strict=True)]
        obs, state, action = gathered(rows, scorer.usual.device)
        is_first = torch.full((len(group),), t == 0, device=scorer.usual.device)
        strange, memory = tick(obs, state, action, is_first, memory)
        columns.append(strange.float().cpu().numpy())
    whole = np.stack(columns, 1)  # [B, T, K]
    for i, n in enumerate(lengths):
        yield whole[i, :n]


def gathered(
    rows: Sequence[tuple[Track, int]], device: torch.device
) -> tuple[dict[str, Tensor], LatentState | None, Tensor]:
    """Observations, states and actions [N, ...] of rows named by track and index."""
    first = rows[0][0]
    obs = {
        key: torch.from_numpy(np.stack([track.obs[key][t] for track, t in rows])).to(device)
        for key in first.obs
    }
    action = torch.from_numpy(np.stack([track.action[t] for track, t in rows])).to(device)
    if first.state is None:
        return obs, None, action
    states = [(track.state, t) for track, t in rows if track.state is not None]
    deter = torch.stack([state.deter[t] for state, t in states]).to(device).float()
    stoch = torch.stack([state.stoch[t] for state, t in states]).to(device).float()
    return obs, LatentState(deter, stoch), action


@torch.no_grad()  # and not inference_mode: a flow learns from these
def looks(scorer: Scorer, tracks: Sequence[Track], most: int, seed: int) -> Look:
    """Looks at rows of all tracks, at most so many, drawn at random."""
    rows = [(track, t) for track in tracks for t in range(len(track))]
    if len(rows) > most:
        chosen = np.random.default_rng(seed).choice(len(rows), most, replace=False)
        rows = [rows[i] for i in chosen]
    parts = [
        scorer.looker(*gathered(rows[i : i + 256], scorer.usual.device))
        for i in range(0, len(rows), 256)
    ]
    return Look(*(_joined(list(field)) for field in zip(*parts, strict=True)))


def _joined(values: list[Any]) -> Any:
    if values[0] is None:
        return None
    if isinstance(values[0], LatentState):
        deter, stoch = zip(*values, strict=True)
        return LatentState(torch.cat(deter), torch.cat(stoch))
    return torch.cat(values)
