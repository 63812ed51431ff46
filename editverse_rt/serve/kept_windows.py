"""What a job gave, frame by frame: of one window in memory, of more on disk until its files are written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from editverse_rt.media.frames import Frames
from editverse_rt.media.lossless import read_lossless, write_lossless
from editverse_rt.result import WindowRun
from editverse_rt.serve.problems import too_many_frames

__all__ = ["KeptClip", "KeptWindows"]


@dataclass(eq=False)
class KeptClip:
    """Frames of one size, added window by window. num_frames, size (height, width): of what was added."""

    folder: Path
    name: str
    num_frames: int = 0
    size: tuple[int, int] = (0, 0)
    _first: Frames | None = field(default=None, repr=False)
    _files: list[Path] = field(default_factory=list, repr=False)

    def add(self, frames: Frames) -> None:
        """Keep frames uint8 [T, H, W, 3]; all but those of a lone first window lie on disk. Raises MediaError."""
        self.size = (frames.shape[1], frames.shape[2])
        if self.num_frames == 0:
            self._first = frames
        else:
            if self._first is not None:
                self._put(self._first)
                self._first = None
            self._put(frames)
        self.num_frames += len(frames)

    def _put(self, frames: Frames) -> None:
        path = self.folder / f"{self.name}-{len(self._files):06d}.mkv"
        write_lossless(path, frames)
        self._files.append(path)

    def __iter__(self) -> Iterator[Frames]:
        """Every frame [H, W, 3], in order."""
        if self._first is not None:
            yield from self._first
        for path in self._files:
            yield from read_lossless(path)


class KeptWindows:
    """A request's windows, kept as they are run. frames: of the result. source: of the main input, None without one."""

    def __init__(self, run: WindowRun, main: str | None, folder: Path, max_frames: int) -> None:
        """Run all windows. main: the main input. folder: takes the windows of a long result.

        Raises what running and writing raise, and RequestError for a video that is longer than it says and than
        max_frames.
        """
        self.frames = KeptClip(folder, "result")
        self.source = None if main is None else KeptClip(folder, "source")
        for edited in run:
            self.frames.add(edited.frames)
            # A picture is the same in every window.
            if self.source is not None and (edited.index == 0 or not str(main).startswith("image")):
                self.source.add(edited.sources[0])
            if self.frames.num_frames > max_frames:
                raise too_many_frames(f"more than {max_frames}", max_frames)
        windows = run.windows
        self.fps, self.times_s, self.sound = windows.fps, windows.times_s, windows.sound
        self.notices, self.timings = tuple(windows.notices), dict(run.timings)
