"""The image loss by hand."""

from __future__ import annotations

import pytest
import torch

from worldmodel.losses import image_loss


def test_image_loss_sums_squared_errors_over_pixels_and_channels() -> None:
    target = torch.zeros(2, 1, 2, 2, 3, dtype=torch.uint8)
    prediction = torch.zeros(2, 1, 2, 2, 3)
    target[0, 0, 0, 0, 0] = 255  # wrong by 1
    target[1, 0, 1, 1] = 51  # three channels wrong by 0.2 - 0.7
    prediction[1, 0, 1, 1] = 0.7
    loss = image_loss(prediction, target)
    torch.testing.assert_close(loss, torch.tensor([[1.0], [3 * 0.25]]))


def test_image_loss_gradient_has_no_half() -> None:
    prediction = torch.full((1, 1, 1, 1, 1), 0.75, requires_grad=True)
    image_loss(prediction, torch.zeros(1, 1, 1, 1, 1, dtype=torch.uint8)).sum().backward()
    assert prediction.grad is not None
    assert prediction.grad.item() == 1.5


def test_image_loss_never_broadcasts() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4, 3\).*\(2, 1, 4, 4, 3\)"):
        image_loss(torch.zeros(2, 3, 4, 4, 3), torch.zeros(2, 1, 4, 4, 3, dtype=torch.uint8))
