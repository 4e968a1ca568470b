"""Episodes on disk, so that a study that was stopped does not play them again."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from worldmodel.ood.api import Track
from worldmodel.rssm.state import LatentState

STATES = ("deter", "stoch")


def kept(path: Path, play: Callable[[], Sequence[Track]]) -> list[Track]:
    """The episodes in a file, played and written where it is not there yet."""
    if not path.exists():
        write(path, play())
    return read(path)


def write(path: Path, tracks: Sequence[Track]) -> None:
    """Store episodes as one file of arrays, all or nothing."""
    arrays = {
        "length": np.array([len(track) for track in tracks]),
        "action": np.concatenate([track.action for track in tracks]),
    }
    for key in tracks[0].obs:
        arrays[f"obs.{key}"] = np.concatenate([track.obs[key] for track in tracks])
    states = [track.state for track in tracks if track.state is not None]
    if states:
        arrays |= {
            name: np.concatenate([getattr(state, name).numpy() for state in states])
            for name in STATES
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    with fresh.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    os.replace(fresh, path)


def read(path: Path) -> list[Track]:
    """The episodes of a file that `write` made."""
    with np.load(path, allow_pickle=False) as held:
        arrays = {name: held[name] for name in held.files}
    edges = np.cumsum(arrays.pop("length"))[:-1]
    pieces = {name: np.split(value, edges) for name, value in arrays.items()}
    keys = [name for name in pieces if name.startswith("obs.")]
    tracks = []
    for i, action in enumerate(pieces["action"]):
        state = None
        if "deter" in pieces:
            state = LatentState(*(torch.from_numpy(pieces[name][i]) for name in STATES))
        obs = {name.removeprefix("obs."): pieces[name][i] for name in keys}
        tracks.append(Track(obs, action, state))
    return tracks
