"""Files as inputs: their time and sound in the result, and files that go or change in between."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from editverse_rt import EditRequest, MediaError, Pipeline, media
from editverse_rt.commands.main import main

TIMES_S = [0.0, 0.04, 0.08, 1.16, 1.2, 1.24, 2.28, 2.32, 2.36]


def video(path: Path, times_s: list[float], level: int = 60, sound_s: float = 2.4) -> Path:
    """A grey video with frames at those times, beside a tone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        audio = container.add_stream("aac", rate=16_000, layout="mono") if sound_s else None
        for number, time_s in enumerate(times_s):
            picture = np.full((48, 64, 3), level + 10 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = round(time_s * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None:
            for start in range(0, int(16_000 * sound_s), 1024):
                block = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
                block.sample_rate, block.pts, block.time_base = 16_000, start, Fraction(1, 16_000)
                container.mux(audio.encode(block))
            container.mux(audio.encode(None))
    return path


def presented_s(path: Path) -> list[float]:
    """When each frame is shown after the first; Matroska moves all streams so that none begins below 0."""
    with av.open(str(path)) as container:
        times_s = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
    return [time_s - times_s[0] for time_s in times_s]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".gif"])
def test_an_uneven_source_keeps_its_times_and_its_sound(
    pipeline: Pipeline, tmp_path: Path, suffix: str
) -> None:
    source = video(tmp_path / "in.mp4", TIMES_S)
    result = pipeline("<video1> Go", video1=source)
    assert result.times_s is not None
    assert result.times_s[:-1] == pytest.approx(TIMES_S, abs=0.001)
    source.unlink()
    notices = result.save(tmp_path / f"out{suffix}")
    assert presented_s(tmp_path / f"out{suffix}") == pytest.approx(TIMES_S, abs=0.011)
    takes_sound = suffix in (".mp4", ".mkv")
    assert media.probe(tmp_path / f"out{suffix}").has_audio == takes_sound
    assert (notices == ()) == takes_sound


def test_a_rate_that_is_asked_for_is_even(pipeline: Pipeline, tmp_path: Path) -> None:
    result = pipeline("<video1> Go", video1=video(tmp_path / "in.mp4", TIMES_S), fps=3.0)
    assert (result.times_s, result.fps) == (None, 3.0)
    assert result.frames.shape[0] == 5  # 2.4 s at 3 frames a second, rounded down to 1 + 4 k


def test_sound_is_left_out_where_the_length_is_not_kept(pipeline: Pipeline, tmp_path: Path) -> None:
    source = video(tmp_path / "in.mp4", [k / 25 for k in range(8)])
    result = pipeline("<video1> Go", video1=source)
    assert result.frames.shape[0] == 5
    assert result.sound is None


def test_a_file_that_is_replaced_after_the_plan_is_not_mixed_in(pipeline: Pipeline, tmp_path: Path) -> None:
    source = video(tmp_path / "in.mp4", [k / 25 for k in range(5)], level=60)
    prepared = pipeline.prepare(EditRequest("<video1> Go", {"video1": source}))
    other = video(tmp_path / "other.mp4", [k / 5 for k in range(9)], level=150, sound_s=0)
    os.replace(other, source)
    result = pipeline.run(prepared)
    assert result.fps == 25
    assert abs(int(result.sources[0][0].mean()) - 60) <= 4
    assert result.sound is not None


def test_a_picture_that_is_too_large_fails_at_the_plan(pipeline: Pipeline, tmp_path: Path) -> None:
    head = b"GIF89a" + (60_000).to_bytes(2, "little") * 2 + bytes(3) + b"\x3b"
    (tmp_path / "in.gif").write_bytes(head)
    with pytest.raises(MediaError, match="60000x60000"):
        pipeline.prepare(EditRequest("<image1> Go", {"image1": tmp_path / "in.gif"}))


def test_a_mask_beside_an_uneven_video_is_taken_at_its_times(pipeline: Pipeline, tmp_path: Path) -> None:
    main = video(tmp_path / "in.mp4", TIMES_S)
    mask = video(tmp_path / "mask.mkv", [k / 8 for k in range(20)], level=20, sound_s=0)
    result = pipeline("<video1> in <video2>", video1=main, video2=mask)
    found = [round((int(frame.mean()) - 20) / 10) for frame in result.sources[1]]
    assert found == [int(time_s * 8 + 0.3 * 8 / 25) for time_s in TIMES_S]


def test_an_open_file_stands_for_its_path_and_is_opened_once(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = video(tmp_path / "in.mp4", [k / 25 for k in range(5)])
    file = media.open_media(source)
    source.unlink()
    request = EditRequest("<video1> Go", {"video1": file})
    assert request.to_json()["inputs"] == {"video1": str(source)}
    result = pipeline(request.prompt, video1=file)
    assert result.frames.shape[0] == 5
    assert result.sound is not None
    with pytest.raises(MediaError, match="the file was closed; open it again"):
        pipeline(request.prompt, video1=file)


def test_the_command_line_opens_each_input_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = tmp_path / "in.png"
    media.write_image(write, np.full((48, 64, 3), 90, np.uint8))
    opened: list[str] = []
    original = os.open
    monkeypatch.setattr(
        os, "open", lambda name, *a, **k: (opened.append(os.fspath(name)), original(name, *a, **k))[1]
    )
    assert main(["edit", str(write), "night", "-o", str(tmp_path / "out.png"), "--schedule", "fast"]) == 0
    assert opened.count(str(write)) == 1
