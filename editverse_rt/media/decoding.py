"""One pass over a media file: its container opened, its stream chosen, and libav's errors in our words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Protocol, cast

import av
from av.container import InputContainer
from av.video.frame import VideoFrame

from editverse_rt.errors import MediaError
from editverse_rt.files import OpenFile, reason
from editverse_rt.media.assembled import AnimatedWebp, HeifStill, too_large_error
from editverse_rt.media.choosing import choose_stream
from editverse_rt.media.frames import MediaInfo
from editverse_rt.media.headers import HEAD_BYTES, Header, is_list
from editverse_rt.media.libav import MAX_SOURCE_AREA_PX, open_input
from editverse_rt.media.pixels import Placement
from editverse_rt.media.streams import StreamSource, TimedFrame

__all__ = ["Decoding", "Source", "no_frame_error", "start_error"]


class Source(Protocol):
    """A video or an image being decoded once; times count from its beginning."""

    path: str
    num_damaged: int
    end_s: float
    notices: list[str]
    rate: Fraction

    @property
    def is_image(self) -> bool: ...
    def placement(self, frame: VideoFrame) -> Placement: ...
    def decode(self) -> Iterator[TimedFrame]: ...
    def decode_from(self, start_s: float) -> Iterator[TimedFrame] | None: ...


class Decoding:
    """One pass over a file, from its beginning; what libav raises inside becomes MediaError."""

    def __init__(self, file: OpenFile, header: Header, data: bytes) -> None:
        self._file, self._header, self._data = file, header, data
        self._container: InputContainer | None = None
        self.source: Source

    def __enter__(self) -> Decoding:
        try:
            self.source = self._open()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self.close()
        self._translate(error)

    def close(self) -> None:
        """End the pass; safe to call twice."""
        if self._container is not None:
            self._container.close()
            self._container = None

    @contextmanager
    def translating(self) -> Iterator[None]:
        """What libav raises inside becomes MediaError; the pass goes on afterwards."""
        try:
            yield
        except (av.FFmpegError, OSError, EOFError) as error:
            self._translate(error)
            raise

    def _translate(self, error: BaseException | None) -> None:
        """Raise MediaError for an error of libav or of the system; do nothing for others."""
        if not isinstance(error, (av.FFmpegError, OSError, EOFError)):
            return
        if is_list(self._file.read_at(0, HEAD_BYTES)):
            raise MediaError(
                f"{self._file.name}: found a list of other files",
                expected="a video or an image",
                hint="give one of those files",
                code="media.unsupported",
            ) from error
        raise MediaError(
            f"{self._file.name}: no video or image that can be decoded ({reason(error)})",
            hint="it may be cut short or of another type, make or convert it again",
            code="media.undecodable",
        ) from error

    def _open(self) -> Source:
        if self._header.kind == "heif":
            return HeifStill(self._file.name, self._data)
        if self._header.kind == "webp" and self._header.is_animated:
            return AnimatedWebp(self._file.name, self._data, self._header)
        self._container = open_input(self._file.reader())
        stream = choose_stream(self._container, self._file.name)
        if stream.width * stream.height > MAX_SOURCE_AREA_PX:
            raise too_large_error(self._file.name, stream.width, stream.height)
        return StreamSource(self._file.name, self._container, stream, self._header)

    def describe(self, first: VideoFrame) -> MediaInfo:
        """What the source is, by its headers and its first frame."""
        source = self.source
        width, height = first.width, first.height
        if isinstance(source, (HeifStill, AnimatedWebp)):
            if source.is_image:
                return MediaInfo("image", width, height, None, None, 1, False)
            return MediaInfo(
                "video", width, height, float(source.rate), source.duration_s, source.num_frames, False
            )
        source = cast(StreamSource, source)
        aspect = source.stream.sample_aspect_ratio
        if aspect and Fraction(1, 8) < aspect < 8:
            width = max(1, round(width * aspect))
        if source.placement(first).transpose:
            width, height = height, width
        if source.is_image:
            return MediaInfo("image", width, height, None, None, 1, False)
        has_audio = self._container is not None and bool(self._container.streams.audio)
        return MediaInfo(
            "video",
            width,
            height,
            float(source.rate),
            source.duration_s,
            source.stream.frames or None,
            has_audio,
        )


def no_frame_error(source: Source) -> MediaError:
    damaged = f" ({source.num_damaged} damaged)" if source.num_damaged else ""
    return MediaError(
        f"{source.path}: found no frame that can be decoded{damaged}",
        expected="at least one",
        hint="make it again",
        code="media.undecodable",
    )


def start_error(name: object, start_s: float, end_s: float) -> MediaError:
    """The error of a video that ends at `end_s`, before `start_s`. name: its path, or what it is called."""
    return MediaError(
        f"{name}: found a start of {start_s:g} s; the video ends at {end_s:.2f} s",
        hint="start earlier",
        code="media.start",
    )
