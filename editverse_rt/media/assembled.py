"""Pictures that libav's demuxers do not put together: HEIC and AVIF stills, and animated WebP.

Each coded part goes to a decoder by itself; the parts are placed here. What comes out is a source of frames
like any other (see reading.py).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from editverse_rt.errors import MediaError
from editverse_rt.media.frames import Frames
from editverse_rt.media.headers import Header, riff_chunks
from editverse_rt.media.heif import CodedItem, HeifPicture, parse_heif
from editverse_rt.media.libav import (
    BICUBIC,
    EXACT,
    FULL_RANGE,
    MAX_SOURCE_AREA_PX,
    frame_from_rgb,
)
from editverse_rt.media.pixels import PROFILE_NOTICE, Placement, apply_profile, blended, picture_from_frame

__all__ = ["AnimatedWebp", "HeifStill"]

TimedFrame = tuple[float, float, VideoFrame]

# PyAV's "av1" is FFmpeg's own decoder, which needs a GPU.
_DECODERS = {"hevc": "hevc", "av1": "libdav1d", "h264": "h264"}


def _decode(decoder: str, data: bytes, extradata: bytes = b"") -> VideoFrame:
    """Decode one coded picture; raises what libav raises, EOFError where nothing comes out."""
    context = cast(VideoCodecContext, av.CodecContext.create(decoder, "r"))
    context.thread_count, context.options = 1, {"max_pixels": str(MAX_SOURCE_AREA_PX)}
    if extradata:
        context.extradata = extradata
    frames = [*context.decode(av.Packet(data)), *context.decode(None)]
    if not frames:
        raise EOFError("no picture came out of the decoder")
    return frames[0]


class HeifStill:
    """The primary picture of a HEIC or AVIF file, with its grid, transparency, turning, mirroring and crop.

    Raises MediaError where the boxes are damaged, or ask for what is not assembled here.
    """

    is_image = True
    rate = Fraction(1)
    duration_s = None
    num_frames = 1
    has_audio = False
    origin_s = Fraction(0)

    def __init__(self, path: str, data: bytes) -> None:
        self.path = path
        self.num_damaged = 0
        self.end_s = 0.0
        self.notices: list[str] = []
        self._picture = parse_heif(data, path)
        if self._picture.tiles[0].profile == "other":
            self.notices.append(PROFILE_NOTICE)
        self.width_px, self.height_px = self._shown_size()

    def placement(self, frame: VideoFrame) -> Placement:
        return Placement()

    def decode_from(self, start_s: float) -> None:
        return None

    def decode(self) -> Iterator[TimedFrame]:
        """Yield the picture, upright, over white."""
        picture = self._picture
        canvas = self._assemble(picture, _rgb_of_item)
        if picture.alpha is not None:
            alpha = self._assemble(picture.alpha, _luma_of_item)
            if alpha.shape[:2] != canvas.shape[:2]:
                frame = VideoFrame.from_ndarray(np.ascontiguousarray(alpha), format="gray")
                frame.color_range = FULL_RANGE
                alpha = _grey(frame, canvas.shape[0], canvas.shape[1])
            canvas = blended(canvas, alpha, is_premultiplied=picture.is_premultiplied)
        for kind, value in picture.transforms:
            canvas = self._transformed(canvas, kind, value)
        self.end_s = 1.0
        yield 0.0, 1.0, frame_from_rgb(canvas)

    def _assemble(self, picture: HeifPicture, pixels: Any) -> NDArray[Any]:
        self._check_area(picture.width_px, picture.height_px)
        if picture.columns == 1 and len(picture.tiles) == 1:
            return cast(NDArray[Any], pixels(picture.tiles[0]))[: picture.height_px, : picture.width_px]
        canvas: NDArray[Any] | None = None
        tile_height = tile_width = 0
        for number, item in enumerate(picture.tiles):
            tile = pixels(item)
            if canvas is None:
                tile_height, tile_width = tile.shape[:2]
                rows = len(picture.tiles) // picture.columns
                if tile_height * rows < picture.height_px or tile_width * picture.columns < picture.width_px:
                    raise MediaError(
                        f"{self.path}: found tiles that do not cover the picture",
                        hint="make the file again or convert it to PNG",
                        code="media.damaged",
                    )
                canvas = np.zeros((picture.height_px, picture.width_px, *tile.shape[2:]), np.uint8)
            if tile.shape[:2] != (tile_height, tile_width):
                raise MediaError(
                    f"{self.path}: found tiles of different sizes",
                    hint="make the file again or convert it to PNG",
                    code="media.damaged",
                )
            row, column = divmod(number, picture.columns)
            place = canvas[row * tile_height :, column * tile_width :][:tile_height, :tile_width]
            place[:] = tile[: place.shape[0], : place.shape[1]]
        assert canvas is not None  # noqa: S101 - a picture has a tile
        return canvas

    def _check_area(self, width_px: int, height_px: int) -> None:
        if width_px * height_px > MAX_SOURCE_AREA_PX:
            raise too_large_error(self.path, width_px, height_px)

    def _shown_size(self) -> tuple[int, int]:
        width, height = self._picture.width_px, self._picture.height_px
        self._check_area(width, height)
        for kind, value in self._picture.transforms:
            if kind == "turn" and cast(int, value) % 2:
                width, height = height, width
            elif kind == "crop":
                _, _, width, height = self._crop(value, width, height)
        return width, height

    def _transformed(self, canvas: NDArray[Any], kind: str, value: object) -> NDArray[Any]:
        if kind == "turn":
            return np.rot90(canvas, cast(int, value))
        if kind == "mirror":
            return canvas[:, ::-1] if value else canvas[::-1]
        left, top, width, height = self._crop(value, canvas.shape[1], canvas.shape[0])
        return canvas[top : top + height, left : left + width]

    def _crop(self, value: object, width_px: int, height_px: int) -> tuple[int, int, int, int]:
        """Left, top, width and height of a clean aperture; it is centred, but for its offsets."""
        sides = [Fraction(a, b) if b else Fraction(0) for a, b in cast(Any, value)]
        width, height = int(sides[0]), int(sides[1])
        left = round(sides[2] + Fraction(width_px - width, 2))
        top = round(sides[3] + Fraction(height_px - height, 2))
        if (
            width < 1
            or height < 1
            or left < 0
            or top < 0
            or left + width > width_px
            or top + height > height_px
        ):
            raise MediaError(
                f"{self.path}: found a crop that leaves the picture",
                hint="make the file again or convert it to PNG",
                code="media.damaged",
            )
        return left, top, width, height


def too_large_error(path: str, width_px: int, height_px: int) -> MediaError:
    return MediaError(
        f"{path}: found frames of {width_px}x{height_px}",
        expected=f"{MAX_SOURCE_AREA_PX} pixels or fewer",
        hint="make it smaller first",
        code="media.too_large",
    )


def _item_frame(item: CodedItem) -> VideoFrame:
    frame = _decode(_DECODERS[item.codec], item.data, item.configuration)
    if item.colour is not None:
        primaries, transfer, matrix, value_range = item.colour
        frame.color_primaries, frame.color_trc, frame.color_range = primaries, transfer, value_range
        if matrix:
            frame.colorspace = matrix
    elif frame.color_range == 0:
        # What is unsaid is full range (ISO/IEC 23000-22, MIAF, 7.3.6.4).
        frame.color_range = FULL_RANGE
    apply_profile(frame, item.profile)
    return frame


def _rgb_of_item(item: CodedItem) -> Frames:
    frame = _item_frame(item)
    return picture_from_frame(frame, Placement(), frame.height, frame.width, is_image=True)


def _luma_of_item(item: CodedItem) -> NDArray[Any]:
    frame = _item_frame(item)
    return _grey(frame, frame.height, frame.width)


def _grey(frame: VideoFrame, height_px: int, width_px: int) -> NDArray[Any]:
    grey = frame.reformat(
        width_px,
        height_px,
        "gray",
        dst_color_range=FULL_RANGE,
        interpolation=EXACT | BICUBIC,
        threads=1,
    )
    return np.asarray(grey.to_ndarray())


class AnimatedWebp:
    """The frames of an animated WebP on its canvas, as RGBA. Source: RFC 9649, section 2.7.1."""

    is_image = False
    has_audio = False
    origin_s = Fraction(0)

    def __init__(self, path: str, data: bytes, header: Header) -> None:
        self.path = path
        self.num_damaged = 0
        self.end_s = 0.0
        self.notices: list[str] = []
        self.width_px, self.height_px = header.width_px, header.height_px
        self._data = data
        self._parts = [
            (begin, end)
            for name, begin, end in riff_chunks(data, 12, len(data))
            if name == b"ANMF" and end - begin > 24
        ]
        total_ms = sum(self._duration_ms(begin) for begin, _ in self._parts)
        self.num_frames = len(self._parts)
        self.duration_s = total_ms / 1000
        self.rate = Fraction(1000 * self.num_frames, total_ms) if total_ms else Fraction(1)

    def placement(self, frame: VideoFrame) -> Placement:
        return Placement()

    def decode_from(self, start_s: float) -> None:
        return None

    def decode(self) -> Iterator[TimedFrame]:
        """Yield (time, end, frame); a frame that cannot be decoded is skipped and counted."""
        canvas = np.zeros((self.height_px, self.width_px, 4), np.uint8)
        time_s = 0.0
        for begin, end in self._parts:
            left, top = 2 * self._number(begin), 2 * self._number(begin + 3)
            width, height = 1 + self._number(begin + 6), 1 + self._number(begin + 9)
            flags, duration_s = self._data[begin + 15], self._duration_ms(begin) / 1000
            place = canvas[top : top + height, left : left + width]
            try:
                picture = self._picture(begin + 16, end, width, height)
            except (av.FFmpegError, EOFError, ValueError):
                self.num_damaged += 1
                continue
            picture = picture[: place.shape[0], : place.shape[1]]
            place[:] = picture if flags & 2 else _over(picture, place)
            self.end_s = time_s + duration_s
            yield time_s, self.end_s, VideoFrame.from_ndarray(canvas.copy(), format="rgba")
            time_s = self.end_s
            if flags & 1:
                place[:] = 0

    def _picture(self, begin: int, end: int, width_px: int, height_px: int) -> NDArray[Any]:
        # A frame's chunks are those of a still picture, but for its head.
        body = self._data[begin:end]
        if body[:4] == b"ALPH":
            sides = (width_px - 1).to_bytes(3, "little") + (height_px - 1).to_bytes(3, "little")
            body = b"VP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + sides + body
        still = b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
        frame = _decode("webp", still)
        if (frame.width, frame.height) != (width_px, height_px):
            raise ValueError("a frame of another size than its head says")
        return frame.reformat(format="rgba", interpolation=EXACT | BICUBIC, threads=1).to_ndarray()

    def _number(self, at: int) -> int:
        return int.from_bytes(self._data[at : at + 3], "little")

    def _duration_ms(self, begin: int) -> int:
        # As browsers do: what asks for less than 11 ms is shown for 100 ms.
        duration_ms = self._number(begin + 12)
        return duration_ms if duration_ms > 10 else 100


def _over(picture: NDArray[Any], canvas: NDArray[Any]) -> NDArray[Any]:
    """Blend RGBA over RGBA, neither multiplied by its opacity."""
    above, below = picture.astype(np.int32), canvas.astype(np.int32)
    rest = below[..., 3:] * (255 - above[..., 3:]) // 255
    opacity = above[..., 3:] + rest
    colours = above[..., :3] * above[..., 3:] + below[..., :3] * rest
    colours = (colours + opacity // 2) // np.maximum(opacity, 1)
    return np.concatenate([colours, opacity], axis=-1).astype(np.uint8)
