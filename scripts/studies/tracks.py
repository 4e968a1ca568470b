"""Episodes on disk, so that a study that was stopped does not play them again."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel import tree
from worldmodel.ood.api import Track


def cached(path: Path, play: Callable[[], Sequence[Track]], like: Any) -> list[Track]:
    """The episodes in a file, played and written where it is not there yet. like: a state of the
    agent's world, or None."""
    if not path.exists():
        write(path, play())
    return read(path, like)


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
        arrays |= {f"state.{name}": leaf.numpy() for name, leaf in tree.leaves(tree.cat(states))}
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    with fresh.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    os.replace(fresh, path)


def read(path: Path, like: Any) -> list[Track]:
    """The episodes of a file that `write` made."""
    with np.load(path, allow_pickle=False) as held:
        arrays = {name: held[name] for name in held.files}
    edges = np.cumsum(arrays.pop("length"))[:-1]
    pieces = {name: np.split(value, edges) for name, value in arrays.items()}
    keys = [name for name in pieces if name.startswith("obs.")]
    tracks = []
    for i, action in enumerate(pieces["action"]):
        state = None
        if like is not None:
            leaves = iter([pieces[f"state.{name}"][i] for name, _ in tree.leaves(like)])
            state = tree.map(lambda _, leaves=leaves: torch.from_numpy(next(leaves)), like)
        obs = {name.removeprefix("obs."): pieces[name][i] for name in keys}
        tracks.append(Track(obs, action, state))
    return tracks
