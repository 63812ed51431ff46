"""Frames kept on disk as they are: FFV1 in Matroska, for work that goes on later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer

from editverse_rt.errors import MediaError
from editverse_rt.files import OpenFile, reason, replacing
from editverse_rt.media.frames import Frames
from editverse_rt.media.libav import frame_from_rgb, open_input, open_output

__all__ = ["read_lossless", "write_lossless"]

_FPS = 25
_MICROSECONDS = 1_000_000


def write_lossless(path: Path, frames: Frames) -> None:
    """Write frames uint8 [T, H, W, 3] so that `read_lossless` gives the same bytes. Raises MediaError.

    The file appears whole or not at all.
    """
    with replacing(path) as part:
        try:
            with open_output(part, "matroska", {"fflags": "+bitexact"}) as container:
                stream = container.add_stream("ffv1", rate=_FPS)
                stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "bgr0"
                stream.codec_context.thread_count = 1
                for picture in frames:
                    container.mux(stream.encode(frame_from_rgb(picture).reformat(format="bgr0")))
                container.mux(stream.encode(None))
        except av.FFmpegError as error:
            if isinstance(error, OSError):
                raise
            raise MediaError(
                f"{path}: cannot be written ({reason(error)})", code="media.unwritable"
            ) from error


def read_lossless(path: Path) -> Iterator[Frames]:
    """The frames [H, W, 3] of a file that `write_lossless` wrote, one by one.

    Raises MediaError where it cannot be read, and after the last frame where some are missing.
    """
    file, count = OpenFile(str(path)), 0
    try:
        with open_input(file.reader()) as container:
            num_frames = _num_frames(container)
            for frame in container.decode(video=0):
                count += 1
                yield np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    except (av.FFmpegError, OSError, EOFError) as error:
        raise _damage_error(path, f"cannot be read ({reason(error)})") from error
    finally:
        file.close()
    if count != num_frames:
        # What is missing at the end of a file, or cannot be decoded, is no error for libav.
        raise _damage_error(path, f"holds {count} of its {num_frames} frames")


def _num_frames(container: InputContainer) -> int:
    """How many frames were written, by the length that the muxer notes at the end, in the file's header."""
    return round((container.duration or 0) * _FPS / _MICROSECONDS)


def _damage_error(path: Path, found: str) -> MediaError:
    return MediaError(f"{path}: {found}", hint="it is damaged; run again", code="media.undecodable")
