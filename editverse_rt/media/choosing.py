"""Which of a container's video streams is the input. One rule, for every container."""

from __future__ import annotations

from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from editverse_rt.errors import MediaError

__all__ = ["choose_stream"]

_NEVER = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.dependent


def choose_stream(container: InputContainer, name: str) -> VideoStream:
    """Choose a stream by: more than one frame, the default flag, the larger picture, the earlier stream.

    Covers, thumbnails and layers that depend on another stream are never taken; `name` stands in errors.
    Raises MediaError where nothing is left.
    """
    streams = [s for s in container.streams.video if not s.disposition & _NEVER]
    known = [s for s in streams if s.codec_context is not None]
    if known:
        return max(known, key=_rank)
    if streams:
        raise MediaError(
            f"{name}: found video of a codec that is not known here",
            hint="convert it to H.264, as in `ffmpeg -i IN -c:v libx264 out.mp4`",
            code="media.unsupported",
        )
    found = "only audio" if container.streams.audio else "no picture"
    raise MediaError(
        f"{name}: found {found} in the file", expected="a video or an image", code="media.no_picture"
    )


def _rank(stream: VideoStream) -> tuple[bool, bool, int, int]:
    is_default = bool(stream.disposition & Disposition.default)
    return stream.frames != 1, is_default, stream.width * stream.height, -stream.index
