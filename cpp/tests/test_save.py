"""Results that the C library writes to files, read again by the Python host.

Lossless pictures hold the very pixels; of the others the encoders belong to another version of FFmpeg than
the Python host's, so what is read is held to the frames, and to what the Python host's own file loses.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from cpp.tests import library as native
from editverse_rt.media import probe, read_clip, write_clip

NANO = native.ROOT / "editverse_rt" / "bundles" / "nano"
PROMPT = "A red circle on a blue background"
HAS_MEDIA = native.load_library().ev_has_media() == 1
# How much more the C library's file may lose than the Python host's: the encoders are of different versions.
MORE_LOSS_DB = 1.0

needs_ffmpeg = pytest.mark.skipif(not HAS_MEDIA, reason="this build is without FFmpeg")


@pytest.fixture(scope="module")
def pipeline() -> Iterator[native.NativePipeline]:
    with native.NativePipeline(NANO) as opened:
        yield opened


def run(pipeline: native.NativePipeline, *save: Path, **settings: Any) -> tuple[NDArray[np.uint8], float]:
    frames, fps, _ = pipeline.run(PROMPT, save=save, num_inference_steps=1, **settings)
    return frames, fps


def psnr_db(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def read(path: Path, like: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = like.shape[1:3]
    return read_clip(path, num_frames=len(like) + 9, height_px=height, width_px=width).frames


@needs_ffmpeg
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".MP4"])
def test_a_video_is_what_the_python_host_would_write(
    suffix: str, pipeline: native.NativePipeline, tmp_path: Path
) -> None:
    path, other = tmp_path / f"out{suffix}", tmp_path / f"python{suffix}"
    frames, fps = run(pipeline, path, num_frames=9, fps=12.5)
    write_clip(other, frames, fps)
    info = probe(path)
    assert (info.kind, info.fps, info.has_audio) == ("video", 12.5, False)
    assert (info.width_px, info.height_px) == (frames.shape[2], frames.shape[1])
    found, expected = read(path, frames), read(other, frames)
    assert found.shape == frames.shape
    assert psnr_db(found, frames) > psnr_db(expected, frames) - MORE_LOSS_DB
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([path.name, other.name])


@needs_ffmpeg
@pytest.mark.parametrize("thousands", [24, 120, 240])
def test_a_rate_is_written_as_the_python_host_writes_it(
    thousands: int, pipeline: native.NativePipeline, tmp_path: Path
) -> None:
    path, other = tmp_path / "out.mp4", tmp_path / "python.mp4"
    frames, fps = run(pipeline, path, num_frames=5, fps=thousands * 1000 / 1001)
    write_clip(other, frames, fps)
    rates = []
    for written in (path, other):
        with av.open(str(written)) as container:
            rates.append(container.streams.video[0].average_rate)
    assert rates == [Fraction(thousands * 1000, 1001)] * 2


@needs_ffmpeg
@pytest.mark.parametrize(("suffix", "is_lossless"), [(".png", True), (".webp", True), (".jpg", False)])
def test_a_picture(suffix: str, is_lossless: bool, pipeline: native.NativePipeline, tmp_path: Path) -> None:
    path, other = tmp_path / f"out{suffix}", tmp_path / f"python{suffix}"
    frames, fps = run(pipeline, path, num_frames=1)
    write_clip(other, frames, fps)
    found = read(path, frames)
    assert found.shape == frames.shape
    if is_lossless:
        assert np.array_equal(found, frames)
    else:
        assert psnr_db(found, frames) > psnr_db(read(other, frames), frames) - MORE_LOSS_DB


@needs_ffmpeg
def test_pictures_in_a_folder_and_by_a_pattern(pipeline: native.NativePipeline, tmp_path: Path) -> None:
    frames, _ = run(pipeline, tmp_path / "folder", tmp_path / "p_%03d.png", num_frames=5)
    for number in range(1, 6):
        for path in (tmp_path / "folder" / f"frame_{number:05d}.png", tmp_path / f"p_{number:03d}.png"):
            assert np.array_equal(read(path, frames[number - 1 : number])[0], frames[number - 1])
    assert len(list((tmp_path / "folder").iterdir())) == 5
    assert len(list(tmp_path.iterdir())) == 6


@needs_ffmpeg
def test_a_file_that_is_there_is_replaced_and_follows_the_umask(
    pipeline: native.NativePipeline, tmp_path: Path
) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    frames, _ = run(pipeline, path, num_frames=1)
    assert np.array_equal(read(path, frames), frames)
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@needs_ffmpeg
@pytest.mark.parametrize(
    ("name", "num_frames", "text"),
    [
        ("out.gif", 5, "found the suffix .gif; expected one of .mp4 .mov .mkv .webm .png .jpg .jpeg .webp"),
        ("out.png", 5, "found several frames for one picture; expected one; write a folder, out_%04d.png"),
        ("no/such/out.mp4", 1, "expected an existing one; create it first"),
        ("taken.mp4", 1, "found a folder of that name; expected a file name; choose another"),
        ("full", 1, "already there; expected a new or an empty folder; choose another name"),
        ("a%sb.png", 5, "found several frames for one picture"),
        ("%d%d.png", 5, "found several frames for one picture"),
        ("", 1, "expected the name of a file"),
    ],
)
def test_what_cannot_be_written_leaves_nothing_behind(
    name: str, num_frames: int, text: str, pipeline: native.NativePipeline, tmp_path: Path
) -> None:
    (tmp_path / "taken.mp4").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    path: Any = f"{tmp_path}/{name}"
    with pytest.raises(native.LibraryError) as error:
        run(pipeline, path, num_frames=num_frames)
    assert error.value.name == "MediaError"
    assert text in error.value.text
    assert sorted(tmp_path.rglob("*")) == before


@needs_ffmpeg
def test_a_pattern_that_cannot_be_moved_takes_its_pictures_back(
    pipeline: native.NativePipeline, tmp_path: Path
) -> None:
    (tmp_path / "p_3.png").mkdir()
    with pytest.raises(native.LibraryError) as error:
        run(pipeline, tmp_path / "p_%d.png", num_frames=5)
    assert "cannot be written" in error.value.text
    assert [entry.name for entry in tmp_path.iterdir()] == ["p_3.png"]


def test_without_ffmpeg_it_is_said_what_to_do(pipeline: native.NativePipeline, tmp_path: Path) -> None:
    if HAS_MEDIA:
        pytest.skip("this build has FFmpeg")
    with pytest.raises(native.LibraryError) as error:
        run(pipeline, tmp_path / "out.mp4", num_frames=1)
    assert "was built without FFmpeg; encode what ev_result_frames gives" in error.value.text
