"""One video stream of a container, as frames in order of time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from itertools import chain
from typing import Any, cast

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from editverse_rt.media.headers import Header
from editverse_rt.media.libav import LIMITED_RANGE, MAX_SOURCE_AREA_PX
from editverse_rt.media.pixels import (
    EXIF_PLACEMENTS,
    PROFILE_NOTICE,
    Placement,
    apply_profile,
    frame_placement,
    joined,
)

__all__ = ["StreamSource", "TimedFrame"]

TimedFrame = tuple[float, float, VideoFrame]

# Demuxers without an index: libav seeks by guesses there, and times after a seek cannot be trusted.
_SEEKABLE = ("mov", "matroska")
# Elementary streams: no timestamps, and the rate that libav states is its own default.
_WITHOUT_TIMES = {"h264", "hevc", "vvc", "obu", "m4v", "mpegvideo", "vc1", "cavsvideo", "dirac", "mjpeg"}
# Codecs whose unsaid range is limited (ITU-T H.264, H.265 and H.266, annex E; AV1, 6.4.2).
_LIMITED_UNLESS_SAID = {"h264", "hevc", "vvc", "libdav1d", "av1", "vp9", "libvpx-vp9"}
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
        if header.is_cut:
            self.num_damaged = 1
            self.notices.append("the file ends before its picture does; what is missing is filled in")
        if header.profile == "other":
            self.notices.append(PROFILE_NOTICE)
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
        self._alpha = _alpha_beside(container, stream)
        self._dts: deque[int] = deque()

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
        if "avi" in self._names:
            yield from self._decode_by_chunk()
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

    def _decode_by_chunk(self) -> Iterator[TimedFrame]:
        """AVI has no timestamps: a frame's time is its chunk's number, and an empty chunk holds the last frame.

        Frames that are shown in another order than they are stored take the times of the chunks in order.
        """
        base = self.stream.time_base
        for number, frame in enumerate(self._frames()):
            tick = self._dts.popleft() if self._dts else number
            next_tick = self._dts[0] if self._dts else tick + 1
            self.end_s = float(next_tick * base)
            yield float(tick * base), self.end_s, frame

    def _compare_with_stated_end(self) -> None:
        if not self._names.intersection(_SEEKABLE) or self.is_image:
            return
        stated_s = 0.0
        if "mov" in self._names and self.stream.duration and self.stream.time_base:
            stated_s = float(self.stream.duration * self.stream.time_base)
        elif "DURATION" in self.stream.metadata:
            # When the track ends on the file's clock; `end_s` counts from where the track begins.
            begin_s = float(self._origin * self.stream.time_base) if self.stream.time_base else 0.0
            stated_s = _seconds_of_clock(self.stream.metadata["DURATION"]) - begin_s
        if self.end_s < stated_s * _STATED_SHARE - _STATED_SLACK_S:
            self.num_damaged += 1
            self.notices.append(f"the file ends at {self.end_s:.2f} s of {stated_s:.2f} s: it was cut short")

    def _frames(self) -> Iterator[VideoFrame]:
        if self._alpha is None:
            for packet in self._packets(self.stream):
                yield from self._decoded(packet, self._decoder)
            return
        colours: deque[VideoFrame] = deque()
        alphas: deque[VideoFrame] = deque()
        for packet in self._packets(self.stream, self._alpha):
            if packet.stream.index == self.stream.index:
                colours.extend(self._decoded(packet, self._decoder))
            else:
                alphas.extend(self._decoded(packet, self._alpha.codec_context))
            while colours and alphas:
                yield joined(colours.popleft(), alphas.popleft())

    def _packets(self, *streams: VideoStream) -> Iterator[Packet[Any]]:
        """Yield the packets that are whole, and the empty ones that flush decoders."""
        # PyAV frees the packet that it reads into only where its generator is exhausted or closed, not dropped.
        packets: Any = self.container.demux(*streams)
        with closing(packets):
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
                if packet.dts is not None:
                    if packet.size == 0:
                        continue
                    if "avi" in self._names:
                        self._dts.append(packet.dts)
                yield packet

    def _decoded(self, packet: Packet[Any], decoder: VideoCodecContext) -> Iterator[VideoFrame]:
        try:
            for frame in decoder.decode(packet):
                if frame.color_range == 0 and decoder.name in _LIMITED_UNLESS_SAID:
                    frame.color_range = LIMITED_RANGE
                apply_profile(frame, self._header.profile)
                yield frame
        except EOFError:
            return
        except av.FFmpegError:
            self.num_damaged += 1


def _alpha_beside(container: InputContainer, stream: VideoStream) -> VideoStream | None:
    """The stream that holds the transparency of an AVIF sequence: grey, of the same size and length."""
    if container.metadata.get("major_brand") not in ("avis", "msf1", "hevc", "hevx"):
        return None
    for other in container.streams.video:
        is_like = (other.width, other.height, other.frames) == (stream.width, stream.height, stream.frames)
        is_grey = other.codec_context is not None and (other.codec_context.pix_fmt or "").startswith("gray")
        if other.index > stream.index and is_like and is_grey:
            return other
    return None


def _seconds_of_clock(text: str) -> float:
    """Seconds of "HH:MM:SS.fraction"; 0 for another text."""
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return 0.0
