"""An episode with its steps, so that people can label it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from agents.apps.rewards.experience import Experience
from worldmodel.config import ConfigError
from worldmodel.log import as_rgb, write_picture

COLUMNS = 16
SIDE = 72  # pixels of the shorter side of a frame, at least
LINE = 16  # pixels of the line above it
INK, PAPER = (40, 40, 40), 222


def write_episode(path: Path, experience: Experience, number: int) -> Path:
    """A PNG of every frame of an episode below its step; ConfigError where it has none."""
    images = experience.spec.keys("image")
    experience.check(number, 0, f"show={number}")
    if not images:
        raise ConfigError("This run sees no image, so an episode cannot be drawn.")
    rows = experience.episode(number)
    frames = [
        _numbered(np.concatenate([as_rgb(rows[key][t]) for key in images], 1), t)
        for t in range(int(experience.lengths[number]))
    ]
    frames += [np.full_like(frames[0], PAPER)] * (-len(frames) % COLUMNS)
    lines = [
        np.concatenate(frames[i : i + COLUMNS], 1) for i in range(0, len(frames), COLUMNS)
    ]  # fmt: skip
    write_picture(path, np.concatenate(lines, 0))
    return path


def _numbered(frame: np.ndarray, step: int) -> np.ndarray:
    times = max(1, -(-SIDE // min(frame.shape[:2])))
    large = frame.repeat(times, 0).repeat(times, 1)
    sheet: Any = np.full((LINE + large.shape[0] + 2, large.shape[1] + 2, 3), PAPER, np.uint8)
    cv2.putText(
        sheet, str(step), (2, LINE - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.4, INK, 1, cv2.LINE_AA
    )  # fmt: skip
    sheet[LINE : LINE + large.shape[0], : large.shape[1]] = large
    return np.asarray(sheet)
