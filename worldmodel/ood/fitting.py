"""Complete episodes through a detector: checked, learned from, scored side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel import progress, seeding, tree
from worldmodel.config import RunError
from worldmodel.models.vae import VAE
from worldmodel.ood.api import Memory, Track
from worldmodel.ood.scorer import Look, Scorer
from worldmodel.optim import LaProp, OptimConfig
from worldmodel.types import EnvSpec

WARMUP = 50  # updates of the autoencoder
REPORTS = 10  # lines of progress
TOGETHER = 64  # episodes side by side

# One tick: observations, state, action, is_first and memory to columns [B, K] and memory.
Tick = Callable[..., tuple[Tensor, Memory]]


def checked(spec: EnvSpec, obs: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
    """The observed keys as tensors [B, ...]; ValueError where one is missing, has another shape or
    type, or is not finite: what does not fit is an error, not a high score."""
    tensors = {}
    for key, wanted in spec.seen.items():
        if key not in obs:
            raise ValueError(
                f"The observation lacks the key '{key}'. Given: {', '.join(sorted(obs))}; needed: "
                f"{', '.join(sorted(spec.seen))}."
            )
        value = obs[key]
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.asarray(value))
        if tuple(tensor.shape[1:]) != wanted.shape or tensor.dim() != 1 + len(wanted.shape):
            raise ValueError(
                f"Observation '{key}' has shape {list(tensor.shape)}; needed: [B, "
                f"{', '.join(map(str, wanted.shape))}], as the detector was fitted on."
            )
        if wanted.kind == "image":
            if tensor.dtype != torch.uint8:
                raise ValueError(
                    f"Observation '{key}' is {tensor.dtype}; an image is uint8, 0 to 255."
                )
        elif not tensor.is_floating_point():
            raise ValueError(f"Observation '{key}' is {tensor.dtype}; it must be float32.")
        elif not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"Observation '{key}' holds a value that is not finite.")
        else:
            tensor = tensor.float()
        tensors[key] = tensor.to(device)
    if len({len(tensor) for tensor in tensors.values()}) > 1:
        sizes = {key: len(tensor) for key, tensor in tensors.items()}
        raise ValueError(f"All observations must have one batch size, got {sizes}.")
    return tensors


def check_tracks(spec: EnvSpec, tracks: Sequence[Track], states: bool) -> None:
    """ValueError unless the episodes fit the specification. states: whether they need a world's
    states."""
    for number, track in enumerate(tracks):
        if not len(track):
            raise ValueError(f"Episode {number} has no rows.")
        checked(spec, track.obs, torch.device("cpu"))
        if states and track.state is None:
            raise ValueError(
                f"Episode {number} has no states, which a detector with a learned world needs."
            )
        parts = [np.asarray(track.action), *map(np.asarray, tree.tensors(track.state))]
        if not all(np.isfinite(part).all() for part in parts):
            raise ValueError(f"Episode {number} holds an action or state that is not finite.")
        lengths = {len(part) for part in [*parts, *track.obs.values()]}
        if len(lengths) > 1:
            raise ValueError(f"Episode {number} has parts of unequal length: {sorted(lengths)}.")


def train_vae(
    vae: VAE,
    tracks: Sequence[Track],
    keys: Sequence[str],
    updates: int,
    batch: int,
    lr: float,
    seed: int,
    say: Callable[[str], None],
) -> None:
    """Fit an autoencoder to all images of the tracks, in place.

    Draws no global random numbers. Raises RunError where its loss is not finite.
    """
    images = np.concatenate(
        [np.concatenate([track.obs[key] for key in keys], -1) for track in tracks]
    )  # uint8 [N, H, W, C]
    device = next(vae.parameters()).device
    # In float64, or the sum of many thousand frames loses its last digits.
    mean = torch.from_numpy(images.mean(0, dtype=np.float64) / 255.0).float()
    vae.usual.copy_(mean.permute(2, 0, 1))
    pixels = torch.from_numpy(images)
    vae.requires_grad_(True)
    optim = LaProp([("vae", vae)], OptimConfig(lr=lr, warmup=WARMUP, anneal=updates))
    with seeding.Stream(seed, device):
        for update in progress.each(range(updates), "training the autoencoder"):
            drawn = pixels[torch.randint(len(pixels), (batch,))].to(device)
            loss, metrics = vae.loss(drawn.permute(0, 3, 1, 2).float() / 255.0)
            try:
                optim.step(loss)
            except FloatingPointError as error:
                raise RunError(
                    f"The autoencoder's training broke down at update {update}: {error} Give a "
                    "smaller lr."
                ) from error
            if (update + 1) % max(1, updates // REPORTS) == 0:
                parts = ", ".join(f"{name} {float(v):.3g}" for name, v in metrics.items())
                say(f"autoencoder: update {update + 1} of {updates}, {parts}")
    vae.requires_grad_(False)


@torch.inference_mode()
def trace(scorer: Scorer, tracks: Sequence[Track], tick: Tick) -> list[np.ndarray]:
    """Columns [T, K] of each track, float32, as `tick` answers when it is called as
    `Scorer.levels` is."""
    order = sorted(range(len(tracks)), key=lambda i: len(tracks[i]))
    out: list[np.ndarray] = [np.empty(0)] * len(tracks)
    groups = [order[first : first + TOGETHER] for first in range(0, len(order), TOGETHER)]
    ticks = sum(len(tracks[group[-1]]) for group in groups)
    with progress.step("scoring episodes, tick", ticks) as scoring:
        for group in groups:
            columns = _side_by_side(scorer, [tracks[i] for i in group], tick, scoring)
            for index, one in zip(group, columns, strict=True):
                out[index] = one
    return out


def _side_by_side(
    scorer: Scorer, tracks: Sequence[Track], tick: Tick, scoring: progress.Step
) -> Iterator[np.ndarray]:
    """Tracks of one group; what has ended repeats its last row, and is cut off after."""
    memory = scorer.initial(len(tracks))
    columns = []
    for t in range(max(map(len, tracks))):
        rows = [(track, min(t, len(track) - 1)) for track in tracks]
        obs, state, action = _rows(rows, scorer.usual.device)
        is_first = torch.full((len(tracks),), t == 0, device=scorer.usual.device)
        strange, memory = tick(obs, state, action, is_first, memory)
        columns.append(strange.float().cpu().numpy())
        scoring.done += 1
    levels = np.stack(columns, 1)  # [B, T, K]
    for i, track in enumerate(tracks):
        yield levels[i, : len(track)]


def _rows(
    rows: Sequence[tuple[Track, int]], device: torch.device
) -> tuple[dict[str, Tensor], Any, Tensor]:
    """Observations, states and actions [N, ...] of rows named by track and index."""
    obs = {
        key: torch.from_numpy(np.stack([track.obs[key][t] for track, t in rows])).to(device)
        for key in rows[0][0].obs
    }
    action = torch.from_numpy(np.stack([track.action[t] for track, t in rows])).to(device)
    if rows[0][0].state is None:
        return obs, None, action
    return (
        obs,
        as_floats(tree.stack([tree.index(track.state, t) for track, t in rows]), device),
        action,
    )


def as_floats(state: Any, device: torch.device) -> Any:
    """A stored state in the precision of the world's weights, on its device."""
    return tree.map(lambda x: x.to(device, torch.float32 if x.is_floating_point() else None), state)


@torch.no_grad()  # and not inference_mode: a flow learns from these
def looks(scorer: Scorer, tracks: Sequence[Track], most: int, seed: int) -> Look:
    """Looks at rows of all tracks, at most so many, drawn at random."""
    rows = [(track, t) for track in tracks for t in range(len(track))]
    if len(rows) > most:
        chosen = np.random.default_rng(seed).choice(len(rows), most, replace=False)
        rows = [rows[i] for i in chosen]
    parts = []
    for i in progress.each(range(0, len(rows), 256), "learning what is usual, batch"):
        some, device = rows[i : i + 256], scorer.usual.device
        obs, state, action = _rows(some, device)
        before = None
        if state is not None and scorer.with_states:
            _, before, _ = _rows([(track, max(t - 1, 0)) for track, t in some], device)
            first = torch.tensor([t == 0 for _, t in some], device=device)
            before = tree.where(first, scorer.initial(len(some))["before"], before)
        parts.append(scorer.looker(obs, before, state, action))
    return tree.cat(parts)
