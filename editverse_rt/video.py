"""Reading and writing of videos and images: the only file that imports PyAV.

PyAV bundles FFmpeg's libraries in its wheel, so nothing has to be installed beside it. Frames are decoded
one at a time, and only those that are taken are resized and kept: memory does not grow with the source.

Choices that shape the pixels: down-scaling averages areas, up-scaling is bicubic; transparency is laid over
white; a YUV video that does not name its matrix is read as BT.709 from 720 lines on and as BT.601 below;
high dynamic range is not tone-mapped; rotation and mirroring (display matrix, EXIF) are applied.
Encoders run on one thread and write no random identifiers, so the same frames give the same bytes.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, cast

import av
import av.logging
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.filter import Graph
from av.packet import Packet
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from editverse_rt.errors import MediaError
from editverse_rt.files import (
    check_input_file,
    exif_orientation,
    move_files,
    reason,
    replacing,
    working_folder,
)
from editverse_rt.frames import (
    Clip,
    Frames,
    MediaInfo,
    WriteReport,
    check_fps,
    check_sampling,
    checked_frames,
    contact_sheet,
    sample_by_time,
    take_clip,
)

__all__ = [
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Clip",
    "MediaInfo",
    "WriteReport",
    "clip_from_array",
    "contact_sheet",
    "probe",
    "read_clip",
    "sample_by_time",
    "write_clip",
    "write_image",
]

PathLike = str | os.PathLike[str]
TimedFrame = tuple[float, float, VideoFrame]

# What libav has to say reaches the caller as exceptions; on stderr it would only be noise.
av.logging.set_level(None)
av.logging.set_libav_level(av.logging.PANIC)

# swscale's flags by value: PyAV 17, the newest for Python 3.10, names only the filters.
_BICUBIC, _AREA = 0x4, 0x20
_EXACT = 0x40000 | 0x80000 | 0x2000 | 0x4000  # accurate rounding, bit-exact, full chroma out and in
_BT709, _UNSPECIFIED = 1, 2
_LIMITED_RANGE, _FULL_RANGE = 1, 2
_HD_LINES = 720

_MAX_SOURCE_AREA_PX = 2**27
_READ_OPTIONS = {"protocol_whitelist": "file", "max_pixels": str(_MAX_SOURCE_AREA_PX)}
_TEXT_ART_FORMATS = {"tty", "bin", "xbin", "adf", "idf"}


class _Placement(NamedTuple):
    """How stored pixels become the picture shown: swap the axes first, then flip."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False


# EXIF orientations 1 to 8.
_EXIF_PLACEMENTS = (
    _Placement(False, False, False),
    _Placement(False, True, False),
    _Placement(False, True, True),
    _Placement(False, False, True),
    _Placement(True, False, False),
    _Placement(True, True, False),
    _Placement(True, True, True),
    _Placement(True, False, True),
)


def probe(path: PathLike) -> MediaInfo:
    """Say what `path` holds, after decoding its first frame.

    `fps` is the container's average rate, which holds for variable frame rates too.
    Raises MediaError if there is no such file or no frame of it can be decoded.
    """
    with _open_video(path) as source:
        first = next(source.decode(), None)
        if first is None:
            raise _no_frame_error(source)
        frame, stream = first[2], source.stream
        width, height = frame.width, frame.height
        aspect = stream.sample_aspect_ratio
        if aspect and Fraction(1, 8) < aspect < 8:
            width = max(1, round(width * aspect))
        if _placement(frame, source).transpose:
            width, height = height, width
        if source.is_image:
            return MediaInfo("image", width, height, None, None, 1, False)
        has_audio = bool(source.container.streams.audio)
        return MediaInfo(
            "video", width, height, float(source.rate), source.duration_s, stream.frames or None, has_audio
        )


