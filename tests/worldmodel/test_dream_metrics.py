"""Measures of honesty against numbers worked out by hand, by a window, and at their limits."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from worldmodel.dream import metrics


def test_mse_keeps_batch_and_time() -> None:
    truth, ours = torch.zeros(2, 3, 4, 4, 1), torch.zeros(2, 3, 4, 4, 1)
    ours[1, 2, 0, 0, 0] = 4.0
    found = metrics.mse(truth, ours)
    assert found.shape == (2, 3)
    assert found[1, 2] == 1.0  # 4^2 over 16 pixels
    assert found.sum() == 1.0


def test_ssim_of_equal_images_is_one_and_of_negatives_is_below_zero() -> None:
    image = torch.rand(2, 3, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(metrics.ssim(image, image), torch.ones(2, 3))
    assert metrics.ssim(image, 1 - image).max() < 0


def test_ssim_equals_the_formula_with_opencv_windows() -> None:
    rng = np.random.default_rng(0)
    a = rng.random((24, 20, 3))
    b = np.clip(a + 0.2 * rng.standard_normal(a.shape), 0, 1)

    def blurred(x: np.ndarray) -> np.ndarray:
        out = cv2.GaussianBlur(x, (11, 11), 1.5)
        return out[5:-5, 5:-5]  # where the window lies inside

    ma, mb = blurred(a), blurred(b)
    va, vb = blurred(a * a) - ma**2, blurred(b * b) - mb**2
    ab = blurred(a * b) - ma * mb
    c1, c2 = 1e-4, 9e-4
    expected = ((2 * ma * mb + c1) * (2 * ab + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    found = metrics.ssim(torch.from_numpy(a), torch.from_numpy(b))
    assert found.item() == pytest.approx(expected.mean(), rel=1e-6)


def test_ssim_of_flat_images_is_the_luminance_term() -> None:
    a, b = torch.full((16, 16, 1), 0.2), torch.full((16, 16, 1), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert metrics.ssim(a, b).item() == pytest.approx(expected, rel=1e-5)


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="at least 11 pixels, got 10x32"):
        metrics.ssim(torch.zeros(10, 32, 1), torch.zeros(10, 32, 1))


def test_band_is_median_and_middle_eighty_percent() -> None:
    curve = metrics.band("model", np.arange(101.0)[:, None] * np.array([[1.0, 2.0]]))
    assert curve.x.tolist() == [1, 2]
    assert curve.y.tolist() == [50, 100]
    assert curve.low is not None
    assert curve.high is not None
    assert (curve.low.tolist(), curve.high.tolist()) == ([10, 20], [90, 180])


def test_discounted_weighs_each_reward_by_what_went_before() -> None:
    reward = torch.tensor([[1.0, 10.0, 100.0]])
    cont = torch.tensor([[0.5, 0.2, 0.9]])
    assert metrics.discounted(reward, cont).item() == pytest.approx(1 + 5 + 10)
    ended = torch.tensor([[0.0, 1.0, 1.0]])
    assert metrics.discounted(reward, ended).item() == 1.0  # nothing comes after the end


def test_calibration_finds_a_line() -> None:
    imagined = np.array([0.0, 1.0, 2.0, 3.0])
    fit = metrics.calibration(imagined, 2 * imagined - 5)
    assert fit.correlation == pytest.approx(1.0)
    assert fit.slope == pytest.approx(2.0)
    assert fit.intercept == pytest.approx(-5.0)
    assert fit.bias == pytest.approx(1.5 - (-2.0))
    assert metrics.calibration(imagined, -imagined).correlation == pytest.approx(-1.0)


def test_calibration_of_what_does_not_vary_is_no_number() -> None:
    fit = metrics.calibration(np.array([1.0, 2.0]), np.array([7.0, 7.0]))
    assert np.isnan([fit.correlation, fit.slope, fit.intercept]).all()
    assert fit.bias == -5.5
