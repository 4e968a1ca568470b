"""Observations that do not fit are an error, not a high score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.ood.api import Track
from worldmodel.types import EnvSpec


def checked(spec: EnvSpec, obs: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
    """The observed keys as tensors [B, ...]; ValueError where one is missing, has another shape or
    type, or is not finite."""
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


def checked_tracks(spec: EnvSpec, tracks: Sequence[Track], states: bool) -> None:
    """ValueError unless the episodes fit the specification. states: whether they need latents."""
    for number, track in enumerate(tracks):
        if not len(track):
            raise ValueError(f"Episode {number} has no rows.")
        checked(spec, track.obs, torch.device("cpu"))
        lengths = {len(track), *(len(value) for value in track.obs.values())}
        if states and track.state is None:
            raise ValueError(
                f"Episode {number} has no latent states, which a detector with a world model needs."
            )
        if track.state is not None:
            lengths |= {len(track.state.deter), len(track.state.stoch)}
            if not all(bool(torch.isfinite(x).all()) for x in track.state):
                raise ValueError(f"Episode {number} holds a latent state that is not finite.")
        if len(lengths) > 1:
            raise ValueError(f"Episode {number} has parts of unequal length: {sorted(lengths)}.")
        if not np.isfinite(track.action).all():
            raise ValueError(f"Episode {number} holds an action that is not finite.")
