"""Global edits of pixels with one right answer each: the stylisation, sketch and camera tasks of nano.

All take and return uint8 [T, H, W, 3]. They hold for any video, so the same functions give the right
answers on real clips.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from reference.nano.world import Frames, uint8_from_float

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
SEPIA = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]], np.float32)
PIXELATE_PX = 8


def grayscale(frames: Frames) -> Frames:
    """BT.601 luma in all three channels."""
    luma = frames.astype(np.float32) @ LUMA / 255.0
    return uint8_from_float(np.repeat(luma[..., None], 3, -1))


def invert(frames: Frames) -> Frames:
    """255 minus each channel."""
    return np.asarray(255 - frames, np.uint8)


def sepia(frames: Frames) -> Frames:
    """The customary sepia matrix, clipped."""
    return uint8_from_float(frames.astype(np.float32) @ SEPIA.T / 255.0)


def darken(frames: Frames) -> Frames:
    """Night: 40 % of the light, the red channel less, the blue channel more."""
    return uint8_from_float(frames.astype(np.float32) * np.array([0.3, 0.38, 0.6], np.float32) / 255.0)


def pixelate(frames: Frames) -> Frames:
    """Blocks of 8 x 8 pixels take their mean colour (heights and widths are multiples of 8)."""
    count, height, width, _ = frames.shape
    rows, columns = height // PIXELATE_PX, width // PIXELATE_PX
    blocks = frames.reshape(count, rows, PIXELATE_PX, columns, PIXELATE_PX, 3).astype(np.float32)
    means = blocks.mean((2, 4), keepdims=True) / 255.0
    return uint8_from_float(np.broadcast_to(means, blocks.shape).reshape(frames.shape))


def mirror(frames: Frames) -> Frames:
    """Left and right exchanged."""
    return np.ascontiguousarray(frames[:, :, ::-1])


def sketch(frames: Frames) -> Frames:
    """Dark outlines on white, from the gradient of all three channels."""
    values = frames.astype(np.float32) / 255.0
    down = np.abs(np.diff(values, axis=1, append=values[:, -1:])).max(-1)
    right = np.abs(np.diff(values, axis=2, append=values[:, :, -1:])).max(-1)
    lines = np.clip((np.maximum(down, right) - 0.08) * 6.0, 0.0, 1.0)
    return uint8_from_float(np.repeat((1.0 - lines)[..., None], 3, -1))


STYLES: dict[str, Callable[[Frames], Frames]] = {
    "grayscale": grayscale,
    "invert": invert,
    "sepia": sepia,
    "pixelate": pixelate,
    "darken": darken,
}


def psnr_db(
    result: NDArray[np.uint8], expected: NDArray[np.uint8], where: NDArray[np.bool_] | None = None
) -> float:
    """PSNR over the pixels of `where` ([T, H, W]); 99 when identical, NaN when there are none."""
    difference = (result.astype(np.float64) - expected.astype(np.float64)) ** 2
    chosen = difference if where is None else difference[where]
    if chosen.size == 0:
        return float("nan")
    error = float(chosen.mean())
    return 99.0 if error == 0 else float(min(99.0, 10 * np.log10(255.0**2 / error)))
