"""Encoding of videos and images.

Encoders run on one thread and write no random identifiers, so the same frames give the same bytes.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import count
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.filter import Graph
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from editverse_rt.errors import MediaError
from editverse_rt.files import OpenFile, move_files, reason, replacing, working_folder
from editverse_rt.media.frames import Frames, PathLike, WriteReport, check_fps, checked_frames, flat_pictures
from editverse_rt.media.libav import (
    BICUBIC,
    BT709,
    EXACT,
    FULL_RANGE,
    LIMITED_RANGE,
    frame_from_rgb,
    open_output,
)
from editverse_rt.media.sound import Sound, read_sound
from editverse_rt.media.targets import MAX_FPS, is_pattern, numbered
from editverse_rt.media.timing import CLOCKS, TimedPictures, timed_pictures

__all__ = ["write_clip", "write_image"]


class _Container(NamedTuple):
    """A video file type: muxer, encoder, its options (visually lossless), muxer options."""

    muxer: str
    encoder: str
    encoder_options: dict[str, str]
    muxer_options: dict[str, str]


# x264's macroblock tree reads memory that it did not write: with it the same frames do not always give the same file.
_H264 = ("libx264", {"crf": "14", "preset": "medium", "mbtree": "0"})
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
_FOLDER_PATTERN = "frame_%05d.png"


def write_clip(
    path: PathLike,
    frames: NDArray[Any] | Iterable[NDArray[Any]],
    fps: float,
    *,
    times_s: Sequence[float] | None = None,
    audio_from: PathLike | Sound | None = None,
) -> WriteReport:
    """Write uint8 frames [T, H, W, 3], or an iterable of [H, W, 3], to `path`; its suffix says how.

    .mp4, .mov, .mkv (H.264, 4:2:0, an odd side padded by repeating its last line, as players need it), .webm
    (VP9), .gif (one palette for the whole clip, 50 frames a second at most: of more, some are left out);
    .png, .jpg, .webp for one frame; for more, PNG frames in a folder (no suffix; new or empty), or pictures
    of any suffix by a pattern such as name_%04d.png, numbered from 1 and also where there is only one. A file
    that is there is replaced.
    `times_s`: T + 1 numbers, when each frame begins, from 0 on, and when the last ends; None: evenly spaced.
    `audio_from`: that sound, or the sound of that file, is carried over bit for bit, shifted as the source's
    video begins; whether the lengths agree is the caller's business. Where the container cannot hold it, the
    video is written without, and a notice says so. `fps` and `times_s` are ignored for pictures.
    Raises MediaError, and leaves nothing behind, on a suffix or frames of another kind, or what the system
    refuses (no folder, no permission, a full disk).
    """
    target = Path(path)
    suffix = target.suffix.lower()
    pictures = flat_pictures(frames)
    if suffix in _CONTAINERS:
        check_fps(fps)
        timed = timed_pictures(pictures, Fraction(fps).limit_denominator(100_000), times_s, suffix)
        sound = _sound(audio_from)
        with replacing(target) as part, _encoding(target):
            return _write_container(target, part, timed, sound)
    notices: tuple[str, ...] = ()
    if _sound(audio_from) is not None:
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
                f"{target}: found several frames for one picture",
                expected="one",
                hint=f"write a folder, {target.stem}_%04d{target.suffix} or a video",
                code="media.type",
            )
        write_image(target, first)
        return WriteReport(target, 1, notices)
    if suffix:
        known = " ".join([*_CONTAINERS, *_PICTURES])
        raise MediaError(
            f"{target}: found the suffix {suffix}",
            expected=f"one of {known}, or none for a folder",
            code="media.type",
        )
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise MediaError(
            f"{target}: already there",
            expected="a new or an empty folder",
            hint="choose another name",
            code="media.place",
        )
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
            f"{target}: found the suffix {target.suffix!r}",
            expected=f"one of {' '.join(_PICTURES)}",
            code="media.type",
        )
    (frame, *more) = checked_frames(picture)
    if more:
        raise MediaError(
            f"{target}: found {1 + len(more)} frames", expected="one picture", code="media.frames"
        )
    with replacing(target) as part, _encoding(target):
        part.write_bytes(_encoded_picture(frame, target.suffix.lower()))


@contextmanager
def _encoding(target: Path) -> Iterator[None]:
    """Turn libav's errors inside into MediaError; those of the system stay OSError."""
    try:
        yield
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise MediaError(
            f"{target}: cannot be encoded ({reason(error)})",
            hint="write another type or size",
            code="media.unwritable",
        ) from error


def _sound(audio_from: PathLike | Sound | None) -> Sound | None:
    if audio_from is None or isinstance(audio_from, Sound):
        return audio_from
    file = OpenFile(os.fspath(audio_from))
    try:
        return read_sound(file)
    finally:
        file.close()


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
        parts.append(folder / numbered(pattern, number))
        parts[-1].write_bytes(_encoded_picture(picture, Path(pattern).suffix.lower()))
    return parts


# --- containers ---

_Due = tuple[Fraction, "Packet[Any] | int"]
"""A packet of the video, or the number of one of the sound, and when it is due in seconds."""


