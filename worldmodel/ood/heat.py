"""Which patch was strange: a map over the picture, and a figure of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from worldmodel import plots
from worldmodel.config import ConfigError
from worldmodel.distributions import symexp
from worldmodel.ood.detector import Detector
from worldmodel.ood.fitting import checked
from worldmodel.ood.pictures import WorstPatch
from worldmodel.ood.steps import Forecast

BRIGHTEST = 3.0  # thresholds at the end of the colour scale


@torch.no_grad()
def heat_map(detector: Detector, obs: Mapping[str, Any]) -> np.ndarray:
    """How strange each place of the picture is: float32 [B, H, W], where 1 is the threshold of the
    worst patch.

    Raises ConfigError where the detector has no part "patch".
    """
    part, index = _patches(detector)
    scorer = detector.scorer
    look = scorer.looker(checked(detector.spec, obs, detector.device), None, None, None)
    places = part.places(look).unsqueeze(1)
    level = scorer.limit[index]
    limit = scorer.usual[index] + (scorer.seldom[index] - scorer.usual[index]) * symexp(level)
    assert look.image is not None
    size = look.image.shape[-2:]
    spread = F.interpolate(places / limit, size, mode="bilinear", align_corners=False)
    out: np.ndarray = spread.squeeze(1).cpu().numpy()
    return out


@torch.no_grad()
def drawn_again(detector: Detector, obs: Mapping[str, Any]) -> np.ndarray:
    """What the autoencoder makes of the pictures: float [B, H, W, C] in [0, 1]."""
    looker = detector.scorer.looker
    assert looker.vae is not None
    image = looker.pictures(checked(detector.spec, obs, detector.device))
    out: np.ndarray = looker.vae(image).picture.clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    return out


def draw_heat_maps(
    path: Path, detector: Detector, frames: Sequence[tuple[str, Mapping[str, Any]]]
) -> Path:
    """A column for each named observation (without batch axis): the picture, the autoencoder's
    drawing of it, and where it is strange."""
    made, axes = plots.figure(len(frames), 3, width=1.6, height=1.7)
    image: Any = None
    for column, (name, obs) in enumerate(frames):
        one = {key: np.asarray(obs[key])[None] for key in detector.spec.seen}
        keys = detector.scorer.looker.images
        picture = np.concatenate([one[key][0] for key in keys], -1)[..., :3]
        for row, shown in enumerate((picture, drawn_again(detector, one)[0][..., :3])):
            axes[row][column].imshow(shown if shown.shape[-1] == 3 else shown[..., 0], cmap="gray")
        heat = heat_map(detector, one)[0]
        image = axes[2][column].imshow(heat, cmap="inferno", vmin=0, vmax=BRIGHTEST)
        axes[0][column].set_title(name, fontsize=9)
    for row, label in enumerate(("seen", "drawn again", "strange")):
        axes[row][0].set_ylabel(label)
        for panel in axes[row]:
            panel.set(xticks=[], yticks=[])
            panel.grid(visible=False)
    bar = made.colorbar(image, ax=list(axes[2]), shrink=0.9)
    bar.set_label("thresholds", fontsize=8)
    return plots.save(made, path)


def _patches(detector: Detector) -> tuple[WorstPatch, int]:
    for index, part in enumerate(detector.scorer.parts):
        if isinstance(part, WorstPatch) and not isinstance(part, Forecast):
            return part, index
    raise ConfigError(
        "A heat map needs the part 'patch', and images. Fit the detector with it: "
        "detector.parts=[patch, ...]."
    )
