"""One video stream of a container, as frames in order of time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from typing import Any, cast

import av
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from editverse_rt.media.headers import Header
from editverse_rt.media.libav import MAX_SOURCE_AREA_PX
from editverse_rt.media.pixels import EXIF_PLACEMENTS, Placement, frame_placement

__all__ = ["StreamSource", "TimedFrame"]

TimedFrame = tuple[float, float, VideoFrame]

# Demuxers without an index: libav seeks by guesses there, and times after a seek cannot be trusted.
_SEEKABLE = ("mov", "matroska")
# Elementary streams: no timestamps, and the rate that libav states is its own default.
_WITHOUT_TIMES = {"h264", "hevc", "vvc", "obu", "m4v", "mpegvideo", "vc1", "cavsvideo", "dirac", "mjpeg"}
# FFmpeg's own decoders of VP8 and VP9 drop the transparency that a WebM has beside the picture.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
# Containers whose stated duration is of the video, and true.
_STATED_SHARE, _STATED_SLACK_S = 0.95, 0.25


class StreamSource:
    """One video stream of a container that libav demuxes."""

    def __init__(self, path: str, container: InputContainer, stream: Any, header: Header) -> None:
        self.path = path
        self.container = container
        self.stream = stream
        self.num_damaged = 0
        self.end_s = 0.0
        self.notices: list[str] = []
        if header.is_cut and header.is_picture:
            self.num_damaged = 1
            self.notices.append("the file ends before its picture does; what is missing is filled in")
        self._header = header
        self._names = set(container.format.name.split(","))
        # guessed_rate is a multiple of the true rate where the frame rate varies: a last resort.
        self.rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        self._origin = stream.start_time or 0
        self._decoder: VideoCodecContext = stream.codec_context
        if stream.metadata.get("alpha_mode") == "1" and self._decoder.name in _ALPHA_DECODERS:
            self._decoder = cast(
                VideoCodecContext, av.CodecContext.create(_ALPHA_DECODERS[self._decoder.name], "r")
            )
        self._decoder.options = {"max_pixels": str(MAX_SOURCE_AREA_PX)}
        # Bounded, because every frame in flight is a whole picture in memory.
        self._decoder.thread_count = min(4, os.cpu_count() or 1)
        self._decoder.thread_type = "AUTO"

    @property
    def is_image(self) -> bool:
        if self._header.kind != "container":
            return not self._header.is_animated
        return any(name.endswith("_pipe") for name in self._names)

    @property
    def duration_s(self) -> float | None:
        if self.stream.duration and self.stream.time_base:
            return float(self.stream.duration * self.stream.time_base)
        return self.container.duration / 1_000_000 if self.container.duration else None

    def placement(self, frame: VideoFrame) -> Placement:
        """How the stored frame is put upright: by EXIF for a picture, else by the display matrix."""
        return EXIF_PLACEMENTS[self._header.orientation - 1] if self.is_image else frame_placement(frame)

    def decode_from(self, start_s: float) -> Iterator[TimedFrame] | None:
        """Decode from the key frame at or before `start_s`; None if this source cannot be entered there."""
        time_base = self.stream.time_base
        if not time_base or not self._names.intersection(_SEEKABLE):
            return None
        try:
            self.container.seek(self._origin + int(start_s / time_base), stream=self.stream)
        except (av.FFmpegError, OverflowError):
            return None
        frames = self.decode()
        first = next(frames, None)
        return None if first is None or first[0] > start_s else chain([first], frames)

    def decode(self) -> Iterator[TimedFrame]:
        """Yield (time, end, frame) in order of time; others follow at the average rate."""
        if self._names & _WITHOUT_TIMES:
            yield from self._decode_by_count()
            return
        interval_s = 1 / float(self.rate)
        last_s = float("-inf")
        for frame in self._frames():
            base = frame.time_base
            time_s = float((frame.pts - self._origin) * base) if frame.pts is not None and base else last_s
            if time_s <= last_s:
                time_s = max(self.end_s, last_s + interval_s) if self.end_s else 0.0
            duration_s = float(frame.duration * base) if base else 0.0
            self.end_s = time_s + (duration_s if duration_s > 0 else interval_s)
            last_s = time_s
            yield time_s, self.end_s, frame
        self._compare_with_stated_end()

    def _decode_by_count(self) -> Iterator[TimedFrame]:
        for number, frame in enumerate(self._frames()):
            if number == 0:
                self.rate = self._decoder.framerate or self.stream.guessed_rate or self.rate
            self.end_s = float((number + 1) / self.rate)
            yield float(number / self.rate), self.end_s, frame

    def _compare_with_stated_end(self) -> None:
        if not self._names.intersection(_SEEKABLE) or self.is_image:
            return
        stated_s = 0.0
        if "mov" in self._names and self.stream.duration and self.stream.time_base:
            stated_s = float(self.stream.duration * self.stream.time_base)
        elif "DURATION" in self.stream.metadata:
            stated_s = _seconds_of_clock(self.stream.metadata["DURATION"])
        if self.end_s < stated_s * _STATED_SHARE - _STATED_SLACK_S:
            self.num_damaged += 1
            self.notices.append(f"the file ends at {self.end_s:.2f} s of {stated_s:.2f} s: it was cut short")

    def _frames(self) -> Iterator[VideoFrame]:
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError:
                packet = None
                self.num_damaged += 1
            if packet is None:
                return
            # What is missing of a packet that was cut would be concealed by guesswork.
            if packet.is_corrupt:
                self.num_damaged += 1
                continue
            try:
                yield from self._decoder.decode(packet)
            except EOFError:
                return
            except av.FFmpegError:
                self.num_damaged += 1


def _seconds_of_clock(text: str) -> float:
    """Seconds of "HH:MM:SS.fraction"; 0 for another text."""
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return 0.0
