"""Frames as published scores read them, and pictures as JPEG for a judge that takes no arrays.

`read_clip` converts colours by a video's tags, and differs from what the published scores were computed on by
several grey levels. Scoring reads every frame as PyAV's plain `to_ndarray("rgb24")` gives it, which equals
decord's frames.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from av.video.frame import VideoFrame

from editverse_rt.errors import MediaError
from editverse_rt.files import OpenFile, reason
from editverse_rt.media.frames import Frames
from editverse_rt.media.libav import open_input

__all__ = ["jpeg_from_picture", "read_frames_plain"]

_SECOND = Fraction(1)
_JPEG_QUALITY = 2  # of mjpeg's scale from 2, the finest, to 31


def read_frames_plain(path: str | os.PathLike[str]) -> Frames:
    """Decode every frame of a video, or the one of an image, at its stored size: uint8 RGB [T, H, W, 3].

    Neither rotation nor colour tags are applied. All frames are held in memory.
    Raises MediaError if no frame can be decoded, or if the frames differ in size.
    """
    name = str(path)
    file = OpenFile(name)
    try:
        frames = list(_decode(file))
    except (av.FFmpegError, OSError) as error:
        raise MediaError(
            f"{name}: no video or image that can be decoded ({reason(error)})",
            hint="make or convert it again",
        ) from error
    finally:
        file.close()
    if not frames:
        raise MediaError(
            f"{name}: found no frame that can be decoded", expected="at least one", hint="make it again"
        )
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        raise MediaError(
            f"{name}: found frames of {len(sizes)} sizes", expected="one", hint="convert it first"
        )
    return np.stack(frames)


def _decode(file: OpenFile) -> Iterator[Frames]:
    with open_input(file.reader()) as container:
        if not container.streams.video:
            raise MediaError(f"{file.name}: found no picture in the file", expected="a video or an image")
        for frame in container.decode(video=0):
            yield np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)


def jpeg_from_picture(picture: Frames) -> bytes:
    """Encode a picture uint8 RGB [H, W, 3] as a JPEG file of high quality, the same bytes on every call.

    Raises MediaError for an array of another dtype or shape.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3 or 0 in picture.shape:
        raise MediaError(
            f"found a picture {picture.dtype} {list(picture.shape)}", expected="uint8 [H, W, 3], not empty"
        )
    height, width, _ = picture.shape
    codec = av.CodecContext.create("mjpeg", "w")
    codec.width, codec.height, codec.pix_fmt = width, height, "yuvj444p"
    codec.time_base = _SECOND
    codec.options = {"qscale": str(_JPEG_QUALITY), "qmin": str(_JPEG_QUALITY), "qmax": str(_JPEG_QUALITY)}
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    packets = [*codec.encode(frame), *codec.encode(None)]
    return b"".join(bytes(packet) for packet in packets)
