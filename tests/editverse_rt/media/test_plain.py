"""Frames as published scores read them, held to PyAV called directly and to exact lossless videos."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from editverse_rt.errors import MediaError
from editverse_rt.media import read_clip
from editverse_rt.media.plain import jpeg_from_picture, read_frames_plain


def write_video(path: Path, frames: NDArray[np.uint8], codec: str, pix_fmt: str, **colours: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        for name, value in colours.items():
            setattr(stream.codec_context, name, value)
        for picture in frames:
            container.mux(stream.encode(VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def noise() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (5, 48, 64, 3), dtype=np.uint8)


def test_a_lossless_video_comes_back_as_it_was_whole_and_in_order(
    tmp_path: Path, noise: NDArray[np.uint8]
) -> None:
    path = write_video(tmp_path / "clip.mkv", noise, "ffv1", "bgr0")
    assert np.array_equal(read_frames_plain(path), noise)


def test_tags_of_colour_are_not_followed_where_read_clip_follows_them(
    tmp_path: Path, noise: NDArray[np.uint8]
) -> None:
    path = write_video(tmp_path / "clip.mp4", noise, "libx264", "yuv420p", colorspace=1, color_range=1)
    with av.open(str(path)) as container:
        expected = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    found = read_frames_plain(path)
    assert np.array_equal(found, expected)
    by_tags = read_clip(path, num_frames=5, height_px=48, width_px=64).frames
    # Otherwise there would be no need for this reader.
    assert np.abs(found.astype(int) - by_tags).mean() > 1


def test_an_image_is_one_frame(tmp_path: Path, noise: NDArray[np.uint8]) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(jpeg_from_picture(noise[0]))
    assert read_frames_plain(path).shape == (1, 48, 64, 3)


@pytest.mark.parametrize("size", [(48, 64), (33, 17), (1, 1)])
def test_a_jpeg_is_the_picture_that_it_was_made_of(size: tuple[int, int]) -> None:
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    picture = np.stack([rows * 3, columns * 2, rows + columns], -1).astype(np.uint8)
    data = jpeg_from_picture(picture)
    with av.open(io.BytesIO(data)) as container:
        (frame,) = list(container.decode(video=0))
    found = frame.to_ndarray(format="rgb24")
    assert found.shape == picture.shape
    # Smooth pictures lose about a level at quality 2 without subsampled colours.
    assert np.abs(found.astype(int) - picture).max() <= 6
    assert data[:2] == b"\xff\xd8"
    assert data == jpeg_from_picture(picture)


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_a_picture_of_another_form_is_refused(wrong: NDArray[np.uint8]) -> None:
    with pytest.raises(MediaError, match="expected uint8"):
        jpeg_from_picture(wrong)


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no such file"):
        read_frames_plain(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(MediaError, match="no video or image"):
        read_frames_plain(tmp_path / "text.mp4")
