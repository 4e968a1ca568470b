"""The image loss by hand."""

from __future__ import annotations

import pytest
import torch

from worldmodel.losses import image_loss


def test_image_loss_sums_squared_errors_over_pixels() -> None:
    target = torch.zeros(2, 2, 2, 3, dtype=torch.uint8)
    x = torch.full((2, 2, 2, 3), -100.0)
    target[0, 0, 0, 0] = 255  # wrong by 1
    target[1, 1, 1] = 51  # three channels wrong by 0.2 - 0.7
    x[1, 1, 1] = torch.logit(torch.tensor(0.7))
    loss = image_loss(x, 1, torch.zeros(2, 2, 3), target)
    torch.testing.assert_close(loss, torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.25, 0.25]]))


def test_image_loss_gradient_has_no_half() -> None:
    x = torch.zeros(1, 1, 1, 1, requires_grad=True)
    centre = torch.logit(torch.full((1, 1, 1), 0.75))
    image_loss(x, 1, centre, torch.zeros(1, 1, 1, 1, dtype=torch.uint8)).sum().backward()
    assert x.grad is not None
    assert x.grad.item() == pytest.approx(2 * 0.75 * 0.75 * 0.25)  # the sigmoid's slope at 0.75


def test_pixels_in_blocks_lie_where_unblocking_puts_them() -> None:
    target = torch.zeros(1, 4, 4, 1, dtype=torch.uint8)
    x = torch.full((1, 2, 2, 4), -100.0)
    x[0, 1, 0, 3] = 100.0  # the lower right pixel of the lower left block: (3, 1)
    assert image_loss(x, 2, torch.zeros(4, 4, 1), target).item() == pytest.approx(1.0)
    target[0, 3, 1] = 255
    assert image_loss(x, 2, torch.zeros(4, 4, 1), target).item() == pytest.approx(0.0)


def test_image_loss_never_broadcasts() -> None:
    target = torch.zeros(6, 4, 4, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"\(6, 4, 4, 3\).*\(1, 4, 4, 3\)"):
        image_loss(torch.zeros(6, 2, 2, 12), 2, torch.zeros(4, 4, 3), target[:1])
