"""The times of frames, container by container."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_samples import encode, grey_frames, numbers

from editverse_rt.media import open_media, read_clip, write_clip


@pytest.mark.parametrize("codec", ["libx264", "libvpx-vp9"])
def test_variable_frame_rate_is_sampled_by_its_timestamps(tmp_path: Path, codec: str) -> None:
    times_ms = [0, 60, 140, 500, 580, 1000, 1480, 1580]
    path = encode(
        tmp_path / ("in.mp4" if codec == "libx264" else "in.webm"),
        grey_frames(8),
        pts=times_ms,
        time_base=Fraction(1, 1000),
        codec=codec,
    )
    clip = read_clip(path, num_frames=100, fps=10.0, height_px=16, width_px=16)
    assert clip.fps == 10.0
    # By hand: the frame on screen a little after 0.0, 0.1, 0.2 ... s.
    assert numbers(clip.frames)[:17] == [0, 1, 2, 2, 2, 3, 4, 4, 4, 4, 5, 5, 5, 5, 5, 6, 7]
    whole = read_clip(path, num_frames=8, height_px=16, width_px=16)
    assert numbers(whole.frames) == list(range(8))
    assert whole.fps == pytest.approx(7 / 1.58, rel=0.01)
    assert whole.source_times_s == pytest.approx([t / 1000 for t in times_ms], abs=0.002)


def numbered(count: int = 60) -> np.ndarray:
    """Frames with their number in binary, as seven bars: unlike grey levels they tell neighbours apart."""
    frames = np.full((count, 48, 112, 3), 40, np.uint8)
    for number in range(count):
        for bit in range(7):
            if number >> bit & 1:
                frames[number, :, bit * 16 : bit * 16 + 16] = 220
    return frames


def read_numbers(frames: np.ndarray) -> list[int]:
    return [
        sum(1 << bit for bit in range(7) if frame[8:40, bit * 16 + 4 : bit * 16 + 12].mean() > 130)
        for frame in frames
    ]


def encode_numbered(path: Path, codec: str, rate: int, form: str | None, b_frames: int) -> Path:
    with av.open(str(path), "w", format=form) as container:
        options = {"crf": "8"} if codec == "libx264" else {"qmin": "2", "qmax": "3"}
        stream = container.add_stream(codec, rate=rate, options={**options, "bf": str(b_frames)})
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = 48, 112, "yuv420p", 12
        for number, picture in enumerate(numbered()):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "rate", "form", "b_frames"),
    [
        ("in.mp4", "libx264", 25, None, 2),
        ("in.mkv", "libx264", 25, None, 2),
        ("in.mov", "libx264", 24, None, 2),
        ("in.ts", "libx264", 25, None, 2),
        ("in.flv", "libx264", 25, None, 2),
        ("in.avi", "mpeg4", 25, None, 2),
        ("h264.avi", "libx264", 25, None, 2),
        ("in.mpg", "mpeg2video", 25, None, 2),
        ("in.vob", "mpeg2video", 25, "vob", 2),
        ("in.m2v", "mpeg2video", 25, "mpeg2video", 2),
        ("in.h264", "libx264", 30, "h264", 2),
        ("in.wmv", "wmv2", 25, None, 0),
    ],
)
def test_every_frame_has_its_time(
    tmp_path: Path, name: str, codec: str, rate: int, form: str | None, b_frames: int
) -> None:
    path = encode_numbered(tmp_path / name, codec, rate, form, b_frames)
    clip = read_clip(path, num_frames=99, height_px=48, width_px=112)
    assert read_numbers(clip.frames) == list(range(60))
    assert clip.fps == pytest.approx(rate, rel=1e-3)
    assert (clip.num_damaged, clip.covers_source, clip.uneven_times_s(60)) == (0, True, None)
    assert clip.source_times_s == pytest.approx(np.arange(60) / rate, abs=0.0021)
    assert clip.end_s == pytest.approx(60 / rate, abs=0.0021)
    for number in (7, 30, 59):
        part = read_clip(path, start_s=number / rate, num_frames=1, height_px=48, width_px=112)
        assert read_numbers(part.frames) == [number]


def test_a_dropped_frame_of_an_avi_holds_the_last_one(tmp_path: Path) -> None:
    path = encode_numbered(tmp_path / "in.avi", "mpeg4", 25, None, 0)
    data = path.read_bytes()
    # Empty the chunk of frame 20: its length becomes 0, and its content a chunk that readers skip.
    begin = data.index(b"movi") + 4
    for _ in range(20):
        begin += 8 + (int.from_bytes(data[begin + 4 : begin + 8], "little") + 1) // 2 * 2
    length = int.from_bytes(data[begin + 4 : begin + 8], "little")
    if length % 2:
        length += 1
    assert length >= 8
    if True:
        empty = b"00dc" + bytes(4) + b"JUNK" + (length - 8).to_bytes(4, "little") + bytes(length - 8)
        index = data.index(b"idx1")
        entry = index + 8 + 16 * 20
        patched = data[:begin] + empty + data[begin + 8 + length :]
        patched = patched[: entry + 12] + bytes(4) + patched[entry + 16 :]
        path.write_bytes(patched)
    clip = read_clip(path, num_frames=99, height_px=48, width_px=112)
    times = [round(time_s * 25) for time_s in clip.source_times_s]
    assert len(clip.frames) == 59
    assert times == [*range(20), *range(21, 60)]


@pytest.mark.parametrize("suffix", [".gif", ".mp4", ".mkv", ".webm", ".mov"])
def test_an_uneven_source_keeps_its_times_from_file_to_file(tmp_path: Path, suffix: str) -> None:
    times_s = [0.0, 0.1, 0.4, 0.5, 0.6, 1.1, 1.2, 1.3, 1.4]
    write_clip(tmp_path / f"in{suffix}", grey_frames(8), 6.0, times_s=times_s)
    clip = read_clip(tmp_path / f"in{suffix}", num_frames=8, height_px=48, width_px=64)
    assert numbers(clip.frames) == list(range(8))
    # A Matroska file states no length of its last frame, which is taken as the average.
    found = clip.uneven_times_s(8)
    assert found is not None
    assert found[:-1] == pytest.approx(times_s[:-1], abs=0.0051)
    assert found[-1] == pytest.approx(times_s[-1], abs=0.3)
    assert clip.uneven_times_s(5)[-1] == pytest.approx(1.1, abs=0.0051)  # where the next frame begins


def test_a_video_beside_an_uneven_one_is_sampled_at_its_times(tmp_path: Path) -> None:
    write_clip(tmp_path / "even.mkv", grey_frames(20), 10.0)
    with open_media(tmp_path / "even.mkv") as file:
        clip = file.read_clip(
            num_frames=5, fps=3.0, height_px=48, width_px=64, moments_s=[0.0, 0.1, 0.4, 1.1, 1.2]
        )
    assert numbers(clip.frames) == [0, 1, 4, 11, 12]


@pytest.mark.parametrize("name", ["in.mkv", "in.webm", "in.mp4"])
def test_a_video_that_begins_late_is_whole(tmp_path: Path, name: str) -> None:
    """Matroska states when a track ends on the clock of the file."""
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    pts = [4000 + 100 * number for number in range(10)]
    frames = np.random.default_rng(0).integers(0, 256, (10, 48, 64, 3), dtype=np.uint8)
    path = encode(tmp_path / name, frames, pts=pts, time_base=Fraction(1, 1000), codec=codec)
    clip = read_clip(path, num_frames=30, height_px=48, width_px=64)
    assert (len(clip.frames), clip.num_damaged, clip.notices) == (10, 0, ())
    data = path.read_bytes()
    if name.endswith("mkv"):
        path.write_bytes(data[: len(data) // 2])
        clip = read_clip(path, num_frames=30, height_px=48, width_px=64)
        assert any("s of 0.94 s: it was cut short" in line for line in clip.notices)


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".mp4"])
def test_a_file_that_ends_early_says_so(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    write_clip(tmp_path / f"in{suffix}", rng.integers(0, 256, (30, 48, 64, 3), dtype=np.uint8), 10.0)
    data = (tmp_path / f"in{suffix}").read_bytes()
    (tmp_path / f"in{suffix}").write_bytes(data[: len(data) // 2])
    clip = read_clip(tmp_path / f"in{suffix}", num_frames=30, height_px=48, width_px=64)
    assert len(clip.frames) < 25
    assert clip.num_damaged > 0
    assert any("cut short" in line for line in clip.notices)
