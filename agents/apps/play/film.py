"""Pictures for people: what an observation looks like, and a GIF of a path through the dream."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from worldmodel.log import as_rgb, enlarged, gif
from worldmodel.types import EnvSpec

DREAM = (255, 140, 0)  # imagined, in every picture of this project
REAL = (86, 180, 233)
INK, PAPER = (232, 234, 237), (24, 27, 33)
SIDE = 224  # pixels of the shorter side of a frame in a GIF
STRIP = 26  # pixels of the line of text below it
LIMIT = 600  # frames of one GIF: a minute of film, and about 100 MB while it is made


@dataclass(frozen=True)
class Frame:
    """One moment of a film: pictures uint8 [H, W, 3] by title, which of them are imagined, and
    the line of text below them."""

    pictures: Mapping[str, np.ndarray]
    dreamt: frozenset[str]
    text: str


def picture_of(values: Mapping[str, np.ndarray], spec: EnvSpec) -> np.ndarray:
    """uint8 [H, W, 3] of one observation, real (uint8 images) or decoded (images in [0, 1]):
    the images side by side or, where there is none, the numbers as bars."""
    images = [key for key in spec.keys("image") if key in values]
    if images:
        return np.concatenate([as_rgb(_bytes(values[key])) for key in images], 1)
    keys = [k for k in (*spec.keys("vector"), *spec.keys("discrete")) if k in values]
    if not keys:
        return np.zeros((32, 32, 3), np.uint8)
    return bars(np.concatenate([np.ravel(values[key]) for key in keys]))


def bars(numbers: np.ndarray, height: int = 64) -> np.ndarray:
    """Numbers [N] as bars up or down from the middle, uint8 [height, W, 3].

    Lengths are logarithmic, log(1 + |x|), and reach the edge at |x| = 20."""
    wide = max(2, 96 // max(1, len(numbers)))
    out = np.full((height, len(numbers) * wide, 3), PAPER, np.uint8)
    middle = height // 2
    out[middle] = (70, 75, 84)
    finite = np.nan_to_num(np.asarray(numbers, np.float64), nan=0.0, posinf=20.0, neginf=-20.0)
    lengths = np.sign(finite) * np.minimum(1.0, np.log1p(np.abs(finite)) / np.log1p(20.0))
    for i, length in enumerate(lengths):
        top, bottom = sorted((middle, middle - round(length * (middle - 1))))
        out[top : bottom + 1, i * wide : (i + 1) * wide - 1] = INK
    return out


def error_between(dream: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Their difference: mid-grey is right, brighter or darker is how far the dream is off."""
    return ((dream.astype(np.int16) - real + 255) // 2).astype(np.uint8)


def png(picture: np.ndarray) -> str:
    """A uint8 picture [H, W, 3] as the text of a PNG data address."""
    ok, data = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))
    assert ok
    return "data:image/png;base64," + base64.b64encode(data.tobytes()).decode()


def film(frames: Sequence[Frame], fps: float) -> bytes:
    """An animated GIF of at most the last LIMIT frames, every one of the same size.

    Raises ValueError without frames.
    """
    if not frames:
        raise ValueError("There is nothing to save yet.")
    return gif([_drawn(frame) for frame in frames[-LIMIT:]], max(1, round(fps)))


def write_numbered(folder: Path, stem: str, data: bytes, suffix: str = ".gif") -> Path:
    """Write to the first free name `stem-001.gif`, `stem-002.gif`, ... of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, 100_000):
        path = folder / f"{stem}-{number:03d}{suffix}"
        try:
            with path.open("xb") as file:
                file.write(data)
        except FileExistsError:
            continue
        return path
    raise OSError(f"'{folder}' has no free name left for a film.")


def _drawn(frame: Frame) -> np.ndarray:
    """uint8 [H', W', 3]: titled pictures side by side over a line of text."""
    gap = np.full((1, 6, 3), PAPER, np.uint8)
    tiles: list[np.ndarray] = []
    for title, picture in frame.pictures.items():
        colour = DREAM if title in frame.dreamt else REAL
        big = enlarged(picture, SIDE)
        head = _line(title, big.shape[1], colour)
        head[-3:] = colour
        if tiles:
            tiles.append(np.broadcast_to(gap, (STRIP + big.shape[0], 6, 3)))
        tiles.append(np.concatenate([head, big], 0))
    row = np.concatenate(tiles, 1)
    return np.concatenate([row, _line(frame.text, row.shape[1], INK)], 0)


def _line(text: str, width: int, colour: tuple[int, int, int]) -> np.ndarray:
    line = np.full((STRIP, width, 3), PAPER, np.uint8)
    place = (6, STRIP - 9)
    cv2.putText(line, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)
    return line


def _bytes(image: np.ndarray) -> np.ndarray:
    if image.dtype == np.uint8:
        return image
    return (np.clip(image, 0.0, 1.0) * 255).round().astype(np.uint8)
