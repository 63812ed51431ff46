"""What reading and writing share of libav: how files are opened, and how pictures are converted and resized.

Down-scaling averages areas, up-scaling is bicubic; both are bit-exact.
"""

from __future__ import annotations

import os

import av
import av.logging
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame

from editverse_rt.media.frames import Frames

__all__ = [
    "BICUBIC",
    "BT709",
    "EXACT",
    "FULL_RANGE",
    "LIMITED_RANGE",
    "MAX_SOURCE_AREA_PX",
    "UNSPECIFIED",
    "PathLike",
    "frame_from_rgb",
    "open_input",
    "resized",
    "rgb_array",
]

PathLike = str | os.PathLike[str]

# What libav has to say reaches the caller as exceptions; on stderr it would only be noise.
av.logging.set_level(None)
av.logging.set_libav_level(av.logging.PANIC)

# swscale's flags by value: PyAV 17, the newest for Python 3.10, names only the filters.
BICUBIC, AREA = 0x4, 0x20
EXACT = 0x40000 | 0x80000 | 0x2000 | 0x4000  # accurate rounding, bit-exact, full chroma out and in
BT709, UNSPECIFIED = 1, 2
LIMITED_RANGE, FULL_RANGE = 1, 2

MAX_SOURCE_AREA_PX = 2**27
READ_OPTIONS = {"protocol_whitelist": "file", "max_pixels": str(MAX_SOURCE_AREA_PX)}


def open_input(name: str) -> InputContainer:
    """Open a file, and nothing but a file, for reading; raises what libav raises."""
    # An absolute path is never taken for a protocol, and the whitelist keeps playlists from fetching.
    return av.open(os.path.abspath(name), "r", options=READ_OPTIONS, metadata_errors="replace")


def resized(frame: VideoFrame, height_px: int, width_px: int, colorspace: int | None = None) -> VideoFrame:
    """Convert to 8-bit RGB of that size; `colorspace` is the source's matrix where it names none."""
    shrinks = height_px < frame.height or width_px < frame.width
    flags = EXACT | (AREA if shrinks else BICUBIC)
    return frame.reformat(width_px, height_px, "rgb24", colorspace, interpolation=flags, threads=1)


def rgb_array(frame: VideoFrame) -> Frames:
    """Return the pixels of a frame in 8-bit RGB, uint8 [H, W, 3]."""
    return np.asarray(frame.to_ndarray(), dtype=np.uint8)


def frame_from_rgb(picture: Frames) -> VideoFrame:
    """Make a frame of a picture uint8 [H, W, 3]."""
    return VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
