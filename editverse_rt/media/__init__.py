"""Reading and writing of videos and images: the only package that imports PyAV.

PyAV bundles FFmpeg's libraries in its wheel, so nothing has to be installed beside it. `reading.py` decodes,
`writing.py` encodes, and both take from `libav.py` what has to be the same in either direction.
"""

from __future__ import annotations

from editverse_rt.media.frames import Clip, MediaInfo, WriteReport, contact_sheet, sample_by_time
from editverse_rt.media.reading import MediaFile, clip_from_array, open_media, probe, read_clip
from editverse_rt.media.sound import Sound
from editverse_rt.media.targets import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    check_rate,
    check_target,
    is_pattern,
)
from editverse_rt.media.video_reader import VideoReader, open_array_frames
from editverse_rt.media.writing import write_clip, write_image

__all__ = [
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Clip",
    "MediaFile",
    "MediaInfo",
    "Sound",
    "VideoReader",
    "WriteReport",
    "check_rate",
    "check_target",
    "clip_from_array",
    "contact_sheet",
    "is_pattern",
    "open_array_frames",
    "open_media",
    "probe",
    "read_clip",
    "sample_by_time",
    "write_clip",
    "write_image",
]
