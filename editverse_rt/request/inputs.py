"""The videos and images of a request: what each is, how much of it is read, and what follows from it.

`examine_inputs` looks at the inputs and decides; `read_inputs` decodes. Neither changes what the other gave.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from editverse_rt import media
from editverse_rt.bundle.spec import Geometry
from editverse_rt.errors import MediaError, RequestError
from editverse_rt.media.frames import Clip, Frames, MediaInfo
from editverse_rt.media.reading import MediaFile
from editverse_rt.media.sound import Sound
from editverse_rt.request.edit_request import EditRequest, Source
from editverse_rt.request.options import DEFAULT_LENGTH
from editverse_rt.request.sizes import Size, choose_num_frames, choose_sizes, count_windows, fit_inside

__all__ = [
    "ExaminedInputs",
    "Footage",
    "examine_inputs",
    "read_inputs",
    "read_picture",
    "read_sound",
]

LARGEST_NUM_FRAMES = 16_777_216
"""Of a result that lasts as long as its video."""


@dataclass(frozen=True, eq=False)
class ExaminedInputs:
    """The inputs of one request before any frame is decoded.

    names: main first. media: what each says of itself. files: those that are files, opened once, so that what
    is decided here holds for what is read even if a file is replaced in between. size: of the result. sizes:
    what each input is resized to. num_frames: the most frames that the result may have, or a window of it.
    total_frames: of a request that is done window by window the most frames of the whole, else None. fps: the
    result's rate where no video sets it.
    """

    geometry: Geometry
    request: EditRequest
    names: tuple[str, ...]
    media: Mapping[str, MediaInfo]
    files: Mapping[str, MediaFile]
    size: Size
    sizes: Mapping[str, Size]
    num_frames: int
    fps: float
    total_frames: int | None = None

    @property
    def main(self) -> str | None:
        """The input that the result follows: the video of the lowest number, else the image; None for
        none."""
        return self.names[0] if self.names else None

    @property
    def has_video(self) -> bool:
        return self.main is not None and _kind(self.main) == "video"

    def close_files(self) -> None:
        """Close what was opened here, where nothing is to be read. A `MediaFile` of the caller's stays open."""
        for name, file in self.files.items():
            if file is not self.request.inputs[name]:
                file.close()

    def expected_shapes(self) -> dict[str, tuple[int, int, int]]:
        """Frames, height and width in pixels that each input will have, by what its file says of itself.

        A video that does not say how long it is counts with as many frames as may be taken of it.
        """
        shapes: dict[str, tuple[int, int, int]] = {}
        for name in self.names:
            frames = 1
            if _kind(name) == "video":
                there = self.frames_there(name)
                frames = self.geometry.round_frames(max(1, min(self.num_frames, there or self.num_frames)))
            shapes[name] = (frames, *self.sizes[name])
        return shapes

    @property
    def expected_fps(self) -> float:
        """The result's rate, by what the main video says of itself."""
        own = self.media[self.names[0]].fps if self.has_video else None
        return self.request.fps or own or self.fps

    @property
    def expected_frames(self) -> int | None:
        """Frames of the whole result, by what the main video says of itself; None where it does not say."""
        if self.total_frames is None:
            return self.num_frames
        if not self.has_video:
            return self.total_frames
        there = self.frames_there(self.names[0])
        return None if there is None else min(there, self.total_frames)

    @property
    def expected_windows(self) -> int | None:
        """In how many windows the request is done, by what its video says of itself and if it has one scene."""
        if self.total_frames is None:
            return 1
        frames = self.expected_frames
        return None if frames is None else count_windows(frames, self.geometry)

    def frames_there(self, name: str) -> int | None:
        """Frames that a video has at the rate at which it is read; None where it does not say."""
        info, fps = self.media[name], self.rate_for(name)
        if fps is None and self.request.start_s == 0 and info.num_frames is not None:
            return info.num_frames
        own_fps = info.fps or self.fps
        there_s = info.duration_s if info.num_frames is None else info.num_frames / own_fps
        if there_s is None:
            return None
        return max(1, math.ceil((there_s - self.request.start_s) * (fps or own_fps) - 1e-6))

    def rate_for(self, name: str, main_fps: float | None = None) -> float | None:
        """The rate to sample a video at, None for frame by frame.

        main_fps: the rate that main was read at, once it was; before that, what its file says of itself.
        Videos of main's own rate go frame by frame, as main does: on a variable frame rate, sampling by time
        would pair other frames of a mask with those of its video.
        """
        if name == self.main or self.request.fps is not None:
            return self.request.fps
        own, main = self.media[name].fps, self.media[self.names[0]].fps
        return (
            None if own and main and math.isclose(own, main, rel_tol=1e-3) else main_fps or main or self.fps
        )