def read_clip(
    source: PathLike,
    *,
    start_s: float = 0.0,
    num_frames: int,
    fps: float | None = None,
    height_px: int,
    width_px: int,
) -> Clip:
    """Take up to `num_frames` frames of a video from `start_s` on, or the one frame of an image.

    With `fps`, frames are chosen by their timestamps, one for each 1/fps seconds; without, every frame is
    taken and the rate of the result is their average rate. Each is put upright and resized to
    height_px x width_px (the aspect ratio is the caller's business). An image's `fps` is the one asked for,
    or 1. Packets that cannot be decoded are skipped and counted. Returns uint8 frames [T, H, W, 3], T >= 1.
    Raises MediaError if not a single frame can be had, or `start_s` lies beyond the end.
    """
    check_sampling(start_s, num_frames, fps, height_px, width_px)
    if start_s > 0:
        with _open_video(source) as video:
            if video.is_image:
                start_s = 0.0
            elif video.duration_s is not None and start_s > video.duration_s:
                raise _start_error(video, start_s, video.duration_s)
            else:
                frames = video.decode_from(start_s)
                if frames is not None:
                    return _clip_from_frames(frames, video, start_s, num_frames, fps, height_px, width_px)
    # From the beginning, also where an index is missing or leads too far.
    with _open_video(source) as video:
        if video.is_image:
            fps = fps or 1.0
        return _clip_from_frames(video.decode(), video, start_s, num_frames, fps, height_px, width_px)


def _clip_from_frames(
    frames: Iterable[TimedFrame],
    source: _Source,
    start_s: float,
    num_frames: int,
    fps: float | None,
    height_px: int,
    width_px: int,
) -> Clip:
    clip = take_clip(
        frames,
        lambda frame: _rgb_from_frame(frame, source, height_px, width_px),
        start_s=start_s,
        num_frames=1 if source.is_image else num_frames,
        fps=fps,
        source_fps=float(source.rate),
    )
    if clip is None:
        raise _start_error(source, start_s, source.end_s) if source.end_s > 0 else _no_frame_error(source)
    return replace(clip, num_frames_asked=num_frames, num_damaged=source.num_damaged)


def clip_from_array(
    array: NDArray[Any],
    source_fps: float,
    *,
    start_s: float = 0.0,
    num_frames: int,
    fps: float | None = None,
    height_px: int,
    width_px: int,
) -> Clip:
    """Treat an array uint8 [T, H, W, 3] or [H, W, 3] as `read_clip` treats a file: same sampling and filter.

    Frames of the right size are kept as they are. Raises MediaError on another dtype or shape, on no frames,
    or if `start_s` lies beyond the end.
    """
    check_sampling(start_s, num_frames, fps, height_px, width_px)
    check_fps(source_fps)
    frames = checked_frames(array)
    clip = take_clip(
        ((i / source_fps, (i + 1) / source_fps, frame) for i, frame in enumerate(frames)),
        lambda frame: _rgb_array(_resized(_frame_from_rgb(frame), height_px, width_px)),
        start_s=start_s,
        num_frames=num_frames,
        fps=fps,
        source_fps=source_fps,
    )
    if clip is None:
        raise MediaError(
            f"found a start of {start_s:g} s; the array ends at {len(frames) / source_fps:.2f} s"
        )
    return clip


class _Source:
    """One video stream being decoded; times count from the stream's beginning."""

    def __init__(self, path: str, container: InputContainer, stream: VideoStream) -> None:
        self.path = path
        self.container = container
        self.stream = stream
        # guessed_rate is a multiple of the true rate where the frame rate varies: a last resort.
        self.rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        self.num_damaged = 0
        self.end_s = 0.0
        self._origin = stream.start_time or 0
        # Bounded, because every frame in flight is a whole picture in memory.
        stream.codec_context.thread_count = min(4, os.cpu_count() or 1)
        stream.codec_context.thread_type = "AUTO"

    @property
    def is_image(self) -> bool:
        name = self.container.format.name
        if name == "gif":
            return self.stream.frames == 1
        brand = self.container.metadata.get("major_brand", "")
        return name.endswith("_pipe") or name == "image2" or brand in ("avif", "mif1", "heic")

    @property
    def duration_s(self) -> float | None:
        if self.stream.duration and self.stream.time_base:
            return float(self.stream.duration * self.stream.time_base)
        return self.container.duration / 1_000_000 if self.container.duration else None

    def decode_from(self, start_s: float) -> Iterator[TimedFrame] | None:
        """Decode from the key frame at or before `start_s`; None if this source cannot be entered there."""
        time_base = self.stream.time_base
        if not time_base:
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
                yield from packet.decode()
            except EOFError:
                return
            except av.FFmpegError:
                self.num_damaged += 1


