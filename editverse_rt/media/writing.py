"""Encoding of videos and images.

Encoders run on one thread and write no random identifiers, so the same frames give the same bytes.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.filter import Graph
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from editverse_rt.errors import MediaError
from editverse_rt.files import check_input_file, move_files, reason, replacing, working_folder
from editverse_rt.media.frames import Frames, WriteReport, check_fps, checked_frames
from editverse_rt.media.libav import (
    BICUBIC,
    BT709,
    EXACT,
    FULL_RANGE,
    LIMITED_RANGE,
    PathLike,
    frame_from_rgb,
    open_input,
)

__all__ = ["IMAGE_SUFFIXES", "VIDEO_SUFFIXES", "is_pattern", "write_clip", "write_image"]


class _Container(NamedTuple):
    """A video file type: muxer, encoder, its options (visually lossless), muxer options."""

    muxer: str
    encoder: str
    encoder_options: dict[str, str]
    muxer_options: dict[str, str]


_H264 = ("libx264", {"crf": "14", "preset": "medium"})
_CONTAINERS = {
    ".mp4": _Container("mp4", *_H264, {"movflags": "+faststart"}),
    ".mov": _Container("mov", *_H264, {"movflags": "+faststart"}),
    ".mkv": _Container("matroska", *_H264, {}),
    ".webm": _Container("webm", "libvpx-vp9", {"crf": "16", "b": "0", "cpu-used": "2", "row-mt": "0"}, {}),
    ".gif": _Container("gif", "gif", {}, {}),
}


class _Picture(NamedTuple):
    encoder: str
    pixel_format: str
    options: dict[str, str]


_JPEG = _Picture("mjpeg", "yuvj444p", {"qmin": "1", "qmax": "2"})
_PICTURES = {
    ".png": _Picture("png", "rgb24", {}),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": _Picture("libwebp", "bgra", {"lossless": "1"}),
}
IMAGE_SUFFIXES = frozenset(_PICTURES)
VIDEO_SUFFIXES = frozenset(_CONTAINERS)
_FOLDER_PATTERN = "frame_%05d.png"


def write_clip(
    path: PathLike,
    frames: NDArray[Any] | Iterable[NDArray[Any]],
    fps: float,
    *,
    audio_from: PathLike | None = None,
) -> WriteReport:
    """Write uint8 frames [T, H, W, 3], or an iterable of [H, W, 3], to `path`; its suffix says how.

    .mp4, .mov, .mkv (H.264, 4:2:0, an odd side padded by repeating its last line, as players need it), .webm
    (VP9), .gif (one palette for the whole clip); .png, .jpg, .webp for one frame; for more, PNG frames in a
    folder (no suffix; new or empty), or pictures of any suffix by a pattern such as name_%04d.png, numbered
    from 1 and also where there is only one. A file that is there is replaced.
    `audio_from`: the first audio stream of that file is carried over bit for bit, shifted as its video
    begins; whether the lengths agree is the caller's business. Where the container cannot hold it, the video
    is written without, and a notice says so. `fps` is ignored for pictures.
    Raises MediaError, and leaves nothing behind, on a suffix or frames of another kind, or what the system
    refuses (no folder, no permission, a full disk).
    """
    target = Path(path)
    suffix = target.suffix.lower()
    pictures = _flat_pictures(frames)
    if suffix in _CONTAINERS:
        check_fps(fps)
        with replacing(target) as part, _encoding(target):
            return _write_container(
                target, part, pictures, Fraction(fps).limit_denominator(100_000), audio_from
            )
    notices: tuple[str, ...] = ()
    with _open_audio(audio_from) as audio:
        if audio is not None:
            notices = ("the source's audio was left out: pictures hold none; write .mp4 or .mkv to keep it",)
    if suffix in _PICTURES and is_pattern(target.name):
        with working_folder(target) as folder, _encoding(target):
            parts = _write_pictures(pictures, folder, target.name)
            move_files(parts, [target.with_name(part.name) for part in parts])
        return WriteReport(target, len(parts), notices)
    if suffix in _PICTURES:
        first, second = next(pictures), next(pictures, None)
        if second is not None:
            raise MediaError(
                f"{target}: found several frames for one picture; expected one, "
                f"write a folder, {target.stem}_%04d{target.suffix} or a video"
            )
        write_image(target, first)
        return WriteReport(target, 1, notices)
    if suffix:
        known = " ".join([*_CONTAINERS, *_PICTURES])
        raise MediaError(
            f"{target}: found the suffix {suffix}; expected one of {known}, or none for a folder"
        )
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise MediaError(f"{target}: already there; expected a new or an empty folder, choose another name")
    with working_folder(target) as folder, _encoding(target):
        (folder / "frames").mkdir()
        parts = _write_pictures(pictures, folder / "frames", _FOLDER_PATTERN)
        os.replace(folder / "frames", target)
    return WriteReport(target, len(parts), notices)


def write_image(path: PathLike, picture: NDArray[Any]) -> None:
    """Write one picture uint8 [H, W, 3] as .png, .webp (both lossless) or .jpg, atomically.

    Raises MediaError on another suffix, dtype or shape, and what the system refuses.
    """
    target = Path(path)
    if target.suffix.lower() not in _PICTURES:
        raise MediaError(
            f"{target}: found the suffix {target.suffix!r}; expected one of {' '.join(_PICTURES)}"
        )
    frames = checked_frames(picture)
    if len(frames) != 1:
        raise MediaError(f"{target}: found {len(frames)} frames for one picture; expected one")
    with replacing(target) as part, _encoding(target):
        part.write_bytes(_encoded_picture(frames[0], target.suffix.lower()))


@contextmanager
def _encoding(target: Path) -> Iterator[None]:
    """Turn libav's own errors into MediaError; the system's (disk, permission) are left to the caller."""
    try:
        yield
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise MediaError(
            f"{target}: cannot be encoded ({reason(error)}); write another type or size"
        ) from error


def is_pattern(name: str) -> bool:
    """Whether a file name such as out_%04d.png stands for numbered pictures."""
    try:
        return (name % 1) != (name % 2)
    except (TypeError, ValueError):
        return False


def _flat_pictures(frames: NDArray[Any] | Iterable[NDArray[Any]]) -> Iterator[Frames]:
    """Yield single pictures [H, W, 3], all of one size; at least one, or MediaError."""
    chunks = [frames] if isinstance(frames, np.ndarray) else frames
    shape: tuple[int, ...] | None = None
    for chunk in chunks:
        for picture in checked_frames(chunk):
            shape = shape or picture.shape
            if picture.shape != shape:
                raise MediaError(f"found frames of shapes {shape} and {picture.shape}; expected one size")
            yield picture
    if shape is None:
        raise MediaError("found no frames to write; expected at least one")


def _encoded_picture(picture: Frames, suffix: str) -> bytes:
    encoder, pixel_format, options = _PICTURES[suffix]
    context = cast(VideoCodecContext, av.CodecContext.create(encoder, "w"))
    context.height, context.width = picture.shape[:2]
    context.pix_fmt, context.time_base = pixel_format, Fraction(1)
    context.options, context.thread_count = options, 1
    frame = frame_from_rgb(picture).reformat(
        format=pixel_format, dst_color_range=FULL_RANGE, interpolation=EXACT | BICUBIC, threads=1
    )
    frame.pts, frame.time_base = 0, Fraction(1)
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])


def _write_pictures(pictures: Iterable[Frames], folder: Path, pattern: str) -> list[Path]:
    parts = []
    for number, picture in enumerate(pictures, start=1):
        parts.append(folder / (pattern % number))
        parts[-1].write_bytes(_encoded_picture(picture, Path(pattern).suffix.lower()))
    return parts


def _write_container(
    target: Path, part: Path, pictures: Iterator[Frames], rate: Fraction, audio_from: PathLike | None
) -> WriteReport:
    kind = _CONTAINERS[target.suffix.lower()]
    first = next(pictures)
    height, width = first.shape[:2]
    # 4:2:0 H.264 has even sides, and players know no other layout.
    pad = (height % 2, width % 2) if kind.encoder == "libx264" else (0, 0)
    notices = []
    if any(pad):
        notices.append(f"an odd side was padded: {width}x{height} became {width + pad[1]}x{height + pad[0]}")
    with (
        _open_audio(audio_from) as audio,
        av.open(
            str(part), "w", format=kind.muxer, options={"fflags": "+bitexact", **kind.muxer_options}
        ) as container,
    ):
        stream = cast(
            VideoStream, container.add_stream(kind.encoder, rate=rate, options=kind.encoder_options)
        )
        stream.height, stream.width = height + pad[0], width + pad[1]
        stream.pix_fmt = "pal8" if kind.encoder == "gif" else "yuv420p"
        context = stream.codec_context
        context.thread_count, context.time_base = 1, 1 / rate
        if kind.encoder != "gif":
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = LIMITED_RANGE
        audio_packets: Iterator[Packet[Any]] = iter(())
        if audio is not None and audio.codec_name in container.supported_codecs:
            audio_packets = audio.packets_for(container)
        elif audio is not None:
            notices.append(
                f"the source's audio ({audio.codec_name}) was left out: {target.suffix} cannot hold it; "
                f"write {'.mp4' if audio.codec_name == 'aac' else '.mkv'} to keep it"
            )
        counted = _Counted(
            np.pad(p, ((0, pad[0]), (0, pad[1]), (0, 0)), "edge") for p in chain([first], pictures)
        )
        convert = _frames_with_palette if kind.encoder == "gif" else _frames_in_yuv
        video_packets = _encoded_packets(stream, convert(counted), rate)
        # In order of time, so that players need not jump about in the file.
        for packet in heapq.merge(video_packets, audio_packets, key=_packet_time_s):
            container.mux(packet)
    return WriteReport(target, counted.count, tuple(notices))


class _Counted:
    """An iterator that knows how many items went through."""

    def __init__(self, pictures: Iterable[Frames]) -> None:
        self.count = 0
        self._pictures = pictures

    def __iter__(self) -> Iterator[Frames]:
        for picture in self._pictures:
            self.count += 1
            yield picture


def _encoded_packets(
    stream: VideoStream, frames: Iterable[VideoFrame], rate: Fraction
) -> Iterator[Packet[Any]]:
    for number, frame in enumerate(frames):
        frame.pts, frame.time_base, frame.duration = number, 1 / rate, 1
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _frames_in_yuv(pictures: Iterable[Frames]) -> Iterator[VideoFrame]:
    for picture in pictures:
        yield frame_from_rgb(picture).reformat(
            format="yuv420p",
            dst_colorspace=BT709,
            dst_color_range=LIMITED_RANGE,
            interpolation=EXACT | BICUBIC,
            threads=1,
        )


def _frames_with_palette(pictures: Iterable[Frames]) -> Iterator[VideoFrame]:
    """Reduce to one palette made from all pictures, which are held in memory until it is known."""
    graph = Graph()
    number = 0
    for number, picture in enumerate(pictures, start=1):
        frame = frame_from_rgb(picture)
        frame.pts, frame.time_base = number, Fraction(1, 1000)
        if number == 1:
            _link_palette_filters(graph, frame)
        graph.vpush(frame)
    graph.vpush(None)
    for _ in range(number):
        yield graph.vpull()


def _link_palette_filters(graph: Graph, frame: VideoFrame) -> None:
    buffer = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
    )
    split, generate = graph.add("split"), graph.add("palettegen", "reserve_transparent=0")
    use, sink = graph.add("paletteuse"), graph.add("buffersink")
    buffer.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(generate, 1, 0)
    generate.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()


class _AudioSource:
    """The first audio stream of a file, to be copied without decoding."""

    def __init__(self, container: InputContainer) -> None:
        self.container = container
        self.stream = container.streams.audio[0]
        self.codec_name = (
            self.stream.codec_context.codec.canonical_name if self.stream.codec_context else "unknown"
        )

    def packets_for(self, output: OutputContainer) -> Iterator[Packet[Any]]:
        """Add the stream to `output` now; yield its packets, timed from where the source's video begins."""
        copy = output.add_stream_from_template(self.stream)
        videos = self.container.streams.video
        begin_s = Fraction(0)
        if videos and videos[0].start_time and videos[0].time_base:
            begin_s = videos[0].start_time * videos[0].time_base
        return self._shifted(copy, begin_s)

    def _shifted(self, copy: AudioStream, begin_s: Fraction) -> Iterator[Packet[Any]]:
        for packet in self.container.demux(self.stream):
            # The last, empty packet flushes decoders; a copy has none.
            if packet.dts is None or packet.pts is None:
                continue
            shift = round(begin_s / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = copy
            yield packet


@contextmanager
def _open_audio(path: PathLike | None) -> Iterator[_AudioSource | None]:
    """Open the file whose audio is to be carried over; None where there is none."""
    if path is None:
        yield None
        return
    name = os.fspath(path)
    check_input_file(name)
    try:
        container = open_input(name)
    except av.FFmpegError as error:
        raise MediaError(
            f"{name}: its audio cannot be read ({reason(error)}); leave the audio out"
        ) from error
    with container:
        yield _AudioSource(container) if container.streams.audio else None


def _packet_time_s(packet: Packet[Any]) -> Fraction:
    return (packet.dts or 0) * packet.time_base
