"""What reading and writing share of libav: how files are opened, and how pictures are converted and resized.

Down-scaling averages areas, up-scaling is bicubic; both are bit-exact.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn, Protocol

import av
import av.logging
import numpy as np
from av.container import InputContainer, OutputContainer
from av.video.frame import VideoFrame

from editverse_rt.media.frames import Frames

__all__ = [
    "AREA",
    "BICUBIC",
    "BT709",
    "EXACT",
    "FULL_RANGE",
    "LIMITED_RANGE",
    "MAX_SOURCE_AREA_PX",
    "UNSPECIFIED",
    "SeekableReader",
    "frame_from_rgb",
    "open_input",
    "open_output",
    "resized",
    "rgb_array",
]

# What libav has to say reaches the caller as exceptions; on stderr it would only be noise.
av.logging.set_level(None)
av.logging.set_libav_level(av.logging.PANIC)

# swscale's flags by value: PyAV 17, the newest for Python 3.10, names only the filters.
BICUBIC, AREA = 0x4, 0x20
EXACT = 0x40000 | 0x80000 | 0x2000 | 0x4000  # accurate rounding, bit-exact, full chroma out and in
BT709, UNSPECIFIED = 1, 2
LIMITED_RANGE, FULL_RANGE = 1, 2

MAX_SOURCE_AREA_PX = 2**26
# Demuxers that read the one file they are given. Playlists and lists of files (hls, concat, dash, imf, sdp,
# image2) are not among them, and libav checks the list before a demuxer reads its header.
DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "mpeg", "mpegvideo", "m4v", "h264", "hevc",
    "vvc", "obu", "av1", "ivf", "vc1", "cavsvideo", "dirac", "flv", "live_flv", "kux", "asf", "asf_o", "ogg",
    "gif", "apng", "nut", "mxf", "yuv4mpegpipe", "dv", "rm", "wtv", "swf", "mjpeg", "mjpeg_2000", "ico",
    "png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe", "gif_pipe", "j2k_pipe", "jpegls_pipe",
    "jpegxl_pipe", "jpegxl_anim", "ppm_pipe", "pgm_pipe", "pbm_pipe", "pam_pipe", "pgmyuv_pipe", "pcx_pipe",
    "exr_pipe", "dpx_pipe", "psd_pipe", "qoi_pipe", "sunrast_pipe", "sgi_pipe", "hdr_pipe", "pfm_pipe",
    "aac", "mp3", "wav", "flac", "w64", "aiff", "caf", "amr", "au", "ac3", "eac3", "dts",
)  # fmt: skip
READ_OPTIONS = {
    "format_whitelist": ",".join(DEMUXERS),
    "protocol_whitelist": "none",
    "max_pixels": str(MAX_SOURCE_AREA_PX),
}
_BUFFER_BYTES = 1 << 17


class SeekableReader(Protocol):
    """A file that is open: bytes in order, from any place."""

    def read(self, num_bytes: int, /) -> bytes: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def tell(self) -> int: ...


def open_input(reader: SeekableReader) -> InputContainer:
    """Open what `reader` holds, and nothing else, for reading; raises what libav raises.

    The type is found in the content: libav is given no name, so that no suffix and no pattern in it decides.
    """
    return av.open(
        reader,
        "r",
        options=READ_OPTIONS,
        metadata_errors="replace",
        buffer_size=_BUFFER_BYTES,
        io_open=_refuse_to_open,
    )


def open_output(path: Path, muxer: str, options: dict[str, str]) -> OutputContainer:
    """Open a file for writing; raises what libav raises.

    libav is told that the name is a file's: it takes the first part of "10:00/out.mp4" for a protocol.
    """
    return av.open(f"file:{path}", "w", format=muxer, options=options)


def _refuse_to_open(*_: object) -> NoReturn:
    raise PermissionError("it refers to another file")


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
