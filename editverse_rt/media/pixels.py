"""Decoded frames as upright pictures in 8-bit sRGB: every property that shapes pixels is applied here.

docs/media.md has the table of properties. In order: one field of an interlaced frame; transparency over
white; the YUV matrix; the size; wide colours and high dynamic range; turning and mirroring.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from editverse_rt.media.frames import Frames
from editverse_rt.media.headers import Profile
from editverse_rt.media.libav import (
    AREA,
    BICUBIC,
    BT709,
    EXACT,
    FULL_RANGE,
    LIMITED_RANGE,
    UNSPECIFIED,
    frame_from_rgb,
    resized,
    rgb_array,
)

__all__ = [
    "EXIF_PLACEMENTS",
    "PROFILE_NOTICE",
    "Placement",
    "apply_profile",
    "blended",
    "frame_placement",
    "joined",
    "picture_from_frame",
    "pixel_notices",
]

PROFILE_NOTICE = "its colour profile is neither sRGB nor Display P3: colours were taken for sRGB's"
_HD_LINES = 720
_STRIP_PX = 1 << 20
# swscale takes every grey picture for one of full range.
_FULL_OF_LIMITED = np.clip(((np.arange(256) - 16) * 255 + 109) // 219, 0, 255).astype(np.uint8)


class Placement(NamedTuple):
    """How stored pixels become the picture shown: swap the axes first, then flip."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False


EXIF_PLACEMENTS = (
    Placement(False, False, False),
    Placement(False, True, False),
    Placement(False, True, True),
    Placement(False, False, True),
    Placement(True, False, False),
    Placement(True, True, False),
    Placement(True, True, True),
    Placement(True, False, True),
)
"""The placements of EXIF orientations 1 to 8."""


def frame_placement(frame: VideoFrame) -> Placement:
    """How a frame of a video is to be put upright, from the display matrix that its container has."""
    try:
        # PyAV's stubs take the container of side data for a dictionary.
        side_data: Iterable[Any] = frame.side_data
        entries = [entry for entry in side_data if entry.type.name == "DISPLAYMATRIX"]
    except ValueError:
        # PyAV 18 lists no side data at all where there is a kind that it does not know, as EXIF.
        return EXIF_PLACEMENTS[(1, 8, 3, 6)[round(frame.rotation / 90) % 4] - 1]
    if not entries:
        return Placement()
    a, b, _, c, d = np.frombuffer(bytes(entries[0]), np.int32)[:5].tolist()
    # A point (x, y) is shown at (a x + c y, b x + d y), up to a shift; turns of 90 degrees only.
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Placement(True, c < 0, b < 0)
    return Placement(False, a < 0, d < 0)


def picture_from_frame(
    frame: VideoFrame, placement: Placement, height_px: int, width_px: int, *, is_image: bool
) -> Frames:
    """Convert a decoded frame to an upright picture uint8 [height_px, width_px, 3] in sRGB.

    is_image: a picture that does not name its matrix is read as BT.601 at any size; a video as BT.709 from
    720 lines on.
    """
    size = (width_px, height_px) if placement.transpose else (height_px, width_px)
    matrix = None if is_image else _unnamed_matrix(frame)
    if frame.interlaced_frame:
        frame = _top_field(frame)
    mapping = _colour_mapping(frame)
    if has_alpha(frame):
        frame = over_white(frame, matrix)
    shrinks = size[0] < frame.height or size[1] < frame.width
    flags = EXACT | (AREA if shrinks else BICUBIC)
    if frame.format.name.startswith("gray") and frame.color_range == LIMITED_RANGE:
        grey = frame.reformat(size[1], size[0], "gray", interpolation=flags, threads=1).to_ndarray()
        picture = _FULL_OF_LIMITED[grey][..., None].repeat(3, axis=2)
    elif mapping is None:
        picture = rgb_array(resized(frame, *size, matrix))
    else:
        deep = frame.reformat(size[1], size[0], "rgb48le", matrix, interpolation=flags, threads=1)
        picture = _mapped(np.asarray(deep.to_ndarray()), *mapping)
    return place(picture, placement)