@dataclass(frozen=True, eq=False)
class Footage:
    """The frames of a request's inputs, as the model sees them.

    clips: uint8 [1 + r k, H, W, 3] by name. num_frames, fps: of the result. notices: lines for the user,
    about what was cut. times_s, sound: see `Result`.
    """

    clips: Mapping[str, Frames]
    num_frames: int
    fps: float
    notices: tuple[str, ...]
    times_s: tuple[float, ...] | None
    sound: Sound | None


def examine_inputs(
    request: EditRequest, geometry: Geometry, conditioning: str = "interleaved"
) -> ExaminedInputs:
    """Look at the inputs, and decide sizes and lengths.

    conditioning: the bundle's; outside of an interleaved sequence every input has the size of the result, a
    reference picture the largest of its own shape inside it, and a picture does not say how long the result is.
    Raises RequestError, MediaError.
    """
    inputs = request.inputs
    files = {
        name: source if isinstance(source, MediaFile) else media.open_media(source)
        for name, source in inputs.items()
        if isinstance(source, (str, os.PathLike))
    }
    info = {
        name: _look_at(name, source, files.get(name), request.fps or geometry.default_fps)
        for name, source in inputs.items()
    }
    names = sorted(inputs, key=lambda name: (_kind(name) != "video", int(name[len(_kind(name)) :])))
    main = names[0] if names else None
    has_video = main is not None and _kind(main) == "video"
    if request.start_s > 0 and not has_video:
        raise RequestError(
            f"start_s is {request.start_s:g}, but there is no video to begin in",
            hint="leave it out",
            code="request.option",
            field="start_s",
        )
    pixels = {name: (source.height_px, source.width_px) for name, source in info.items()}
    size, sizes = choose_sizes(pixels, main, geometry, request.size)
    if conditioning != "interleaved":
        sizes = {
            name: fit_inside(pixels[name], size)
            if _kind(name) == "image" and conditioning == "control"
            else size
            for name in names
        }
    has_image = main is not None and conditioning == "interleaved"
    is_whole = _is_whole(request, has_video, geometry)
    return ExaminedInputs(
        geometry=geometry,
        request=request,
        names=tuple(names),
        media=info,
        files=files,
        size=size,
        sizes=sizes,
        num_frames=geometry.max_frames
        if is_whole
        else choose_num_frames(request.num_frames, has_video, has_image, geometry),
        total_frames=(request.num_frames or LARGEST_NUM_FRAMES) if is_whole else None,
        fps=request.fps or geometry.default_fps,
    )


def read_inputs(examined: ExaminedInputs, on_frame: Callable[[], None] = lambda: None) -> Footage:
    """Decode the frames of each input, once: the files are closed afterwards.

    on_frame: called before each frame of a file is decoded; what it raises stops the reading.
    Raises MediaError.
    """
    request, geometry, main = examined.request, examined.geometry, examined.main
    num_frames, fps = examined.num_frames, examined.fps
    clips: dict[str, Frames] = {}
    notices: list[str] = []
    times_s: tuple[float, ...] | None = None
    sound: Sound | None = None
    for name in examined.names:
        if _kind(name) == "image":
            clips[name] = read_picture(examined, name, notices, on_frame)
            continue
        # Where main's frames are not evenly spaced, a video of another rate is sampled at their times.
        moments_s = times_s[:-1] if times_s is not None else None
        rate = examined.rate_for(name, fps)
        clip = _read(examined, name, num_frames, rate, request.start_s, moments_s, on_frame=on_frame)
        kept = geometry.round_frames(len(clip.frames))
        clips[name] = clip.frames[:kept]
        notices.extend(f"{name}: {line}" for line in clip.notices)
        if clip.num_damaged:
            notices.append(f"{name}: {clip.num_damaged} packets or frames are damaged; some were skipped")
        whole = clip.covers_source and kept == len(clip.frames)
        to_its_end = (clip.covers_source or clip.is_short) and kept == len(clip.frames)
        asked = request.num_frames if name == main else num_frames
        if kept < asked if asked is not None else not to_its_end:
            notices.append(_describe_cut(examined, name, kept, clip.fps))
        if name == main:
            num_frames, fps = kept, clip.fps
            times_s = clip.uneven_times_s(kept)
            if whole and examined.media[name].has_audio:
                sound = read_sound(examined.files[name], name, notices)
    if request.num_frames not in (None, num_frames) and not examined.has_video:
        notices.append(f"num_frames {request.num_frames} became {num_frames}: {_length_rule(geometry)}")
    for file in examined.files.values():
        file.close()
    return Footage(clips, num_frames, fps, tuple(notices), times_s, sound)


