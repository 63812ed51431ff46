"""What a result shows less of than its main input, though nobody asked for less: lines for the user."""

from __future__ import annotations

import os
from pathlib import Path

from editverse_rt import media
from editverse_rt.errors import MediaError
from editverse_rt.media.frames import MediaInfo
from editverse_rt.request.edit_request import EditRequest
from editverse_rt.request.sizes import Size

__all__ = ["describe_loss", "find_main"]

_MUCH = 2
"""A source of more than so many times the result's pixels lost many; a size is rounded by less."""


def describe_loss(
    request: EditRequest, main: tuple[str, MediaInfo] | None, output: Path, size: Size, num_frames: int
) -> list[str]:
    """The lines on pixels and frames that were left out.

    main: name and facts of the input that the result follows. size: (height, width) of the result.
    """
    if main is None:
        return []
    (name, info), (height, width), lines = main, size, []
    if request.size is None and info.width_px * info.height_px > _MUCH * height * width:
        lines.append(
            f"{name}: its {info.width_px}x{info.height_px} px became {width}x{height}, the most that the bundle "
            "takes of this shape"
        )
    is_picture = output.suffix.lower() in media.IMAGE_SUFFIXES and num_frames == 1
    if is_picture and info.kind == "video" and info.num_frames != 1:
        lines.append(f"{output}: holds one frame of {name}; name a video or a folder to have all")
    return lines


def find_main(request: EditRequest) -> tuple[str, MediaInfo] | None:
    """The input that a result follows, looked at; None without one, and for one that cannot be read."""
    names = sorted(request.inputs, key=lambda name: (not name.startswith("video"), int(name[5:])))
    source = request.inputs[names[0]] if names else None
    if not isinstance(source, (str, os.PathLike)):
        return None
    try:
        return names[0], media.probe(source)
    except MediaError:  # a server has read it; what became of the file since is no reason to fail
        return None
