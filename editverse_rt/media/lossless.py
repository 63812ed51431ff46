"""Frames kept on disk as they are: FFV1 in Matroska, for work that goes on later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from editverse_rt.errors import MediaError
from editverse_rt.files import OpenFile, reason, replacing
from editverse_rt.media.frames import Frames
from editverse_rt.media.libav import frame_from_rgb, open_input

__all__ = ["read_lossless", "write_lossless"]


def write_lossless(path: Path, frames: Frames) -> None:
    """Write frames uint8 [T, H, W, 3] so that `read_lossless` gives the same bytes. Raises MediaError.

    The file appears whole or not at all.
    """
    with replacing(path) as part:
        try:
            with av.open(str(part), "w", format="matroska", options={"fflags": "+bitexact"}) as container:
                stream = container.add_stream("ffv1", rate=25)
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
    """The frames [H, W, 3] of a file that `write_lossless` wrote, one by one. Raises MediaError."""
    file = OpenFile(str(path))
    try:
        with open_input(file.reader()) as container:
            for frame in container.decode(video=0):
                yield np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    except (av.FFmpegError, OSError, EOFError) as error:
        raise MediaError(
            f"{path}: cannot be read ({reason(error)})",
            hint="it is damaged; begin anew",
            code="media.undecodable",
        ) from error
    finally:
        file.close()
