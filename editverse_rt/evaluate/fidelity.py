"""Exact measures of a result beside the right answer, where one is known: PSNR and SSIM.

The only file that imports scikit-image.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from editverse_rt.errors import BackendError, RequestError
from editverse_rt.media.frames import Frames
from editverse_rt.quality.heldout import measure_psnr_db

__all__ = ["measure_psnr_db", "measure_ssim"]

_SIGMA_PX = 1.5
_MIN_SIDE_PX = 11
"""The window of a Gaussian of 1.5 pixels, cut off at 3.5 sigma."""


def measure_ssim(found: Frames, expected: Frames) -> float:
    """Mean SSIM over frames uint8 [T, H, W, 3] and channels, from -1 to 1 (equal).

    The window is a Gaussian of 1.5 pixels, as in Wang et al. 2004. Raises RequestError for clips of unequal
    shapes or with sides below 11 pixels, BackendError where scikit-image is not installed.
    """
    if found.shape != expected.shape or found.ndim != 4 or 0 in found.shape:
        raise RequestError(
            f"found clips {list(found.shape)} and {list(expected.shape)}",
            expected="two [T, H, W, 3] of one shape",
            code="request.metric",
        )
    if min(found.shape[1:3]) < _MIN_SIDE_PX:
        raise RequestError(
            f"found frames of {found.shape[1]}x{found.shape[2]}",
            expected=f"{_MIN_SIDE_PX} pixels a side or more, for SSIM's window",
            code="request.metric",
        )
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise BackendError(
            "the package scikit-image is not installed",
            hint="install it with: pip install 'editverse-rt[evaluate]'",
            code="backend.package_missing",
        ) from error
    similarity: Any = structural_similarity
    values = [
        similarity(
            one,
            other,
            channel_axis=-1,
            data_range=255,
            gaussian_weights=True,
            sigma=_SIGMA_PX,
            use_sample_covariance=False,
        )
        for one, other in zip(found, expected, strict=True)
    ]
    return float(np.mean(values))
