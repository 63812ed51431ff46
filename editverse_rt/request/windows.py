"""A request longer than the bundle's clips, as windows: consecutive frames that are read and edited one after another.

A window has at most `max_frames` frames. It begins with the last `shared_frames` of the window before, or, where
the video cuts to another scene, with that scene. Memory does not grow with the length of the video.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from editverse_rt import media
from editverse_rt.bundle.spec import Geometry
from editverse_rt.errors import MediaError
from editverse_rt.media.decoding import start_error
from editverse_rt.media.frames import Frames, uneven_times_s
from editverse_rt.media.scenes import difference, is_cut
from editverse_rt.media.sound import Sound
from editverse_rt.media.video_reader import VideoReader
from editverse_rt.request.inputs import (
    ExaminedInputs,
    Footage,
    read_inputs,
    read_picture,
    read_sound,
)

__all__ = ["OneWindow", "Window", "WindowReader", "Windows", "read_windows"]


@dataclass(frozen=True, eq=False)
class Window:
    """Consecutive frames of a long request.

    index: counted from 0. begin: the number of its first frame in the result. num_shared: how many frames at its
    front belong to the window before as well. num_frames: of the result, the shared ones among them. footage: the
    clips as the model sees them; where a scene ends, its last frame is repeated up to a length that the VAE takes.
    """

    index: int
    begin: int
    num_shared: int
    num_frames: int
    footage: Footage


class Windows(Protocol):
    """The windows of a request, in order; iterate once.

    After the last window: num_frames, fps, times_s, sound and notices of the whole, see `Footage`.
    """

    num_frames: int
    fps: float
    times_s: tuple[float, ...] | None
    sound: Sound | None
    notices: list[str]

    def __iter__(self) -> Iterator[Window]: ...


def read_windows(examined: ExaminedInputs, on_frame: Callable[[], None] = lambda: None) -> Windows:
    """Read the inputs while the windows are iterated; the files are closed afterwards.

    on_frame: called before each frame of a file is decoded; what it raises stops the reading.
    """
    if examined.total_frames is None:
        return OneWindow(examined, on_frame)
    return WindowReader(examined, on_frame)


class OneWindow:
    """A request that one window holds, see `Windows`."""

    def __init__(self, examined: ExaminedInputs, on_frame: Callable[[], None]) -> None:
        self._examined, self._on_frame = examined, on_frame
        self.num_frames = 0
        self.fps = examined.fps
        self.times_s: tuple[float, ...] | None = None
        self.sound: Sound | None = None
        self.notices: list[str] = []

    def __iter__(self) -> Iterator[Window]:
        footage = read_inputs(self._examined, self._on_frame)
        self.num_frames, self.fps, self.times_s = footage.num_frames, footage.fps, footage.times_s
        self.sound, self.notices = footage.sound, list(footage.notices)
        yield Window(0, 0, 0, footage.num_frames, footage)


class WindowReader:
    """The windows of a longer request, see `Windows`."""

    def __init__(self, examined: ExaminedInputs, on_frame: Callable[[], None] = lambda: None) -> None:
        self._examined, self._on_frame = examined, on_frame
        self.num_frames = 0
        self.fps = examined.fps
        self.times_s: tuple[float, ...] | None = None
        self.sound: Sound | None = None
        self.notices: list[str] = []

    def __iter__(self) -> Iterator[Window]:
        examined = self._examined
        pictures = {
            name: read_picture(examined, name, self.notices, self._on_frame)
            for name in examined.names
            if name.startswith("image")
        }
        if examined.has_video:
            yield from self._windows_of_videos(pictures)
        else:
            yield from self._windows_of_nothing(pictures)
        for file in examined.files.values():
            file.close()

    def _windows_of_nothing(self, pictures: dict[str, Frames]) -> Iterator[Window]:
        """Windows of a result that follows no video."""
        geometry, total = self._examined.geometry, self._examined.total_frames or 1
        begin, shared, index = 0, 0, 0
        while True:
            num_frames = min(geometry.max_frames, total - begin)
            yield self._window(index, begin, shared, num_frames, dict(pictures))
            self.num_frames = begin + num_frames
            if self.num_frames == total:
                return
            shared, index = geometry.shared_frames, index + 1
            begin = self.num_frames - shared

    def _windows_of_videos(self, pictures: dict[str, Frames]) -> Iterator[Window]:
        examined, geometry, main = self._examined, self._examined.geometry, self._examined.names[0]
        videos = _Videos(examined, self._on_frame)
        begin, shared, index = 0, 0, 0
        try:
            while True:
                self._fill(videos, geometry.max_frames + 1, index)
                length = videos.scene_length(shared, geometry.max_frames)
                if length == shared:  # a scene begins with the first new frame, or there is none
                    begin, shared = begin + shared, 0
                    videos.drop(length)
                    if not videos.pending[main]:
                        break
                    continue
                clips = {name: _padded(frames[:length], geometry) for name, frames in videos.pending.items()}
                yield self._window(index, begin, shared, length, {**clips, **pictures})
                self.num_frames = begin + length
                index, shared = index + 1, min(geometry.shared_frames, length)
                begin = self.num_frames - shared
                videos.drop(length - shared)
            if index == 0:
                raise start_error(main, examined.request.start_s, videos.readers[main].end_s)
            self._finish(videos)
        finally:
            videos.close()

    def _fill(self, videos: _Videos, num_frames: int, index: int) -> None:
        """Read on; a video that breaks off after its first window ends there, and the user is told."""
        try:
            videos.fill(num_frames)
        except MediaError as error:
            if index == 0:
                raise
            videos.end_here()
            self.notices.append(f"{error}; the result ends where the video does")

    def _window(
        self, index: int, begin: int, shared: int, num_frames: int, clips: dict[str, Frames]
    ) -> Window:
        padded = _pad_length(num_frames, self._examined.geometry)
        return Window(index, begin, shared, num_frames, Footage(clips, padded, self.fps, (), None, None))

    def _finish(self, videos: _Videos) -> None:
        """What the whole of the videos says, after their last frame."""
        examined, main = self._examined, self._examined.names[0]
        reader = videos.readers[main]
        self.fps = reader.fps
        if examined.request.fps is None:
            self.times_s = uneven_times_s(reader.times_s[: self.num_frames], videos.end_s)
        for name, video in videos.readers.items():
            self.notices.extend(f"{name}: {line}" for line in video.notices)
            if video.num_damaged:
                self.notices.append(
                    f"{name}: {video.num_damaged} packets or frames are damaged; some were skipped"
                )
        asked = examined.request.num_frames
        if asked is not None and self.num_frames < asked:
            self.notices.append(f"{main}: ends after {self.num_frames} frames; num_frames is {asked}")
        for name, at in videos.held_from.items():
            self.notices.append(f"{name}: ends after {at} frames; its last one was held to the end")
        is_all = examined.request.start_s == 0 and not videos.has_more and not videos.is_broken
        if is_all and examined.media[main].has_audio:
            self.sound = read_sound(examined.files[main], main, self.notices)


class _Videos:
    """The videos of a request, read in step; `pending` holds the frames that are read and not yet dropped."""

    def __init__(self, examined: ExaminedInputs, on_frame: Callable[[], None]) -> None:
        self._main = examined.names[0]
        self._moments_s: list[float] = []
        self._left = examined.total_frames or 1
        self._names = [name for name in examined.names if name.startswith("video")]
        self.pending: dict[str, list[Frames]] = {name: [] for name in self._names}
        self.held_from: dict[str, int] = {}
        self.is_broken = False
        self.has_more = False
        self.end_s = 0.0
        self._differences: list[int | None] = []
        self.readers = {name: self._open(examined, name, on_frame) for name in self._names}

    def close(self) -> None:
        for reader in self.readers.values():
            reader.close()

    def fill(self, num_frames: int) -> None:
        """Read until so many frames are pending, or the main video ends. Raises MediaError."""
        if self.is_broken:
            return
        main, pending = self.readers[self._main], self.pending[self._main]
        before = pending[-1] if pending else None
        new = main.take(min(self._left, num_frames - len(pending)))
        self._left -= len(new)
        if self._left == 0:
            self.has_more = main.has_more()
        if new:
            self.end_s = main.end_s
        for frame in new:
            self._differences.append(None if before is None else difference(frame, before))
            before = frame
        pending += new
        self._moments_s.extend(time_s - main.times_s[0] for time_s in main.times_s[len(self._moments_s) :])
        for name in self._names[1:]:
            self._follow(name, len(new))

    def end_here(self) -> None:
        """A video broke off: what all videos have is what there is."""
        self.is_broken = True
        num_frames = min(map(len, self.pending.values()))
        for frames in self.pending.values():
            del frames[num_frames:]
        del self._differences[num_frames:]

    def _follow(self, name: str, num_frames: int) -> None:
        """As many frames of another video; its last one is held where it ends first."""
        frames = self.readers[name].take(num_frames)
        missing = num_frames - len(frames)
        if missing:
            held = (frames or self.pending[name])[-1:]
            if not held:
                raise MediaError(f"{name}: found no frame", expected="at least one", code="media.undecodable")
            self.held_from.setdefault(name, len(self.readers[name].times_s))
            frames += held * missing
        self.pending[name] += frames

    def scene_length(self, shared: int, most: int) -> int:
        """How many of the pending frames belong to one scene and fit into a window.

        shared: of those at the front, how many belong to the window before.
        """
        frames = self.pending[self._main]
        for index in range(max(1, shared), min(len(frames), most)):
            if is_cut(self._differences, index, frames[0].size):
                return index
        return min(len(frames), most)

    def drop(self, num_frames: int) -> None:
        """Forget frames at the front."""
        for frames in self.pending.values():
            del frames[:num_frames]
        del self._differences[:num_frames]

    def _open(self, examined: ExaminedInputs, name: str, on_frame: Callable[[], None]) -> VideoReader:
        source, (height_px, width_px) = examined.request.inputs[name], examined.sizes[name]
        start_s = examined.request.start_s
        if isinstance(source, np.ndarray):
            source_fps = examined.media[name].fps or 1.0
            return media.open_array_frames(
                source, source_fps, start_s=start_s, height_px=height_px, width_px=width_px
            )
        rate = examined.rate_for(name)
        follows = rate is not None and examined.request.fps is None
        return examined.files[name].open_frames(
            start_s=start_s,
            fps=rate,
            height_px=height_px,
            width_px=width_px,
            moments_s=self._moments_s if follows else None,
            on_frame=on_frame,
        )


def _pad_length(num_frames: int, geometry: Geometry) -> int:
    """The shortest length 1 + temporal_ratio * k that holds so many frames."""
    return 1 + -(-(num_frames - 1) // geometry.temporal_ratio) * geometry.temporal_ratio


def _padded(frames: list[Frames], geometry: Geometry) -> Frames:
    """Frames as a clip uint8 [1 + r k, H, W, 3]; the last one is repeated."""
    missing = _pad_length(len(frames), geometry) - len(frames)
    return np.stack([*frames, *frames[-1:] * missing])
