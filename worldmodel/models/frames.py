"""Several images seen as one: what a single picture cannot show, such as a speed."""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.types import EnvSpec


class Frames:
    """The present image and those before it in its episode, whose first one is repeated.

    keys: of images, side by side, C channels together. count: of images. context: of them that lie
    before the present one; 0 without images.
    """

    def __init__(self, spec: EnvSpec, keys: list[str], count: int) -> None:
        self.count = count if keys else 1
        self.context = self.count - 1
        channels = sum(spec.obs[key].shape[2] for key in keys)
        self.shape = (self.context, *spec.obs[keys[0]].shape[:2], channels) if keys else (0,)

    def initial(self, batch_size: int, device: torch.device) -> Tensor | None:
        """What a state keeps: the images before the next one [B, context, H, W, C], or None."""
        if not self.context:
            return None
        return torch.zeros(batch_size, *self.shape, dtype=torch.uint8, device=device)

    def add(
        self, recent: Tensor | None, picture: Tensor, is_first: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """What is seen with a next image [B, H, W, C]: [B, H, W, count * C], and what is kept."""
        if recent is None:
            return picture, None
        now = picture.unsqueeze(1)
        first = is_first.bool().view(-1, 1, 1, 1, 1)
        stack = torch.cat([torch.where(first, now, recent), now], 1)
        return _side_by_side(stack, 1), stack[:, 1:]

    def rows(self, picture: Tensor, is_first: Tensor) -> Tensor:
        """What is seen in consecutive rows [B, T, H, W, C]: [B, T, H, W, count * C]. The first
        `context` rows lack what came before them."""
        if not self.context:
            return picture
        times = torch.arange(picture.shape[1], device=picture.device)
        begin = torch.where(is_first, times, 0).cummax(1).values  # of each row's episode
        each = torch.arange(len(picture), device=picture.device).unsqueeze(1)
        backs = [torch.maximum(times - back, begin) for back in reversed(range(self.count))]
        return _side_by_side(torch.stack([picture[each, back] for back in backs], 2), 2)


def _side_by_side(stack: Tensor, axis: int) -> Tensor:
    """Images [..., count, H, W, C] as [..., H, W, count * C]."""
    return stack.movedim(axis, -2).flatten(-2)
