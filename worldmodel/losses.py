"""Pure loss functions: tensors in, tensors out."""

from __future__ import annotations

from torch import Tensor

from worldmodel.accel import fused


def image_loss(x: Tensor, blocks: int, centre: Tensor, target: Tensor) -> Tensor:
    """Squared error [N, C] of images sigmoid(x + centre), summed over pixels, no half.

    x: [N, h, w, s * s * C] in blocks of s x s pixels (see `fused.unblock`; s = 1: [N, H, W, C]);
    centre: [H, W, C], without gradient; target: uint8 [N, H, W, C].
    """
    n, h, w, c = x.shape
    shape = (n, h * blocks, w * blocks, c // blocks**2)
    if shape != target.shape or shape[1:] != centre.shape:
        raise ValueError(
            f"image_loss: images {shape}, centre {tuple(centre.shape)} and target "
            f"{tuple(target.shape)} must have one shape."
        )
    return fused.image_loss(x, centre, target, blocks)
