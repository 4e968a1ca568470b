"""What a learned world expects to see when nobody shows it anything any more."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.types import Batch, LatentState

MARK = (255, 140, 0)  # the colour of the border where imagination starts
BLANK = 32  # the grey of what does not exist


@torch.no_grad()
def open_loop(model: Any, batch: Batch, context: int = 5) -> dict[str, Tensor]:
    """Follow a batch for `context` rows, then go on from its actions alone.

        row          0 ... context-1            context ... T-1
        state        model.observe (posterior)  model.step (prior): no observation arrives
        prediction   a reconstruction           an open-loop prediction

    model: a `Dynamics` with `decode(state) -> {key: [B, ...]}`; batch: [B, T, ...] rows on its
    device. Returns what the model shows at every row, {key: [B, T, ...]}: images in [0, 1] and
    vectors in their own units. Predicted rewards are under "reward" (zero for the context).

    Raises ValueError unless 1 <= context < T.
    """
    size, length = batch.shape
    if not 1 <= context < length:
        raise ValueError(
            f"context={context} must be at least 1 and less than the batch's {length} rows."
        )
    state: LatentState = batch.context or model.initial(size)
    seen: dict[str, list[Tensor]] = {}
    rewards = []
    for t in range(length):
        if t < context:
            obs = {key: value[:, t] for key, value in batch.obs.items()}
            state = model.observe(state, obs, batch.action[:, t], batch.is_first[:, t])
            rewards.append(torch.zeros_like(batch.reward[:, t]))
        else:
            state, reward, _ = model.step(state, batch.action[:, t])
            rewards.append(reward)
        for key, value in model.decode(state).items():
            seen.setdefault(key, []).append(value)
    return {key: torch.stack(values, 1) for key, values in {**seen, "reward": rewards}.items()}


def first_rows(batch: Batch, length: int) -> Batch:
    """The first `length` rows of the first sequence of a batch, [1, length, ...]."""

    def cut(x: Tensor) -> Tensor:
        return x[:1, :length]

    return Batch(
        {key: cut(value) for key, value in batch.obs.items()},
        cut(batch.action),
        cut(batch.reward),
        cut(batch.is_first),
        cut(batch.is_last),
        cut(batch.is_terminal),
        None if batch.context is None else batch.context.map(lambda x: x[:1]),
    )


def rows(truth: Tensor, predicted: Tensor, is_first: Tensor, context: int) -> list[np.ndarray]:
    """One dream as a film of uint8 frames [3 H, W, 3]: truth, prediction, error, from top to
    bottom. truth: uint8 [T, H, W, C]; predicted: [T, H, W, C] in [0, 1]; is_first: [T].

    The prediction gets a border from `context` on. Where a new episode begins after that, the
    truth goes elsewhere and the dream cannot know: those frames are left out.
    """
    later = torch.nonzero(is_first[context:]).flatten()
    end = context + int(later[0]) if len(later) else len(truth)
    film = []
    for t in range(end):
        real = _rgb(truth[t].cpu().numpy())
        ours = _rgb((predicted[t].float().clamp(0, 1) * 255).round().byte().cpu().numpy())
        # Mid-grey is right; brighter or darker is how far the prediction is too bright or dark.
        error = ((ours.astype(np.int16) - real + 255) // 2).astype(np.uint8)
        if t >= context:
            ours = _bordered(ours)
        film.append(np.concatenate([real, ours, error], 0))
    return film


def strip(film: list[np.ndarray], context: int, columns: int = 12, side: int = 96) -> np.ndarray:
    """A film from `rows` as one picture, uint8 [3 H', columns * W', 3], time from left to right.

    The last frames of the context are followed by evenly spaced frames of the dream, divided by
    a coloured line where imagination starts. side: frames are enlarged until their shorter side
    has at least this many pixels.
    """
    columns = min(columns, len(film))
    before = min(context, max(1, columns // 4), len(film))
    dreamt = len(film) - context
    picks = list(range(context - before, min(context, len(film))))
    if dreamt > 0:
        wanted = min(columns - before, dreamt)
        picks += [int(i) for i in np.linspace(context, len(film) - 1, wanted).round()]
    height, width = film[0].shape[0] // 3, film[0].shape[1]
    times = max(1, -(-side // min(height, width)))
    gap = max(2, side // 32)
    parts: list[np.ndarray] = []
    for i in picks:
        frame = film[i].repeat(times, 0).repeat(times, 1)
        cells = np.split(frame, 3, 0)
        blank = np.full((gap, frame.shape[1], 3), BLANK, np.uint8)
        column = np.concatenate([cells[0], blank, cells[1], blank, cells[2]], 0)
        if parts:
            colour = MARK if i == context else (BLANK,) * 3
            line = np.empty((column.shape[0], gap * (3 if i == context else 1), 3), np.uint8)
            line[:] = colour
            parts.append(line)
        parts.append(column)
    return np.concatenate(parts, 1)


def _rgb(image: np.ndarray) -> np.ndarray:
    """[H, W, C] -> [H, W, 3]; of more than three channels the last three, the newest."""
    channels = image.shape[-1]
    if channels < 3:
        return np.repeat(image[..., :1], 3, -1)
    return image[..., -3:]


def _bordered(image: np.ndarray) -> np.ndarray:
    """The image with a one-pixel border: this was imagined."""
    image = image.copy()
    image[[0, -1]] = MARK
    image[:, [0, -1]] = MARK
    return image
