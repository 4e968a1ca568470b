"""Films and strips of a dream: truth, prediction and error, and a mark where imagination starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from worldmodel.capabilities import Decodes
from worldmodel.dream.rollout import OpenLoop, open_loop
from worldmodel.log import as_rgb, enlarged
from worldmodel.types import Batch, EnvSpec

MARK = (255, 140, 0)  # the colour of the border where imagination starts
BLANK = 32  # the grey of what does not exist
INK, DIM = (235, 235, 235), (110, 110, 110)  # of text on dark paper, and on any picture
LINE = 15  # pixels of one line of text


def film(model: Any, spec: EnvSpec, batch: Batch, context: int) -> list[np.ndarray]:
    """The open-loop dream of a batch's first sequence as frames for `strip` and `titled`, the
    images of several keys side by side; empty where there is nothing to draw."""
    if not spec.keys("image") or not isinstance(model, Decodes):
        return []
    return film_of(spec, batch, open_loop(model, batch, context), context)


def film_of(spec: EnvSpec, batch: Batch, dream: OpenLoop, context: int) -> list[np.ndarray]:
    """`film` of an open loop that was run already."""
    films = [
        rows(batch.obs[key][0], dream.shown[key][0], batch.is_first[0], context)
        for key in spec.keys("image")
        if key in dream.shown
    ]
    return [np.concatenate(parts, 1) for parts in zip(*films, strict=True)]


def rows(truth: Tensor, predicted: Tensor, is_first: Tensor, context: int) -> list[np.ndarray]:
    """One dream as uint8 frames [3 H, W, 3]: truth, prediction, error, from top to bottom.

    truth: uint8 [T, H, W, C]; predicted: [T, H, W, C] in [0, 1]; is_first: [T]. The prediction
    gets a border from `context` on. Where a new episode begins after that, the truth goes
    elsewhere and the dream cannot know: those frames are left out.
    """
    later = is_first[context:].nonzero().flatten()
    end = context + int(later[0]) if len(later) else len(truth)
    frames = []
    for t in range(end):
        real, ours = as_rgb(truth[t].cpu().numpy()), picture(predicted[t])
        error = difference(ours, real)
        if t >= context:
            ours = bordered(ours)
        frames.append(np.concatenate([real, ours, error], 0))
    return frames


def strip(frames: list[np.ndarray], context: int, columns: int = 12, side: int = 96) -> np.ndarray:
    """A film from `rows` as one picture, uint8 [3 H', columns * W', 3], time from left to right.

    The last frames of the context are followed by evenly spaced frames of the dream, each below
    its number, divided by a coloured line where imagination starts. side: frames are enlarged
    until their shorter side has at least this many pixels.
    """
    columns = min(columns, len(frames))
    before = min(context, max(1, columns // 4), len(frames))
    dreamt = len(frames) - context
    picks = list(range(context - before, min(context, len(frames))))
    if dreamt > 0:
        wanted = min(columns - before, dreamt)
        picks += [int(i) for i in np.linspace(context, len(frames) - 1, wanted).round()]
    gap = max(2, side // 32)
    parts: list[np.ndarray] = []
    for i in picks:
        column = _stacked(frames[i], side, gap)
        # Only the dream's frames are counted aloud; the mark says where they begin.
        text, ink = (f"{i + 1}", INK) if i < context else (f"{i + 1} (+{i - context + 1})", MARK)
        column = np.concatenate([lines([text], column.shape[1], ink), column], 0)
        if parts:
            line = np.empty((column.shape[0], gap * (3 if i == context else 1), 3), np.uint8)
            line[:] = MARK if i == context else (BLANK,) * 3
            parts.append(line)
        parts.append(column)
    return np.concatenate(parts, 1)


def titled(frames: list[np.ndarray], context: int, side: int = 128) -> list[np.ndarray]:
    """A film from `rows` to be watched: enlarged, with a counter above, names at the rows, and a
    bar that turns orange where imagination starts."""
    gap, out = 3, []
    for i, frame in enumerate(frames):
        dreamt = i - context + 1
        body = _stacked(frame, side, gap)
        cell = (body.shape[0] - 2 * gap) // 3
        for row, (name, ink) in enumerate((("truth", DIM), ("model", DIM), ("error", INK))):
            _write(body, name, (7, row * (cell + gap) + cell - 8), ink)
        width = body.shape[1]
        text = f"{i + 1}/{len(frames)} " + (f"dream +{dreamt}" if dreamt > 0 else "seen")
        ink = MARK if dreamt > 0 else INK
        bar = np.full((4, width, 3), BLANK, np.uint8)
        bar[:, : max(1, round(width * (i + 1) / len(frames)))] = INK
        start = round(width * context / len(frames))
        if dreamt > 0:
            bar[:, start : max(start + 1, round(width * (i + 1) / len(frames)))] = MARK
        out.append(even(np.concatenate([lines([text], width, ink), bar, body], 0)))
    return out


def coarse(frames: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Frames with 32 levels a channel: a GIF of them needs no dithering and half the bytes."""
    return [((frame >> 3).astype(np.uint16) * 255 // 31).astype(np.uint8) for frame in frames]


def even(frame: np.ndarray, unit: int = 16) -> np.ndarray:
    """The frame with a dark edge below and at the right that makes its sides multiples of
    `unit`: a video codec would otherwise scale it."""
    height, width = (-n % unit for n in frame.shape[:2])
    return np.pad(frame, ((0, height), (0, width), (0, 0)), constant_values=BLANK)


def lines(
    texts: Sequence[str], width: int, ink: tuple[int, int, int] = INK, paper: int = BLANK
) -> np.ndarray:
    """Lines of small text as a picture, uint8 [15 per line, width, 3]."""
    out = np.full((LINE * len(texts), width, 3), paper, np.uint8)
    for i, text in enumerate(texts):
        _write(out, text, (3, LINE * (i + 1) - 4), ink)
    return out


def difference(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Prediction minus truth, uint8 each: mid-grey is right, brighter or darker is how far the
    prediction is too bright or too dark."""
    return ((predicted.astype(np.int16) - truth + 255) // 2).astype(np.uint8)


def tiled(cells: Sequence[np.ndarray], columns: int, gap: int, paper: int = BLANK) -> np.ndarray:
    """Pictures of one size in rows of `columns`, set apart by `gap` pixels."""
    height, width = cells[0].shape[:2]
    rows = -(-len(cells) // columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    out = np.full(shape, paper, np.uint8)
    for i, cell in enumerate(cells):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        out[y : y + height, x : x + width] = cell
    return out


def picture(image: Tensor) -> np.ndarray:
    """An image [H, W, C], uint8 or decoded (in [0, 1]), as uint8 [H, W, 3]."""
    if image.dtype != torch.uint8:
        image = (image.float().clamp(0, 1) * 255).round().byte()
    return as_rgb(image.cpu().numpy())


def pictures(spec: EnvSpec, shown: Mapping[str, Tensor]) -> list[np.ndarray]:
    """A picture uint8 [H, W, 3] for each of B observations or decoded states, several images side
    by side; empty where there is no image. shown: {key: [B, ...]}."""
    images = [shown[key] for key in spec.keys("image") if key in shown]
    return [
        np.concatenate([picture(part) for part in parts], 1) for parts in zip(*images, strict=True)
    ]


def bordered(image: np.ndarray) -> np.ndarray:
    """The image with a one-pixel border: this was imagined."""
    image = image.copy()
    image[[0, -1]] = MARK
    image[:, [0, -1]] = MARK
    return image


def _stacked(frame: np.ndarray, side: int, gap: int) -> np.ndarray:
    """The three parts of a frame, enlarged and set apart."""
    cells = [enlarged(cell, side) for cell in np.split(frame, 3, 0)]
    blank = np.full((gap, cells[0].shape[1], 3), BLANK, np.uint8)
    return np.concatenate([cells[0], blank, cells[1], blank, cells[2]], 0)


def _write(image: np.ndarray, text: str, where: tuple[int, int], ink: tuple[int, int, int]) -> None:
    cv2.putText(image, text, where, cv2.FONT_HERSHEY_SIMPLEX, 0.38, ink, 1, cv2.LINE_AA)