@contextmanager
def _open_video(path: PathLike) -> Iterator[_Source]:
    """Open a file with its first video stream; what libav raises inside becomes MediaError."""
    name = os.fspath(path)
    check_input_file(name)
    try:
        # An absolute path is never taken for a protocol, and the whitelist keeps playlists from fetching.
        with av.open(
            os.path.abspath(name), "r", options=_READ_OPTIONS, metadata_errors="replace"
        ) as container:
            if container.format.name in _TEXT_ART_FORMATS:
                raise MediaError(f"{name}: found a text file; expected a video or an image")
            # The cover picture of an audio file is no video.
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams:
                found = "only audio" if container.streams.audio else "no picture"
                raise MediaError(f"{name}: found {found} in the file; expected a video or an image")
            area = streams[0].width * streams[0].height
            if area > _MAX_SOURCE_AREA_PX:
                raise MediaError(
                    f"{name}: found frames of {area} px; expected {_MAX_SOURCE_AREA_PX} or fewer"
                )
            yield _Source(name, container, streams[0])
    except (av.FFmpegError, OSError) as error:
        raise MediaError(
            f"{name}: no video or image that can be decoded ({reason(error)}); "
            "it may be cut short or of another type, make or convert it again"
        ) from error


def _no_frame_error(source: _Source) -> MediaError:
    damaged = f" ({source.num_damaged} damaged)" if source.num_damaged else ""
    return MediaError(
        f"{source.path}: found no frame that can be decoded{damaged}; expected at least one, make it again"
    )


def _start_error(source: _Source, start_s: float, end_s: float) -> MediaError:
    return MediaError(
        f"{source.path}: found a start of {start_s:g} s; the video ends at {end_s:.2f} s, start earlier"
    )


# --- pixels ---


def _rgb_from_frame(frame: VideoFrame, source: _Source, height_px: int, width_px: int) -> Frames:
    """Convert a decoded frame to an upright uint8 picture [height_px, width_px, 3]."""
    placement = _placement(frame, source)
    if frame.format.has_palette or any(component.is_alpha for component in frame.format.components):
        frame = _over_white(frame)
    size = (width_px, height_px) if placement.transpose else (height_px, width_px)
    is_unnamed_hd = frame.colorspace == _UNSPECIFIED and frame.height >= _HD_LINES and not source.is_image
    picture = _rgb_array(_resized(frame, *size, _BT709 if is_unnamed_hd else None))
    if placement.transpose:
        picture = picture.swapaxes(0, 1)
    if placement.flip_x:
        picture = picture[:, ::-1]
    if placement.flip_y:
        picture = picture[::-1]
    return np.ascontiguousarray(picture, dtype=np.uint8)


def _resized(frame: VideoFrame, height_px: int, width_px: int, colorspace: int | None = None) -> VideoFrame:
    shrinks = height_px < frame.height or width_px < frame.width
    flags = _EXACT | (_AREA if shrinks else _BICUBIC)
    return frame.reformat(width_px, height_px, "rgb24", colorspace, interpolation=flags, threads=1)


