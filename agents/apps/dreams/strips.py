"""Whole episodes dreamt open loop: strips, films, and curves where there is no image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from agents.apps.dreams.config import DreamConfig
from agents.apps.dreams.episodes import Experience
from agents.apps.dreams.page import Picture, Section
from worldmodel import dream, plots
from worldmodel.dream import films
from worldmodel.log import gif, write_picture, write_video
from worldmodel.types import Batch, EnvSpec

SIDE, VIDEO_SIDE = 96, 256  # pixels of an image in a GIF and in a video
CURVES = 6  # entries of a vector that are drawn, at most


def draw(
    model: Any, spec: EnvSpec, lived: Experience, settings: DreamConfig, folder: Path
) -> Section | None:
    """The strips section, its files written; None where the model decodes nothing."""
    pictures: list[Picture] = []
    context = settings.context
    for number in lived.shown(settings):
        batch = lived.batch([number], settings.rows).to(dream.device_of(model))
        loop = dream.open_loop(model, batch, context)
        frames = dream.film_of(spec, batch, loop, context)
        if frames:
            pictures += _films(frames, number, settings, folder)
        vectors = [key for key in spec.keys("vector") if key in loop.shown]
        if vectors:
            path = folder / f"curves_{number}.png"
            _curves(path, batch, loop, vectors, context)
            alt = f"Episode {number}: what its vectors were, and what the model predicted"
            pictures.append(Picture(path, alt, f"Episode {number}, from its beginning."))
    if not pictures:
        return None
    text = [
        f"The model sees the first {context} frames of an episode; from there on it imagines "
        f"{settings.horizon} more from the actions alone, while the real episode goes on above "
        "it. Orange marks what is imagined."
    ]
    if spec.keys("image"):
        text.append("Bottom row: the error, grey where the prediction is right.")
    return Section("Dreams beside what happened", text, pictures)


def _films(
    frames: list[np.ndarray], number: int, settings: DreamConfig, folder: Path
) -> list[Picture]:
    """strip_N as PNG, GIF and MP4."""
    stem, context = folder / f"strip_{number}", settings.context
    write_picture(stem.with_suffix(".png"), dream.strip(frames, context))
    moving = gif(films.coarse(dream.titled(frames, context, SIDE)), settings.fps)
    stem.with_suffix(".gif").write_bytes(moving)
    write_video(stem.with_suffix(".mp4"), dream.titled(frames, context, VIDEO_SIDE), settings.fps)
    what = f"truth, prediction and error of episode {number}, imagined from frame {context + 1} on"
    return [
        Picture(stem.with_suffix(".gif"), f"Film: {what}", f"Episode {number}", "film"),
        Picture(stem.with_suffix(".png"), f"Strip: {what}", f"Episode {number}", "wide"),
    ]


def _curves(path: Path, batch: Batch, loop: dream.OpenLoop, keys: list[str], context: int) -> None:
    """Truth and prediction of vector entries over time, as PNG and CSV."""
    entries = [(key, i) for key in keys for i in range(batch.obs[key].shape[-1])][:CURVES]
    time = np.arange(1, batch.shape[1] + 1)
    figure, axes = plots.figure(1, len(entries), height=1.8)
    panels = {}
    for row, (key, i) in enumerate(entries):
        curves = [
            plots.Curve("truth", time, batch.obs[key][0, :, i].float().cpu().numpy()),
            plots.Curve("model", time, loop.shown[key][0, :, i].float().cpu().numpy()),
        ]
        panels[f"{key}[{i}]"] = curves
        plots.draw(axes[row][0], curves, f"{key}[{i}]", "row", "")
        axes[row][0].axvline(context + 0.5, color=np.array(dream.MARK) / 255, linewidth=2)
    plots.save(figure, path)
    plots.write_curves(path.with_suffix(".csv"), panels)
