"""Videos whose frames are not evenly spaced: the C library keeps their times as the Python host does."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from cpp.tests import library as native
from editverse_rt import Pipeline

pytestmark = pytest.mark.skipif(
    native.load_library().ev_has_media() == 0, reason="this build is without FFmpeg"
)
# In hundredths of a second, which all containers keep.
TIMES_CS = (0, 10, 40, 50, 60, 110, 120, 130, 170, 180)


def uneven_video(path: Path, codec: str, pixel_format: str) -> Path:
    t, y, x, c = np.ogrid[: len(TIMES_CS), :64, :64, :3]
    frames = np.asarray((x * 3 * (c == 0) + y * 2 * (c == 1) + t * 25 * (c == 2)) % 256, np.uint8)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 64, pixel_format
        stream.codec_context.time_base = Fraction(1, 100)
        for picture, time_cs in zip(frames, TIMES_CS, strict=True):
            frame: Any = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixel_format)
            frame.pts, frame.time_base = time_cs, Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def times_of(path: Path) -> list[tuple[Fraction, Fraction]]:
    """When each frame of a file is shown, and for how long, in seconds."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        base = stream.time_base
        assert base is not None
        packets = [packet for packet in container.demux(stream) if packet.pts is not None]
        return sorted((packet.pts * base, (packet.duration or 0) * base) for packet in packets)


SOURCES = {"gif": ("a.gif", "gif", "rgb8"), "mp4": ("a.mp4", "libx264", "yuv420p")}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_a_result_keeps_the_times_of_its_source(
    source: str, suffix: str, host: Pipeline, twin: Any, tmp_path: Path
) -> None:
    name, codec, pixel_format = SOURCES[source]
    path = uneven_video(tmp_path / name, codec, pixel_format)
    ours, theirs = tmp_path / f"library{suffix}", tmp_path / f"python{suffix}"
    settings: dict[str, Any] = {"video1": path, "num_inference_steps": 1}
    if source == "mp4":
        # How long the last sample lasts is not the same in all versions of FFmpeg, so it is left out.
        settings["num_frames"] = len(TIMES_CS) - 1
    expected = host("<video1> Make it night", **settings)
    frames, fps, notices = twin.run("<video1> Make it night", save=[ours], **settings)
    assert np.array_equal(frames, expected.frames)
    assert (fps, tuple(notices)) == (expected.fps, expected.notices)
    assert expected.times_s is not None
    assert twin.times_s == list(expected.times_s), "to the last bit"
    expected.save(theirs)
    found, wanted = times_of(ours), times_of(theirs)
    if suffix in (".mkv", ".webm"):
        # FFmpeg 5.1 writes no lengths into Matroska; a frame ends where the next begins.
        found, wanted = (
            [(begin, Fraction(0)) for begin, _ in found],
            [(begin, Fraction(0)) for begin, _ in wanted],
        )
    assert found == wanted
    begins = [float(begin) for begin, _ in times_of(ours)]
    assert np.allclose(begins, np.array(TIMES_CS[: len(begins)]) / 100, atol=1e-3)


def test_an_even_source_and_a_rate_that_is_asked_for_have_no_times(
    host: Pipeline, twin: Any, tmp_path: Path
) -> None:
    twin.run("<video1> x", video1=native.ROOT / "examples" / "sample.mp4", num_inference_steps=1)
    assert twin.times_s is None
    path = uneven_video(tmp_path / "a.gif", "gif", "rgb8")
    twin.run("<video1> x", video1=path, fps=10.0, num_inference_steps=1)
    assert twin.times_s is None
