"""Pure loss functions: tensors in, tensors out."""

from __future__ import annotations

from torch import Tensor


def image_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error [B, T] summed over pixels and channels, no half.

    prediction: [B, T, H, W, C] in [0, 1]; target: uint8 [B, T, H, W, C].
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"image_loss: prediction {tuple(prediction.shape)} and target "
            f"{tuple(target.shape)} must have one shape."
        )
    return (prediction.float() - target.float() / 255.0).square().flatten(2).sum(-1)
