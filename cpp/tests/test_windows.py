"""Videos longer than the bundle's clips: the C library edits them window by window, as the Python host does."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from cpp.tests import library as native
from editverse_rt import Pipeline
from editverse_rt.errors import MediaError, RequestCancelled, RequestError
from editverse_rt.request.edit_request import EditRequest

STEPS = 1
Frames = NDArray[np.uint8]
has_media = native.load_library().ev_has_media() == 1
needs_media = pytest.mark.skipif(not has_media, reason="this build is without FFmpeg")


def clip(num_frames: int, cut: int, size: int = 64) -> Frames:
    """Two scenes of slow motion, the second from frame `cut` on: uint8 [T, size, size, 3]."""
    t, y, x = np.ogrid[:num_frames, :size, :size]
    disc = (y - size / 2) ** 2 + (x - size * (0.3 + 0.008 * t)) ** 2 < (size / 4) ** 2
    first = np.stack([np.where(disc, 220, 2 * x + 0 * t), np.where(disc, 30, 3 * y), 80 + 0 * disc], axis=-1)
    return np.where((t >= cut)[..., None], 255 - first, first).astype(np.uint8)


def video(path: Path, frames: Frames, rate: int = 8) -> Path:
    """Frames as a file without loss."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "bgr0"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def both(host: Pipeline, twin: Any, prompt: str, **settings: Any) -> tuple[Any, list[tuple[int, int]]]:
    """What the Python host gives, and (begin, number of frames) of each window of the C library, which gives the
    same bytes and lines, as a whole and window by window."""
    given = {"num_inference_steps": STEPS, **settings}
    expected = host(prompt, **given)
    frames, fps, notices = twin.run(prompt, **given)
    assert np.array_equal(frames, expected.frames)
    assert (fps, notices) == (expected.fps, list(expected.notices))
    assert twin.times_s == (None if expected.times_s is None else list(expected.times_s))

    windows: list[tuple[int, Frames]] = []

    def take(index: int, _: int, begin: int, added: Frames) -> bool:
        assert index == len(windows)
        windows.append((begin, added))
        return True

    nothing, fps, notices = twin.run(prompt, on_window=take, **given)
    assert nothing.shape == (0, *frames.shape[1:])
    assert (twin.num_frames, fps, notices) == (len(frames), expected.fps, list(expected.notices))
    assert np.array_equal(np.concatenate([added for _, added in windows]), expected.frames)
    assert len(windows) == expected.num_windows
    return expected, [(begin, len(added)) for begin, added in windows]


def test_frames_in_memory_with_a_cut(host: Pipeline, twin: Any) -> None:
    frames = clip(49, cut=24)
    expected, windows = both(host, twin, "<video1> Make it night", video1=frames, length="whole")
    assert windows == [(0, 17), (17, 7), (24, 17), (41, 8)]
    assert len(expected.frames) == 49
    info, (size,) = twin.describe("<video1> Make it night", video1=frames, length="whole")
    # Cuts are found when the frames are read.
    assert (info.result.num_frames, info.num_windows, size.num_frames) == (49, 3, 17)


@needs_media
def test_a_file_with_a_cut(host: Pipeline, twin: Any, tmp_path: Path) -> None:
    path = video(tmp_path / "clip.mkv", clip(49, cut=24))
    expected, windows = both(host, twin, "<video1> Make it night", video1=path, length="whole")
    assert windows == [(0, 17), (17, 7), (24, 17), (41, 8)]
    assert expected.fps == 8


@needs_media
def test_a_mask_in_step_and_a_picture(host: Pipeline, twin: Any, tmp_path: Path) -> None:
    """The mask has half the rate and ends early; the picture is the same in every window."""
    path = video(tmp_path / "clip.mkv", clip(22, cut=99), rate=8)
    mask = video(tmp_path / "mask.mkv", clip(9, cut=4), rate=4)
    expected, windows = both(
        host,
        twin,
        "<video1> Where <video2> is white, put <image1>",
        video1=path,
        video2=mask,
        image1=clip(1, cut=0)[0],
        length="whole",
    )
    assert windows == [(0, 17), (17, 5)]
    assert any("video2: ends after 18 frames" in line for line in expected.notices)


@needs_media
def test_a_start_a_rate_and_a_number_of_frames(host: Pipeline, twin: Any, tmp_path: Path) -> None:
    path = video(tmp_path / "clip.mkv", clip(60, cut=99), rate=24)
    _, windows = both(
        host, twin, "<video1> Blur", video1=path, start_s=0.4, fps=12.0, num_frames=20, length="whole"
    )
    assert windows == [(0, 17), (17, 3)]


def test_a_generated_video(host: Pipeline, twin: Any) -> None:
    """More frames than the bundle's limit are windows, whatever the default length is."""
    _, windows = both(host, twin, "A red circle moves over a blue gradient", num_frames=30, seed=3)
    assert windows == [(0, 17), (17, 13)]
    info, _ = twin.describe("A red circle", num_frames=30)
    assert (info.result.num_frames, info.num_windows) == (30, 2)


def test_a_short_video_is_one_window(host: Pipeline, twin: Any) -> None:
    _, windows = both(host, twin, "<video1> Blur", video1=clip(7, cut=99), length="whole")
    assert windows == [(0, 7)]
    _, windows = both(host, twin, "<video1> Blur", video1=clip(20, cut=99), length="cut")
    assert windows == [(0, 17)]