def _unnamed_matrix(frame: VideoFrame) -> int | None:
    """The YUV matrix of a frame of a video that does not name its own; None for swscale's own choice, BT.601."""
    return BT709 if frame.colorspace == UNSPECIFIED and frame.height >= _HD_LINES else None


def place(picture: NDArray[Any], placement: Placement) -> NDArray[Any]:
    """Put an array [H, W, ...] upright."""
    if placement.transpose:
        picture = picture.swapaxes(0, 1)
    if placement.flip_x:
        picture = picture[:, ::-1]
    if placement.flip_y:
        picture = picture[::-1]
    return np.ascontiguousarray(picture)


def apply_profile(frame: VideoFrame, profile: Profile) -> None:
    """Tag a picture with the colours of its ICC profile, so that they are mapped."""
    if profile == "p3":
        frame.color_primaries, frame.color_trc = _P3, _SRGB


def pixel_notices(frame: VideoFrame) -> list[str]:
    """What is done to the frames of a source that its owner may not expect, as lines for the user."""
    notices = []
    if frame.interlaced_frame:
        notices.append("the footage is interlaced: of each frame the upper field was taken")
    if frame.color_trc in _HDR_NAMES:
        name = _HDR_NAMES[frame.color_trc]
        notices.append(f"the footage has high dynamic range ({name}): it was mapped to standard range")
    return notices


# --- transparency ---


def has_alpha(frame: VideoFrame) -> bool:
    return frame.format.has_palette or any(component.is_alpha for component in frame.format.components)


def joined(colours: VideoFrame, alpha: VideoFrame) -> VideoFrame:
    """One frame of a video with transparency, of a frame of colours and a frame whose luma is their opacity."""
    flags, matrix = EXACT | BICUBIC, _unnamed_matrix(colours)
    rgb = colours.reformat(None, None, "rgb24", matrix, interpolation=flags, threads=1).to_ndarray()
    grey = alpha.reformat(
        colours.width, colours.height, "gray", dst_color_range=FULL_RANGE, interpolation=flags, threads=1
    )
    frame = VideoFrame.from_ndarray(np.dstack([rgb, grey.to_ndarray()]).astype(np.uint8), format="rgba")
    frame.pts, frame.time_base, frame.duration = colours.pts, colours.time_base, colours.duration
    return frame


def over_white(frame: VideoFrame, matrix: int | None) -> VideoFrame:
    """Lay a frame with transparency over white. matrix: of a frame in YUV that names none."""
    rgba = frame.reformat(None, None, "rgba", matrix, interpolation=EXACT | BICUBIC, threads=1).to_ndarray()
    return frame_from_rgb(blended(rgba[..., :3], rgba[..., 3], is_premultiplied=False))


