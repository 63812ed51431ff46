"""Reading and writing of videos and images: the only package that imports PyAV.

PyAV bundles FFmpeg's libraries in its wheel, so nothing has to be installed beside it. `reading.py` decodes,
`writing.py` encodes, and both take from `libav.py` what has to be the same in either direction.
"""

from __future__ import annotations

from editverse_rt.media.frames import Clip, MediaInfo, WriteReport, contact_sheet, sample_by_time
from editverse_rt.media.reading import clip_from_array, probe, read_clip
from editverse_rt.media.writing import IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_pattern, write_clip, write_image

__all__ = [
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Clip",
    "MediaInfo",
    "WriteReport",
    "clip_from_array",
    "contact_sheet",
    "is_pattern",
    "probe",
    "read_clip",
    "sample_by_time",
    "write_clip",
    "write_image",
]