def _write_container(target: Path, part: Path, timed: TimedPictures, sound: Sound | None) -> WriteReport:
    suffix = target.suffix.lower()
    height, width = timed.shape[:2]
    # 4:2:0 H.264 has even sides, and players know no other layout.
    pad = (height % 2, width % 2) if _CONTAINERS[suffix].encoder == "libx264" else (0, 0)
    notices = []
    if any(pad):
        notices.append(f"an odd side was padded: {width}x{height} became {width + pad[1]}x{height + pad[0]}")
    with _opened(part, suffix, (height + pad[0], width + pad[1]), timed, sound) as output:
        if sound is not None and output.audio is None:
            keeps = ".mp4" if sound.codec_name == "aac" else ".mkv"
            advice = "" if suffix == ".mkv" else f"; write {keeps} to keep it"
            notices.append(
                f"the source's audio ({sound.codec_name}) was left out: {suffix} cannot hold it{advice}"
            )
        padded = (
            (begin, duration, np.pad(p, ((0, pad[0]), (0, pad[1]), (0, 0)), "edge"))
            for begin, duration, p in timed
        )
        convert = _frames_with_palette if suffix == ".gif" else _frames_in_yuv
        video_packets = _encoded_packets(output.video, convert(padded), timed.tick_s)
        video: Iterable[_Due] = ((_packet_time_s(packet), packet) for packet in video_packets)
        audio: Iterable[_Due] = ()
        if sound is not None and output.audio is not None:
            audio = zip(sound.times_s(), count())
        # In order of time, so that players need not jump about in the file.
        is_silent = False
        for _, packet in heapq.merge(video, audio, key=itemgetter(0)):
            if isinstance(packet, Packet):
                output.container.mux(packet)
                continue
            try:
                if sound is not None and output.audio is not None and not is_silent:
                    sound.mux(packet, output.container, output.audio)
            except av.FFmpegError as error:
                if isinstance(error, OSError):
                    raise
                is_silent = True
                notices.append(
                    f"the rest of the source's audio was left out: {suffix} refused it ({reason(error)})"
                )
    if timed.num_dropped:
        most = MAX_FPS.get(suffix, CLOCKS[suffix])
        notices.append(f"{timed.num_dropped} frames were left out: {suffix} holds at most {most:g} a second")
    return WriteReport(target, timed.count, tuple(notices))


class _Output(NamedTuple):
    container: OutputContainer
    video: VideoStream
    audio: AudioStream | None


@contextmanager
def _opened(
    part: Path, suffix: str, size: tuple[int, int], timed: TimedPictures, sound: Sound | None
) -> Iterator[_Output]:
    """Open a container whose header is written; without the sound where the container refuses it."""
    output = None
    if sound is not None and suffix != ".gif":
        try:
            output = _open_output(part, suffix, size, timed, sound)
        except (av.FFmpegError, ValueError) as error:
            if isinstance(error, OSError):
                raise
    output = output or _open_output(part, suffix, size, timed, None)
    try:
        yield output
    except BaseException:
        with suppress(av.FFmpegError):  # what went wrong first is what is told
            output.container.close()
        raise
    output.container.close()


def _open_output(
    part: Path, suffix: str, size: tuple[int, int], timed: TimedPictures, sound: Sound | None
) -> _Output:
    kind = _CONTAINERS[suffix]
    options = {"fflags": "+bitexact", **kind.muxer_options}
    container = open_output(part, kind.muxer, options)
    try:
        stream = cast(
            VideoStream, container.add_stream(kind.encoder, rate=timed.rate, options=kind.encoder_options)
        )
        stream.height, stream.width = size
        stream.pix_fmt = "pal8" if kind.encoder == "gif" else "yuv420p"
        context = stream.codec_context
        context.thread_count, context.time_base = 1, timed.tick_s
        if kind.encoder != "gif":
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = LIMITED_RANGE
        audio = None if sound is None else sound.add_to(container)
        container.start_encoding()
    except BaseException:
        # Closing writes the trailer of a file whose header was refused.
        with suppress(av.FFmpegError):
            container.close()
        raise
    return _Output(container, stream, audio)


def _encoded_packets(
    stream: VideoStream, frames: Iterable[tuple[int, int, VideoFrame]], tick_s: Fraction
) -> Iterator[Packet[Any]]:
    durations: dict[int, int] = {}

    def marked(packets: Iterable[Packet[Any]]) -> Iterator[Packet[Any]]:
        for packet in packets:
            # Encoders state no length, or that of the nominal rate.
            if packet.pts is not None and packet.pts in durations:
                packet.duration = durations.pop(packet.pts)
            yield packet

    for begin, duration, frame in frames:
        frame.pts, frame.time_base, frame.duration = begin, tick_s, duration
        durations[begin] = duration
        yield from marked(stream.encode(frame))
    yield from marked(stream.encode(None))


def _frames_in_yuv(timed: Iterable[tuple[int, int, Frames]]) -> Iterator[tuple[int, int, VideoFrame]]:
    for begin, duration, picture in timed:
        frame = frame_from_rgb(picture).reformat(
            format="yuv420p",
            dst_colorspace=BT709,
            dst_color_range=LIMITED_RANGE,
            interpolation=EXACT | BICUBIC,
            threads=1,
        )
        yield begin, duration, frame


def _frames_with_palette(timed: Iterable[tuple[int, int, Frames]]) -> Iterator[tuple[int, int, VideoFrame]]:
    """Reduce to one palette made from all pictures, which are held in memory until it is known."""
    graph = Graph()
    places = []
    for number, (begin, duration, picture) in enumerate(timed, start=1):
        frame = frame_from_rgb(picture)
        frame.pts, frame.time_base = number, Fraction(1, 1000)
        if number == 1:
            _link_palette_filters(graph, frame)
        graph.vpush(frame)
        places.append((begin, duration))
    graph.vpush(None)
    for begin, duration in places:
        yield begin, duration, graph.vpull()


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


def _packet_time_s(packet: Packet[Any]) -> Fraction:
    return (packet.dts or 0) * packet.time_base
