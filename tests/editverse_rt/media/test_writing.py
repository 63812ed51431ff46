"""Writing of videos, pictures and folders of them."""

from __future__ import annotations

import ctypes
import random
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_samples import corners, grey_frames, names, numbers

from editverse_rt.errors import MediaError
from editverse_rt.media import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    probe,
    read_clip,
    write_clip,
    write_image,
    writing,
)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".gif"])
@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001), Fraction(8)])
def test_written_videos_keep_frames_and_rate(tmp_path: Path, suffix: str, rate: Fraction) -> None:
    frames = grey_frames(17)
    path = tmp_path / f"out{suffix}"
    report = write_clip(path, frames, float(rate))
    assert (report.path, report.num_frames, report.notices) == (path, 17, ())
    assert names(tmp_path) == [path.name]
    clip = read_clip(path, num_frames=99, height_px=48, width_px=64)
    assert numbers(clip.frames) == list(range(17))
    assert np.abs(clip.frames.astype(int) - frames).max() <= 2
    tolerance = 0.02 if suffix == ".gif" else 1e-9  # GIF counts hundredths of a second
    assert clip.fps == pytest.approx(float(rate), rel=tolerance)
    assert probe(path).duration_s == pytest.approx(float(17 / rate), abs=0.03)


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".png", ".jpg", ".webp"])
def test_colours_come_back(tmp_path: Path, suffix: str) -> None:
    colours = np.array([(200, 30, 90), (20, 160, 40), (10, 60, 220), (230, 220, 30)], np.uint8)
    picture = np.repeat(np.repeat(colours.reshape(2, 2, 3), 32, axis=0), 32, axis=1)
    write_clip(tmp_path / f"out{suffix}", picture[None], 25.0)
    read = read_clip(tmp_path / f"out{suffix}", num_frames=1, height_px=64, width_px=64).frames[0]
    for y, x in ((8, 8), (8, 56), (56, 8), (56, 56)):
        assert np.abs(read[y, x].astype(int) - picture[y, x]).max() <= 3


