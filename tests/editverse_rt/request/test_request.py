"""What a request becomes: sizes, lengths, rates, sound, notices; what is refused before any graph runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from editverse_rt import media
from editverse_rt.bundle.manifest import load_bundle
from editverse_rt.errors import MediaError, RequestError
from editverse_rt.media.frames import Clip, MediaInfo
from editverse_rt.pipeline import Pipeline

Array = NDArray[Any]
GREY = 100


def test_generation_takes_the_bundles_defaults(pipeline: Pipeline) -> None:
    result = pipeline("A yellow ring moves")
    assert result.frames.shape == (5, 48, 48, 3)
    assert (result.frames == GREY).all()
    assert result.fps == 8.0
    assert result.sources == ()
    assert result.laid_out.main is None


def test_generation_as_asked_for(pipeline: Pipeline) -> None:
    result = pipeline("A yellow ring", size=(32, 64), num_frames=1, fps=12.5)
    assert result.frames.shape == (1, 32, 64, 3)
    assert result.fps == 12.5
    assert result.notices == ()


def test_images_alone_give_an_image(pipeline: Pipeline, blocky_clip: Any) -> None:
    image1, image2 = blocky_clip(1)[0], blocky_clip(1, 64, 48, seed=3)
    result = pipeline("<image2> into <image1>", image1=image1, image2=image2)
    assert result.frames.shape == (1, 48, 64, 3)
    assert result.laid_out.main == "image1"
    assert result.laid_out.sources["image2"] == (1, 64, 48)


def test_an_image_can_become_a_video(pipeline: Pipeline, blocky_clip: Any) -> None:
    result = pipeline("<image1> It moves", image1=blocky_clip(1)[0], num_frames=8)
    assert result.frames.shape == (5, 48, 64, 3)
    assert result.notices == ("num_frames 8 became 5: clips have 1 + 4 k frames, up to 9",)


def test_a_video_can_become_an_image(pipeline: Pipeline, blocky_clip: Any) -> None:
    source = blocky_clip(9)
    result = pipeline("<video1> Go", video1=source, num_frames=1)
    np.testing.assert_array_equal(result.frames, source[:1])
    assert result.notices == ()


def test_a_long_source_is_cut_and_says_so(pipeline: Pipeline, blocky_clip: Any) -> None:
    result = pipeline("<video1> Go", video1=blocky_clip(30), fps=4)
    assert result.frames.shape[0] == 9
    assert result.fps == 4.0
    assert result.notices == (
        "video1: took frames 0-8 (2.25 s) of 30 at 4 fps; clips have 1 + 4 k frames, up to 9; "
        "choose otherwise with start_s, num_frames, fps",
    )


def test_an_odd_length_is_rounded_down_and_says_so(pipeline: Pipeline, blocky_clip: Any) -> None:
    source = blocky_clip(8)
    result = pipeline("<video1> Go", video1=source)
    np.testing.assert_array_equal(result.frames, source[:5])
    assert "took frames 0-4 (0.62 s) of 8 at 8 fps" in result.notices[0]
    assert pipeline("<video1> Go", video1=source, num_frames=5).notices == ()
    assert "took frames 0-4" in pipeline("<video1> Go", video1=source, num_frames=7).notices[0]


def test_an_instruction_without_tags_gets_all_of_them_in_front(pipeline: Pipeline, blocky_clip: Any) -> None:
    inputs = {"video1": blocky_clip(5), "image1": blocky_clip(1)[0]}
    plain, tagged = pipeline("Go", **inputs), pipeline("<video1> <image1> Go", **inputs)
    np.testing.assert_array_equal(plain.frames, tagged.frames)
    assert plain.laid_out.sources == tagged.laid_out.sources
    assert plain.laid_out.segments == tagged.laid_out.segments


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [((512, 512), "64x64"), ((720, 1280), "80x48"), ((1280, 720), "48x80"), ((0, 0), "32x32")],
)
def test_a_size_that_is_refused_is_led_to_one_of_its_shape(
    pipeline: Pipeline, asked: tuple[int, int], nearest: str
) -> None:
    with pytest.raises(RequestError) as caught:
        pipeline("A ring", size=asked)
    assert f"the nearest is {nearest}" in caught.value.hint


def test_a_start_is_a_time_in_the_video(pipeline: Pipeline, blocky_clip: Any) -> None:
    source = blocky_clip(13)
    result = pipeline("<video1> Go", video1=source, start_s=1.0)
    np.testing.assert_array_equal(result.sources[0], source[8:13])
    assert result.notices == ()


def test_two_videos_keep_in_step(pipeline: Pipeline, runner: Any, blocky_clip: Any) -> None:
    mask = blocky_clip(9, 96, 128, seed=5)[:, ::2, ::2]
    result = pipeline("<video2> masks <video1>", video1=blocky_clip(6), video2=mask)
    assert result.frames.shape[0] == 5
    assert result.laid_out.sources == {"video1": (5, 48, 64), "video2": (5, 48, 64)}
    assert [notice.split(":")[0] for notice in result.notices] == ["video1"]


def test_a_second_video_that_is_shorter_keeps_its_own_length(pipeline: Pipeline, blocky_clip: Any) -> None:
    result = pipeline("<video1> like <video2>", video1=blocky_clip(9), video2=blocky_clip(7, seed=1))
    assert result.frames.shape[0] == 9
    assert result.laid_out.sources["video2"] == (5, 48, 64)
    assert result.notices[0].startswith("video2: took frames 0-4")


def fake_media(
    monkeypatch: pytest.MonkeyPatch, infos: dict[str, MediaInfo], clip: Clip
) -> list[dict[str, Any]]:
    """Stand-ins for files: what they are, and the one clip that reading gives."""
    reads: list[dict[str, Any]] = []

    class File:
        def __init__(self, source: str) -> None:
            self.source, self.info = str(source), infos[str(source)]

        def read_clip(self, **options: Any) -> Clip:
            reads.append({"source": self.source, **options})
            return clip

        def read_sound(self) -> str:
            return f"the sound of {self.source}"

        def close(self) -> None:
            pass

    monkeypatch.setattr(media, "open_media", File)
    return reads


def make_clip(num_frames: int, covers_source: bool, num_damaged: int = 0) -> Clip:
    frames = np.zeros((num_frames, 48, 64, 3), np.uint8)
    return Clip(
        frames, 25.0, tuple(i / 25 for i in range(num_frames)), 9, covers_source, num_damaged=num_damaged
    )


@pytest.mark.parametrize(
    ("num_frames", "covers_source", "has_audio", "carried"),
    [(9, True, True, True), (9, True, False, False), (9, False, True, False), (8, True, True, False)],
)
def test_sound_goes_along_only_if_the_result_keeps_the_length(
    pipeline: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    num_frames: int,
    covers_source: bool,
    has_audio: bool,
    carried: bool,
) -> None:
    info = MediaInfo("video", 640, 480, 25.0, 0.36, num_frames, has_audio)
    fake_media(monkeypatch, {"in.mp4": info}, make_clip(num_frames, covers_source))
    written: list[Any] = []

    def write_clip(path: str, frames: Iterable[Array], fps: float, *, times_s: None, audio_from: Any) -> Any:
        assert times_s is None
        pictures = np.stack([*frames])
        written.append((path, pictures.shape, fps, audio_from))
        return media.WriteReport(Path(path), len(pictures), ("a line",))

    monkeypatch.setattr(media, "write_clip", write_clip)
    result = pipeline("<video1> Go", video1="in.mp4")
    assert result.save("out.mp4") == ("a line",)
    assert result.save("out.mp4", audio=False) == ("a line",)
    assert [entry[3] for entry in written] == ["the sound of in.mp4" if carried else None, None]
    assert written[0][:3] == ("out.mp4", result.frames.shape, 25.0)


def test_files_are_read_at_the_decided_size_and_rate(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    infos = {
        "a.mp4": MediaInfo("video", 1280, 960, 25.0, 12.0, 300, False),
        "mask.mp4": MediaInfo("video", 640, 480, 25.0, 12.0, 300, False),
        "slow.mp4": MediaInfo("video", 400, 400, 12.0, 9.0, 108, False),
        "b.png": MediaInfo("image", 300, 400, None, None, 1, False),
    }
    reads = fake_media(monkeypatch, infos, make_clip(9, False))
    prompt = "<image1> <video1> <video2> <video3> Go"
    result = pipeline(
        prompt, video1="a.mp4", video2=Path("mask.mp4"), video3="slow.mp4", image1="b.png", start_s=2.0
    )
    assert [read["source"] for read in reads] == ["a.mp4", "mask.mp4", "slow.mp4", "b.png"]
    assert [read["num_frames"] for read in reads] == [9, 9, 9, 1]
    assert [read["fps"] for read in reads] == [None, None, 25.0, None]
    assert [read["start_s"] for read in reads] == [2.0, 2.0, 2.0, 0.0]
    assert [(read["height_px"], read["width_px"]) for read in reads] == [
        (48, 64),
        (48, 64),
        (64, 64),
        (64, 48),
    ]
    assert result.notices[0].startswith("video1: took 9 frames (0.36 s) from 2 s on at 25 fps; clips have")
    assert len(result.notices) == 1


def test_damage_is_reported(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    info = MediaInfo("video", 640, 480, 25.0, 0.36, None, False)
    fake_media(monkeypatch, {"in.mp4": info}, make_clip(9, True, num_damaged=3))
    notice = "video1: 3 packets or frames are damaged; some were skipped"
    assert pipeline("<video1> Go", video1="in.mp4").notices == (notice,)


@pytest.mark.parametrize(
    ("prompt", "options", "line"),
    [
        ("", {}, "instruction is empty"),
        ("<video1> Go", {}, "no video1 is given"),
        (
            "<image1> Go",
            {"image1": np.zeros((48, 64, 3), np.uint8), "video1": np.zeros((1, 48, 64, 3), np.uint8)},
            "does not mention <video1>",
        ),
        ("Go", {"steps": 5}, 'an input is called "steps"'),
        ("Turn the circle green " * 9, {}, "takes up to 24; shorten it"),
        ("A ring", {"num_frames": 10}, "num_frames is 10; this bundle takes 1 to 9"),
        ("A ring", {"size": (48, 50)}, "size is 50x48"),
        ("A ring", {"seed": -1}, "seed is -1; expected a whole number from 0 to 9223372036854775807"),
        ("A ring", {"seed": 0.5}, "seed is 0.5; expected a whole number from 0 to 9223372036854775807"),
        ("A ring", {"seed": 2**63}, "seed is 9223372036854775808"),
        ("A ring", {"fps": 0}, "fps is 0; expected a number above 0 to 1000"),
        ("A ring", {"fps": float("nan")}, "fps is nan"),
        ("A ring", {"start_s": -1}, "start_s is -1"),
        ("A ring", {"start_s": 1.0}, "start_s is 1, but there is no video"),
        ("A ring", {"schedule": "fast"}, 'schedule is "fast"; this bundle has paper, interval'),
        ("A ring", {"num_inference_steps": 0}, "num_inference_steps is 0"),
        ("A ring", {"guidance_scale": -1.0}, "guidance_scale is -1.0"),
        ("<image1> Go", {"image1": np.zeros((1, 16, 1600, 3), np.uint8)}, "image1 is 1600x16 px"),
    ],
)
def test_bad_requests_end_before_any_graph_runs(
    pipeline: Pipeline, runner: Any, prompt: str, options: dict[str, Any], line: str
) -> None:
    with pytest.raises(RequestError) as error:
        pipeline(prompt, **options)
    assert line in str(error.value)
    assert "\n" not in str(error.value)
    assert runner.calls == []


@pytest.mark.parametrize(
    ("name", "source", "line"),
    [
        (
            "video1",
            np.zeros((5, 48, 64, 4), np.uint8),
            r"video1 is an array uint8 \[5, 48, 64, 4\]; expected",
        ),
        ("video1", np.zeros((5, 48, 64, 3), np.float32), "video1 is an array float32"),
        ("video1", np.zeros((0, 48, 64, 3), np.uint8), r"video1 is an array uint8 \[0, 48, 64, 3\]"),
        ("video1", np.zeros((48, 64), np.uint8), "video1 is an array"),
        ("video1", [1, 2], "video1 is list; give a path"),
        ("video1", None, "video1 is NoneType; give a path"),
        ("image1", np.zeros((5, 48, 64, 3), np.uint8), "image1: an array is a video; give it as video1"),
        ("video1", "no/such/file.mp4", "no/such/file.mp4"),
    ],
)
def test_inputs_that_cannot_be_used(
    pipeline: Pipeline, runner: Any, name: str, source: Any, line: str
) -> None:
    with pytest.raises(MediaError, match=line):
        pipeline(f"<{name}> Go", **{name: source})
    assert runner.calls == []


def test_a_picture_given_as_a_video(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_media(monkeypatch, {"a.png": MediaInfo("image", 64, 64, None, None, 1, False)}, make_clip(1, True))
    with pytest.raises(MediaError, match=r"video1: a\.png is an image; give it as image1 and mention it"):
        pipeline("<video1> Go", video1="a.png")


def test_the_temporal_ratio_is_the_bundles(fake_bundle: Any, runner: Any, blocky_clip: Any) -> None:
    bundle = load_bundle(fake_bundle.root)
    geometry = replace(bundle.spec.geometry, max_frames=5)
    bundle = replace(bundle, spec=replace(bundle.spec, geometry=geometry))
    result = Pipeline(bundle, runner)("<video1> Go", video1=blocky_clip(9))
    assert result.frames.shape[0] == 5
