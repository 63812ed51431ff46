"""SSIM, held to its definition written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import convolve1d

from editverse_rt.errors import RequestError
from editverse_rt.evaluate.fidelity import measure_psnr_db, measure_ssim
from editverse_rt.media.frames import Frames


def ssim_by_definition(one: Frames, other: Frames) -> float:
    """Wang et al. 2004, equation 13, with the Gaussian window of 11 pixels, where the window fits."""
    weights = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights /= weights.sum()

    def blurred(values: NDArray[np.float64]) -> NDArray[np.float64]:
        rows = convolve1d(values, weights, axis=1)
        return convolve1d(rows, weights, axis=2)[:, 5:-5, 5:-5]

    x, y = one.astype(np.float64), other.astype(np.float64)
    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
    return float(found.mean())


@pytest.fixture
def clips() -> tuple[Frames, Frames]:
    rng = np.random.default_rng(0)
    one = rng.integers(0, 256, (3, 24, 32, 3), dtype=np.uint8)
    noisy = one.astype(int) + rng.integers(-40, 41, one.shape)
    return one, np.clip(noisy, 0, 255).astype(np.uint8)


def test_ssim_is_its_definition(clips: tuple[Frames, Frames]) -> None:
    assert measure_ssim(*clips) == pytest.approx(ssim_by_definition(*clips), abs=1e-10)


def test_a_clip_is_like_itself_and_the_measure_is_symmetric(clips: tuple[Frames, Frames]) -> None:
    one, other = clips
    assert measure_ssim(one, one) == pytest.approx(1)
    assert measure_ssim(one, other) == pytest.approx(measure_ssim(other, one))
    assert measure_psnr_db(one, one) == 99.0


def test_psnr_is_its_definition(clips: tuple[Frames, Frames]) -> None:
    one, other = clips
    error = np.mean((one.astype(float) - other) ** 2)
    assert measure_psnr_db(one, other) == pytest.approx(10 * np.log10(255**2 / error))


def test_clips_that_cannot_be_compared_are_refused(clips: tuple[Frames, Frames]) -> None:
    one, _ = clips
    with pytest.raises(RequestError, match="one shape"):
        measure_ssim(one, one[:1])
    with pytest.raises(RequestError, match="11 pixels"):
        measure_ssim(one[:, :8], one[:, :8])
