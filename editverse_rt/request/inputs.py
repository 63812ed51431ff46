"""The videos and images of a request: what each is, how much of it is read, and what follows from it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import numpy as np

from editverse_rt import media
from editverse_rt.bundle.spec import Geometry
from editverse_rt.errors import MediaError, RequestError
from editverse_rt.media.frames import Clip, Frames, MediaInfo
from editverse_rt.media.reading import MediaFile
from editverse_rt.media.sound import Sound
from editverse_rt.request.sizes import Size, choose_num_frames, choose_sizes

__all__ = ["Inputs", "Source"]

Source = str | os.PathLike[str] | Frames
"""An input: the path of a video or an image, or an array uint8 [T, H, W, 3] (video) or [H, W, 3] (image)."""


class Inputs:
    """The inputs of one request: what they are, what the result takes from them, and their frames.

    main: the input that the result follows, the video of the lowest number, else the image. names: main
    first. has_video: whether main is one. size, num_frames, fps: of the result; the last two are settled
    when the sources have been read, because a file may hold fewer frames than it says, and so are times_s and
    sound: see Result.
    """

    def __init__(
        self,
        inputs: Mapping[str, Source],
        geometry: Geometry,
        size: Size | None,
        num_frames: int | None,
        fps: float | None,
        start_s: float,
    ) -> None:
        self._inputs = inputs
        self._geometry = geometry
        self._asked_frames, self._asked_fps, self._start_s = num_frames, fps, start_s
        # Opened once: what is planned holds for what is read, even if a file is replaced in between.
        self._files = {
            name: media.open_media(source)
            for name, source in inputs.items()
            if isinstance(source, (str, os.PathLike))
        }
        self._media = {
            name: _look_at(name, source, self._files.get(name), fps or geometry.default_fps)
            for name, source in inputs.items()
        }
        self.names = sorted(inputs, key=lambda name: (_kind(name) != "video", int(name[len(_kind(name)) :])))
        self.main = self.names[0] if self.names else None
        self.has_video = self.main is not None and _kind(self.main) == "video"
        if start_s > 0 and not self.has_video:
            raise RequestError(
                f"start_s is {start_s:g}, but there is no video to begin in",
                hint="leave it out",
                code="request.option",
            )
        pixels = {name: (media.height_px, media.width_px) for name, media in self._media.items()}
        self.size, self._sizes = choose_sizes(pixels, self.main, geometry, size)
        self.num_frames = choose_num_frames(num_frames, self.has_video, self.main is not None, geometry)
        self.fps = fps or geometry.default_fps
        self.times_s: tuple[float, ...] | None = None
        self.sound: Sound | None = None

    def read(self, notices: list[str]) -> dict[str, Frames]:
        """The frames uint8 [1 + r k, H, W, 3] of each input; adds what the user should know to notices.

        Files are closed afterwards: a request is read once.
        """
        clips: dict[str, Frames] = {}
        for name in self.names:
            if _kind(name) == "image":
                clip = self._read(name, 1, None, 0.0)
                clips[name] = clip.frames
                notices.extend(f"{name}: {line}" for line in clip.notices)
                continue
            is_main = name == self.main
            clip = self._read(name, self.num_frames, self._rate_for(name), self._start_s)
            kept = self._geometry.round_frames(len(clip.frames))
            clips[name] = clip.frames[:kept]
            notices.extend(f"{name}: {line}" for line in clip.notices)
            if clip.num_damaged:
                notices.append(f"{name}: {clip.num_damaged} packets or frames are damaged; some were skipped")
            whole = clip.covers_source and kept == len(clip.frames)
            to_its_end = (clip.covers_source or clip.is_short) and kept == len(clip.frames)
            asked = self._asked_frames if is_main else self.num_frames
            if kept < asked if asked is not None else not to_its_end:
                notices.append(self._describe_cut(name, kept, clip.fps))
            if is_main:
                self.num_frames, self.fps = kept, clip.fps
                self.times_s = clip.uneven_times_s(kept)
                if whole and self._media[name].has_audio:
                    self._read_sound(name, notices)
        if self._asked_frames not in (None, self.num_frames) and not self.has_video:
            notices.append(f"num_frames {self._asked_frames} became {self.num_frames}: {self._length_rule()}")
        for file in self._files.values():
            file.close()
        return clips

    def _read_sound(self, name: str, notices: list[str]) -> None:
        """Sound that cannot be read is no reason to refuse the video; the user is told."""
        try:
            self.sound = self._files[name].read_sound()
        except MediaError as error:
            notices.append(f"{name}: {error}; the result has no sound")

    def expected_shapes(self) -> dict[str, tuple[int, int, int]]:
        """Frames, height and width in pixels that each input will have, by what its file says of itself.

        A video that does not say how long it is counts with as many frames as may be taken of it.
        """
        shapes: dict[str, tuple[int, int, int]] = {}
        for name in self.names:
            frames = 1
            if _kind(name) == "video":
                media, fps = self._media[name], self._rate_for(name)
                there = media.num_frames
                if media.duration_s is not None and (there is None or fps is not None):
                    there = round(media.duration_s * (fps or media.fps or self.fps))
                frames = self._geometry.round_frames(max(1, min(self.num_frames, there or self.num_frames)))
            shapes[name] = (frames, *self._sizes[name])
        return shapes

    def _read(self, name: str, num_frames: int, fps: float | None, start_s: float) -> Clip:
        source, (height_px, width_px) = self._inputs[name], self._sizes[name]
        if isinstance(source, np.ndarray):
            source_fps = self._media[name].fps or 1.0
            return media.clip_from_array(
                source,
                source_fps,
                start_s=start_s,
                num_frames=num_frames,
                height_px=height_px,
                width_px=width_px,
            )
        return self._files[name].read_clip(
            start_s=start_s, num_frames=num_frames, fps=fps, height_px=height_px, width_px=width_px
        )

    def _rate_for(self, name: str) -> float | None:
        """The rate to sample a video at. Videos of main's own rate go frame by frame, as main does: on a
        variable frame rate, sampling by time would pair other frames of a mask with those of its video."""
        if name == self.main or self._asked_fps is not None:
            return self._asked_fps
        own, main = self._media[name].fps, self._media[self.names[0]].fps
        return None if own and main and math.isclose(own, main, rel_tol=1e-3) else self.fps

    def _describe_cut(self, name: str, kept: int, fps: float) -> str:
        total = self._media[name].num_frames
        if self._start_s == 0 and (self._asked_fps is None or isinstance(self._inputs[name], np.ndarray)):
            took = f"took frames 0-{kept - 1} ({kept / fps:.2f} s)" + (f" of {total}" if total else "")
        else:
            took = f"took {kept} frames ({kept / fps:.2f} s) from {self._start_s:g} s on"
        return (
            f"{name}: {took} at {fps:g} fps; {self._length_rule()}; choose otherwise with start_s, "
            "num_frames, fps (--start, --frames, --fps)"
        )

    def _length_rule(self) -> str:
        return f"clips have 1 + {self._geometry.temporal_ratio} k frames, up to {self._geometry.max_frames}"


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