def read_picture(
    examined: ExaminedInputs, name: str, notices: list[str], on_frame: Callable[[], None]
) -> Frames:
    """The one frame of an image, uint8 [1, H, W, 3]; lines about it are added to `notices`. Raises MediaError."""
    clip = _read(examined, name, 1, None, 0.0, on_frame=on_frame)
    notices.extend(f"{name}: {line}" for line in clip.notices)
    return clip.frames


def read_sound(file: MediaFile, name: str, notices: list[str]) -> Sound | None:
    """A video's sound, or None. Sound that cannot be read is no reason to refuse the video; `notices` tells of it."""
    try:
        return file.read_sound()
    except MediaError as error:
        notices.append(f"{name}: {error}; the result has no sound")
        return None


def _is_whole(request: EditRequest, has_video: bool, geometry: Geometry) -> bool:
    """Whether a request is done window by window. Raises RequestError where the bundle cannot do that."""
    if request.length == "whole" and not geometry.shared_frames:
        raise RequestError(
            "length is whole",
            hint="this bundle has no window for longer videos; export it again, or leave length out",
            code="request.unsupported",
            field="length",
        )
    if request.length == "cut" or not geometry.shared_frames:
        return False
    if request.num_frames is not None:
        return request.num_frames > geometry.max_frames
    return has_video and (request.length or DEFAULT_LENGTH) == "whole"


def _read(
    examined: ExaminedInputs,
    name: str,
    num_frames: int,
    fps: float | None,
    start_s: float,
    moments_s: tuple[float, ...] | None = None,
    *,
    on_frame: Callable[[], None],
) -> Clip:
    source, (height_px, width_px) = examined.request.inputs[name], examined.sizes[name]
    if isinstance(source, np.ndarray):
        source_fps = examined.media[name].fps or 1.0
        return media.clip_from_array(
            source,
            source_fps,
            start_s=start_s,
            num_frames=num_frames,
            height_px=height_px,
            width_px=width_px,
        )
    return examined.files[name].read_clip(
        start_s=start_s,
        num_frames=num_frames,
        fps=fps,
        height_px=height_px,
        width_px=width_px,
        moments_s=None if fps is None else moments_s,
        on_frame=on_frame,
    )


def _describe_cut(examined: ExaminedInputs, name: str, kept: int, fps: float) -> str:
    request, total = examined.request, examined.media[name].num_frames
    if request.start_s == 0 and (request.fps is None or isinstance(request.inputs[name], np.ndarray)):
        took = f"took frames 0-{kept - 1} ({kept / fps:.2f} s)" + (f" of {total}" if total else "")
    else:
        took = f"took {kept} frames ({kept / fps:.2f} s) from {request.start_s:g} s on"
    return (
        f"{name}: {took} at {fps:g} fps; {_length_rule(examined.geometry)}; choose otherwise with start_s, "
        "num_frames, fps"
    )


def _length_rule(geometry: Geometry) -> str:
    return f"clips have 1 + {geometry.temporal_ratio} k frames, up to {geometry.max_frames}"


def _kind(name: str) -> str:
    return name.rstrip("0123456789")


def _look_at(name: str, source: Source, file: MediaFile | None, array_fps: float) -> MediaInfo:
    """What an input is; arrays have no rate of their own and take array_fps. Checks it against its name."""
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim not in (3, 4) or source.shape[-1] != 3 or not source.size:
            raise MediaError(
                f"{name} is an array {source.dtype} {list(source.shape)}",
                expected="uint8 [T, H, W, 3], or [H, W, 3] for an image",
                code="request.input_type",
            )
        height, width = source.shape[-3:-1]
        num_frames = len(source) if source.ndim == 4 else 1
        kind = _kind(name) if num_frames == 1 else "video"
        info = MediaInfo(
            "image" if kind == "image" else "video", width, height, array_fps, None, num_frames, False
        )
    elif file is not None:
        info = file.info
    else:
        raise MediaError(
            f"{name} is {type(source).__name__}",
            hint="give a path, or an array uint8 [T, H, W, 3]",
            code="request.input_type",
        )
    if info.kind != _kind(name):
        shown = "an array" if isinstance(source, np.ndarray) else os.fspath(source)
        raise MediaError(
            f"{name}: {shown} is {('an image' if info.kind == 'image' else 'a video')}",
            hint=f"give it as {info.kind}1 and mention it as <{info.kind}1>",
            code="request.input_kind",
        )
    return info