def blended(rgb: NDArray[Any], alpha: NDArray[Any], *, is_premultiplied: bool) -> Frames:
    """Lay colours uint8 [H, W, 3] over white by their opacity uint8 [H, W]."""
    result = np.empty(rgb.shape, np.uint8)
    for rows in _strips(rgb):
        opacity = alpha[rows, :, None].astype(np.uint32)
        colours = rgb[rows] * np.uint32(255) if is_premultiplied else rgb[rows] * opacity
        result[rows] = np.minimum((colours + 255 * (255 - opacity) + 127) // 255, 255)
    return result


def _strips(picture: NDArray[Any]) -> Iterator[slice]:
    """Rows of a picture in strips of about a million pixels, so that wide integers take little memory."""
    height, width = picture.shape[:2]
    step = max(1, _STRIP_PX // max(1, width))
    return (slice(top, top + step) for top in range(0, height, step))


# --- interlacing ---


def _top_field(frame: VideoFrame) -> VideoFrame:
    """Every other line of a frame, from the first on."""
    field = VideoFrame(frame.width, (frame.height + 1) // 2, frame.format.name)
    for source, target in zip(frame.planes, field.planes, strict=True):
        lines = np.frombuffer(memoryview(source), np.uint8)[: source.line_size * source.height]
        rows = lines.reshape(source.height, source.line_size)[::2][: target.height]
        width = min(source.line_size, target.line_size)
        padded = np.zeros((target.buffer_size // target.line_size, target.line_size), np.uint8)
        padded[: len(rows), :width] = rows[:, :width]
        target.update(padded.tobytes().ljust(target.buffer_size, b"\0"))
    field.colorspace, field.color_range = frame.colorspace, frame.color_range
    field.color_trc, field.color_primaries = frame.color_trc, frame.color_primaries
    return field


# --- colours ---

_PQ, _HLG, _SRGB = 16, 18, 13
_HDR_NAMES = {_PQ: "PQ", _HLG: "HLG"}
_BT2020, _P3_DCI, _P3 = 9, 11, 12
# Linear light in 16.16 fixed point, 1 for the white of standard range: 203 cd/m2 in PQ, 75 % of the signal in
# HLG (ITU-R BT.2408). Matrices to BT.709's primaries in units of 1/16384; rows add up to 1: grey stays grey.
_ONE = 1 << 16
_SDR_WHITE_NITS = 203.0
_HLG_WHITE = 0.265
_TO_BT709 = {
    _BT2020: ((27205, -9628, -1193), (-2041, 18562, -137), (-297, -1648, 18329)),
    _P3: ((20069, -3685, 0), (-689, 17073, 0), (-322, -1288, 17994)),
}
# Up to here light stays as it is; what is brighter is pressed into the rest.
_KNEE = 0.85
_CURVE_SHIFT = 3


def _colour_mapping(frame: VideoFrame) -> tuple[int, int] | None:
    """(transfer, primaries) of a frame that has to be mapped to sRGB, or None."""
    transfer = frame.color_trc if frame.color_trc in _HDR_NAMES else 0
    primaries = _P3 if frame.color_primaries == _P3_DCI else frame.color_primaries
    if transfer and primaries not in _TO_BT709:
        return transfer, _BT2020 if primaries == UNSPECIFIED else 1
    return (transfer, primaries) if transfer or primaries in _TO_BT709 else None


def _mapped(picture: NDArray[Any], transfer: int, primaries: int) -> Frames:
    """Map pixels uint16 [H, W, 3] to sRGB uint8; in integers, so that every host gives the same."""
    lights, curve = _light_of_codes(transfer), _codes_of_light(bool(transfer))
    matrix = np.array(_TO_BT709[primaries], np.int64).T if primaries in _TO_BT709 else None
    result = np.empty(picture.shape, np.uint8)
    for rows in _strips(picture):
        light = lights[picture[rows]].astype(np.int64)
        if matrix is not None:
            light = light @ matrix >> 14
        result[rows] = curve[np.clip(light >> _CURVE_SHIFT, 0, len(curve) - 1)]
    return result


@lru_cache
def _light_of_codes(transfer: int) -> NDArray[np.int32]:
    """Linear light of each 16-bit code value. Source: ITU-R BT.2100 tables 4 and 5; sRGB for the rest."""
    code = np.arange(1 << 16) / 65535
    if transfer == _PQ:
        power = code ** (32 / 2523)
        light = (np.maximum(power - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * power)) ** (8192 / 1305)
        light *= 10000 / _SDR_WHITE_NITS
    elif transfer == _HLG:
        # The scene's light: a display's own gamma would make colours of standard range darker.
        bright = (np.exp((code - 0.55991073) / 0.17883277) + 0.28466892) / 12
        light = np.where(code <= 0.5, code * code / 3, bright) / _HLG_WHITE
    else:
        light = np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)
    return np.round(light * _ONE).astype(np.int32)


@lru_cache
def _codes_of_light(has_knee: bool) -> NDArray[np.uint8]:
    """The sRGB code of linear light in steps of 1/8192."""
    light = np.arange((64 << 13 if has_knee else 1 << 13) + 1) / (_ONE >> _CURVE_SHIFT)
    if has_knee:
        above = (light - _KNEE) / (1 - _KNEE)
        light = np.where(above > 0, _KNEE + (1 - _KNEE) * above / (1 + np.maximum(above, 0)), light)
    code = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(np.clip(code, 0, 1) * 255).astype(np.uint8)