def test_progress_and_stops_in_the_second_window(twin: Any) -> None:
    settings = {"num_frames": 30, "num_inference_steps": 2}
    seen: list[tuple[int, int, int]] = []

    def on_step(*facts: int) -> bool:
        seen.append((facts[0], facts[1], facts[2]))
        return len(seen) < 3

    windows: list[int] = []
    with pytest.raises(native.LibraryError) as found:
        twin.run(
            "A star", on_step=on_step, on_window=lambda index, *_: windows.append(index) is None, **settings
        )
    assert found.value.code == native.CANCELLED
    assert (seen, windows) == ([(0, 0, 2), (1, 0, 2), (0, 1, 2)], [0])
    with pytest.raises(native.LibraryError) as found:
        twin.run("A star", on_window=lambda *_: False, **settings)
    assert found.value.code == native.CANCELLED
    assert "after window 1" in found.value.text
    assert len(twin.run("A star", num_frames=1, num_inference_steps=1)[0]) == 1


def test_a_result_without_frames_is_not_saved(twin: Any, tmp_path: Path) -> None:
    with pytest.raises(native.LibraryError) as found:
        twin.run(
            "A star",
            num_frames=1,
            num_inference_steps=1,
            on_window=lambda *_: True,
            save=[tmp_path / "a.png"],
        )
    assert found.value.name == "TypeError"
    assert not list(tmp_path.iterdir())


def test_a_start_behind_the_end(host: Pipeline, twin: Any) -> None:
    settings = {"video1": clip(20, cut=99), "start_s": 99.0, "length": "whole"}
    with pytest.raises(MediaError, match="found a start of 99 s; the video ends at") as expected:
        host("<video1> Blur", **settings)
    with pytest.raises(native.LibraryError) as found:
        twin.run("<video1> Blur", **settings)
    assert found.value.text == str(expected.value)


def test_a_video_is_edited_whole_unless_it_is_to_be_cut(host: Pipeline, twin: Any) -> None:
    _, windows = both(host, twin, "<video1> Blur", video1=clip(20, cut=99))
    assert windows == [(0, 17), (17, 3)]


def test_a_result_beyond_the_machine_s_memory_is_refused(host: Pipeline, twin: Any) -> None:
    """Before it begins, unless its windows are taken one by one."""
    num_frames = 16_777_216
    num_bytes = 2 * 3 * num_frames * 64 * 64
    is_too_large = num_bytes > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    request = {"num_frames": num_frames, "size": (64, 64), "num_inference_steps": 1}
    with pytest.raises(native.LibraryError) as found:
        twin.run("A star", on_step=lambda *_: False, **request)
    assert found.value.facts["code"] == ("request.too_large" if is_too_large else "cancelled")
    with pytest.raises(native.LibraryError) as found:
        twin.run("A star", on_window=lambda *_: False, **request)
    assert "after window 1" in found.value.text
    with pytest.raises((RequestError, RequestCancelled)) as refused:
        host("A star", callback_on_step_end=lambda *_: False, **request)
    assert refused.value.code == ("request.too_large" if is_too_large else "cancelled")


SETTINGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "more than there are": {"num_frames": 100},
    "fewer than there are": {"num_frames": 20},
    "at another rate": {"fps": 4.0},
    "at another rate, more": {"fps": 12.0, "num_frames": 300},
    "from a start": {"start_s": 1.5},
    "from a start behind the end": {"start_s": 60.0},
    "cut": {"length": "cut", "start_s": 3.0},
}


@needs_media
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_expected_of_a_video(
    name: str, suffix: str, host: Pipeline, twin: Any, tmp_path: Path
) -> None:
    """Matroska says how long a video is, and not of how many frames."""
    path = tmp_path / f"in{suffix}"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=8)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        for picture in clip(40, cut=99):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    info, sizes = twin.describe("<video1> Blur", video1=path, **SETTINGS[name])
    checked = host.prepare(EditRequest("<video1> Blur", {"video1": path}, **SETTINGS[name]))
    expected = checked.inputs
    assert info.num_windows == expected.expected_windows
    if expected.total_frames is not None:
        assert info.result.num_frames == expected.expected_frames
    else:
        assert sizes[0].num_frames == expected.expected_shapes()["video1"][0]


@needs_media
def test_more_frames_than_a_video_has(host: Pipeline, twin: Any, tmp_path: Path) -> None:
    """The asked number is no length: it is not held to the memory of the machine, and the user is told."""
    path = video(tmp_path / "in.mkv", clip(20, cut=99))
    for num_frames in (100, 16_000_000):
        result, windows = both(host, twin, "<video1> Blur", video1=path, num_frames=num_frames)
        assert len(result.frames) == sum(count for _, count in windows) == 20
        assert f"video1: ends after 20 frames; num_frames is {num_frames}" in result.notices


def test_a_bundle_without_windows(host: Pipeline, tmp_path: Path) -> None:
    """It refuses what it cannot do, and cuts what nothing is said of."""
    bundle = tmp_path / "bundle"
    shutil.copytree(host.bundle.root, bundle)
    spec = json.loads((bundle / "bundle.json").read_text("utf-8"))
    spec["geometry"]["shared_frames"] = 0
    del spec["graphs"]["keep_known"]
    (bundle / "bundle.json").write_text(json.dumps(spec), "utf-8")
    settings = {"video1": clip(20, cut=99), "num_inference_steps": 1}
    with Pipeline.open(bundle, "ort-cpu", num_threads=1) as one, native.NativePipeline(bundle) as other:
        with pytest.raises(RequestError) as expected:
            one("<video1> Blur", length="whole", **settings)
        with pytest.raises(native.LibraryError) as found:
            other.run("<video1> Blur", length="whole", **settings)
        wanted, facts = expected.value.to_json(), found.value.facts
        assert wanted["code"] == facts["code"] == "request.unsupported"
        assert (facts["found"], facts["hint"]) == (wanted["found"], wanted["hint"])
        assert len(other.run("<video1> Blur", **settings)[0]) == 17