def test_mp4_is_what_players_play(tmp_path: Path) -> None:
    report = write_clip(tmp_path / "out.mp4", corners(47, 63)[None].repeat(3, axis=0), 25.0)
    assert "63x47 became 64x48" in report.notices[0]
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (64, 48)
        assert (stream.codec_context.colorspace, stream.codec_context.color_range) == (1, 1)
    data = (tmp_path / "out.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert write_clip(tmp_path / "out.webm", corners(47, 63)[None], 25.0).notices == ()
    assert probe(tmp_path / "out.webm").width_px == 63


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv", ".gif", ".png", ".jpg", ".webp"])
def test_the_same_frames_give_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    frames = np.random.default_rng(0).integers(
        0, 256, (1 if suffix in IMAGE_SUFFIXES else 5, 48, 64, 3), dtype=np.uint8
    )
    written = []
    for name in ("a", "b"):
        write_clip(tmp_path / f"{name}{suffix}", frames, 25.0)
        written.append((tmp_path / f"{name}{suffix}").read_bytes())
    assert written[0] == written[1]


@pytest.mark.skipif(sys.platform != "linux", reason="freed memory is filled through the C library of Linux")
def test_what_freed_memory_held_changes_no_byte(tmp_path: Path) -> None:
    """x264's macroblock tree reads memory that it did not write: with it these frames gave three files in 40."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    rng = random.Random(3)
    blocks = np.random.default_rng(3).integers(0, 256, (5, 6, 10, 3)).astype(np.uint8)
    frames = blocks.repeat(8, axis=1).repeat(8, axis=2)
    files = set()
    for _ in range(40):
        value, held = rng.randrange(256), []
        for _ in range(400):
            size = rng.choice([64, 200, 500, 1000, 4000, 9000, 20_000, 60_000, 120_000])
            held.append(libc.malloc(size))
            libc.memset(held[-1], value, size)
        rng.shuffle(held)
        for block in held:
            libc.free(block)
        write_clip(tmp_path / "out.mp4", frames, 8.0)
        files.add((tmp_path / "out.mp4").read_bytes())
    assert len(files) == 1


def test_frames_may_come_one_by_one_or_in_chunks(tmp_path: Path) -> None:
    frames = grey_frames(9)
    write_clip(tmp_path / "whole.mp4", frames, 25.0)
    write_clip(tmp_path / "single.mp4", iter(frames), 25.0)
    assert (
        write_clip(tmp_path / "chunks.mp4", iter([frames[:1], frames[1:5], frames[5:]]), 25.0).num_frames == 9
    )
    whole = (tmp_path / "whole.mp4").read_bytes()
    assert whole == (tmp_path / "single.mp4").read_bytes() == (tmp_path / "chunks.mp4").read_bytes()


@pytest.mark.parametrize("name", ["folder", "name_%04d.png"])
def test_png_frames(tmp_path: Path, name: str) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    assert write_clip(tmp_path / name, frames, 25.0).num_frames == 3
    if name == "folder":
        expected = ["folder", *(f"folder/frame_{i:05d}.png" for i in (1, 2, 3))]
    else:
        expected = [f"name_{i:04d}.png" for i in (1, 2, 3)]
    assert names(tmp_path) == expected
    for path, frame in zip(expected[-3:], frames, strict=True):
        assert (read_clip(tmp_path / path, num_frames=1, height_px=20, width_px=30).frames[0] == frame).all()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_clip(tmp_path / "out", grey_frames(2), 25.0)
    before = names(tmp_path)
    with pytest.raises(MediaError, match="already there"):
        write_clip(tmp_path / "out", grey_frames(2), 25.0)
    assert names(tmp_path) == before


@pytest.mark.parametrize("name", ["out.mp4", "out.gif", "out_%d.png", "out"])
def test_an_interruption_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    def interrupted() -> Iterator[np.ndarray]:
        yield from grey_frames(3)
        raise KeyboardInterrupt

    if name == "out.mp4":
        (tmp_path / name).write_bytes(b"what was there before")
    before = names(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write_clip(tmp_path / name, interrupted(), 25.0)
    assert names(tmp_path) == before
    if name == "out.mp4":
        assert (tmp_path / name).read_bytes() == b"what was there before"


@pytest.mark.parametrize(
    ("name", "frames", "found"),
    [
        ("out.xyz", grey_frames(2), r"suffix \.xyz; expected one of \.mp4"),
        ("out.png", grey_frames(2), r"out_%04d\.png"),
        ("out.jpg", grey_frames(2), "several frames for one picture"),
        ("none/out.mp4", grey_frames(2), "no folder"),
        ("none/out.png", grey_frames(1), "no folder"),
        ("none/out", grey_frames(1), "no folder"),
        ("file.txt/out.mp4", grey_frames(2), "no folder"),
        ("folder.mp4", grey_frames(2), "found a folder"),
        ("out.mp4", [], "no frames"),
        ("out", [], "no frames"),
        ("out.mp4", np.zeros((0, 8, 8, 3), np.uint8), "empty array"),
        ("out.mp4", np.zeros((2, 8, 8, 3), np.float32), "float32"),
        ("out.mp4", [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], "one size"),
    ],
)
def test_bad_output_is_one_clear_line_and_leaves_nothing(
    tmp_path: Path, name: str, frames, found: str
) -> None:
    (tmp_path / "file.txt").touch()
    (tmp_path / "folder.mp4").mkdir()
    before = names(tmp_path)
    with pytest.raises(MediaError, match=found) as caught:
        write_clip(tmp_path / name, frames, 25.0)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == before


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), 1e9])
def test_an_impossible_rate_is_refused(tmp_path: Path, fps: float) -> None:
    with pytest.raises(MediaError, match="frames a second"):
        write_clip(tmp_path / "out.mp4", grey_frames(2), fps)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["out.mp4", "out.webm", "out.gif", "out.png", "out_%d.png", "out"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_refused_write_is_one_clear_line_and_leaves_nothing(
    tmp_path: Path, name: str, share: float
) -> None:
    """A limit on the size of files fails writes as a full disk does, wherever the limit falls."""
    script = f"""
import os, pathlib, resource, signal, sys
import numpy as np
from editverse_rt.errors import MediaError
from editverse_rt.media import write_clip
count = {1 if name == "out.png" else 3}
frames = np.random.default_rng(0).integers(0, 256, (count, 48, 64, 3), dtype=np.uint8)
free, full = pathlib.Path(sys.argv[1], "free"), pathlib.Path(sys.argv[1], "full")
free.mkdir(), full.mkdir()
write_clip(free / sys.argv[2], frames, 25.0)
size = max(p.stat().st_size for p in free.rglob("*") if p.is_file())
limit = int(size * {share})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    write_clip(full / sys.argv[2], frames, 25.0)
except MediaError as error:
    sys.exit(0 if "cannot be written" in str(error) and not list(full.iterdir()) else 3)
sys.exit(4)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("number", "found"), [(28, "disk is full"), (13, "no permission"), (30, "no permission")]
)
def test_what_the_system_refuses_is_named(tmp_path: Path, monkeypatch, number: int, found: str) -> None:
    def refuse(self: Path, data: bytes) -> int:
        raise OSError(number, "refused")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(MediaError, match=found):
        write_image(tmp_path / "out.png", corners())
    assert names(tmp_path) == []


def test_write_image_takes_one_picture(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="2 frames"):
        write_image(tmp_path / "out.png", grey_frames(2))
    with pytest.raises(MediaError, match=r"'\.mp4'"):
        write_image(tmp_path / "out.mp4", corners())
    assert names(tmp_path) == []


def test_every_type_that_is_promised_can_be_written() -> None:
    assert set(writing._CONTAINERS) == VIDEO_SUFFIXES
    assert set(writing._PICTURES) == IMAGE_SUFFIXES