def _over_white(frame: VideoFrame) -> VideoFrame:
    rgba = frame.reformat(format="rgba", interpolation=_EXACT | _BICUBIC, threads=1).to_ndarray()
    alpha = rgba[..., 3:].astype(np.uint16)
    blended = (rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return _frame_from_rgb(blended.astype(np.uint8))


def _rgb_array(frame: VideoFrame) -> Frames:
    return np.asarray(frame.to_ndarray(), dtype=np.uint8)


def _frame_from_rgb(picture: Frames) -> VideoFrame:
    return VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")


def _placement(frame: VideoFrame, source: _Source) -> _Placement:
    """How a frame is to be put upright, from its display matrix (of the container, or made from EXIF)."""
    try:
        # PyAV's stubs take the container of side data for a dictionary.
        side_data: Iterable[Any] = frame.side_data
        entries = [entry for entry in side_data if entry.type.name == "DISPLAYMATRIX"]
    except ValueError:
        # PyAV 18 lists no side data at all where there is a kind that it does not know, as EXIF.
        if source.is_image:
            return _EXIF_PLACEMENTS[exif_orientation(Path(source.path).read_bytes()) - 1]
        return _EXIF_PLACEMENTS[(1, 8, 3, 6)[round(frame.rotation / 90) % 4] - 1]
    if not entries:
        return _Placement()
    a, b, _, c, d = np.frombuffer(bytes(entries[0]), np.int32)[:5].tolist()
    # A point (x, y) is shown at (a x + c y, b x + d y), up to a shift; turns of 90 degrees only.
    if abs(b) + abs(c) > abs(a) + abs(d):
        return _Placement(True, c < 0, b < 0)
    return _Placement(False, a < 0, d < 0)


# --- writing ---


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
    folder (no suffix; new or empty) or by a pattern such as name_%04d.png. A file that is there is replaced.
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
    if suffix == ".png" and _is_pattern(target.name):
        with working_folder(target) as folder, _encoding(target):
            parts = _write_pictures(pictures, folder, target.name)
            move_files(parts, [target.with_name(part.name) for part in parts])
        return WriteReport(target, len(parts), notices)
    if suffix in _PICTURES:
        first, second = next(pictures), next(pictures, None)
        if second is not None:
            raise MediaError(
                f"{target}: found several frames for one picture; expected one, "
                f"write a folder, {target.stem}_%04d.png or a video"
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


def _is_pattern(name: str) -> bool:
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
    frame = _frame_from_rgb(picture).reformat(
        format=pixel_format, dst_color_range=_FULL_RANGE, interpolation=_EXACT | _BICUBIC, threads=1
    )
    frame.pts, frame.time_base = 0, Fraction(1)
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])


def _write_pictures(pictures: Iterable[Frames], folder: Path, pattern: str) -> list[Path]:
    parts = []
    for number, picture in enumerate(pictures, start=1):
        parts.append(folder / (pattern % number))
        parts[-1].write_bytes(_encoded_picture(picture, ".png"))
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
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED_RANGE
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
        yield _frame_from_rgb(picture).reformat(
            format="yuv420p",
            dst_colorspace=_BT709,
            dst_color_range=_LIMITED_RANGE,
            interpolation=_EXACT | _BICUBIC,
            threads=1,
        )


def _frames_with_palette(pictures: Iterable[Frames]) -> Iterator[VideoFrame]:
    """Reduce to one palette made from all pictures, which are held in memory until it is known."""
    graph = Graph()
    number = 0
    for number, picture in enumerate(pictures, start=1):
        frame = _frame_from_rgb(picture)
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
        container = av.open(os.path.abspath(name), "r", options=_READ_OPTIONS, metadata_errors="replace")
    except av.FFmpegError as error:
        raise MediaError(
            f"{name}: its audio cannot be read ({reason(error)}); leave the audio out"
        ) from error
    with container:
        yield _AudioSource(container) if container.streams.audio else None


def _packet_time_s(packet: Packet[Any]) -> Fraction:
    return (packet.dts or 0) * packet.time_base
