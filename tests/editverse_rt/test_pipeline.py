"""The loop, on a runner of a few lines of numpy that checks how it is called.

Its VAE keeps the mean colour of each patch's pixels, and its transformer points from the noise to the clean
rows (or, without any, to grey): an edit must give back its source, blurred to patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from editverse_rt import video
from editverse_rt.bundle import load_bundle
from editverse_rt.errors import BackendError, MediaError, RequestCancelled, RequestError
from editverse_rt.frames import Clip, MediaInfo
from editverse_rt.pipeline import Pipeline
from editverse_rt.sequence import Grid, lay_out
from editverse_rt.spec import BundleSpec

Array = NDArray[Any]
GREY = 100
PATCH = 16


class FakeRunner:
    """Implements the graph contract in numpy and records every call."""

    def __init__(self, spec: BundleSpec) -> None:
        self.spec = spec
        self.calls: list[tuple[str, dict[str, Array]]] = []
        self.depth = 0

    def __enter__(self) -> FakeRunner:
        self.depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.depth -= 1

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert self.depth == 1
        axes: dict[str, int] = {}
        declared = self.spec.graphs[graph].inputs
        assert set(inputs) == {tensor.name for tensor in declared}
        for tensor in declared:
            value = inputs[tensor.name]
            assert value.dtype == tensor.dtype, (graph, tensor.name)
            assert len(value.shape) == len(tensor.shape), (graph, tensor.name)
            for axis, size in zip(tensor.shape, value.shape, strict=True):
                assert size == (axis if isinstance(axis, int) else axes.setdefault(axis, size))
        self.calls.append((graph, dict(inputs)))
        return getattr(self, graph)(**inputs)

    def count(self, graph: str) -> int:
        return sum(name == graph for name, _ in self.calls)

    def inputs_of(self, graph: str) -> list[dict[str, Array]]:
        return [inputs for name, inputs in self.calls if name == graph]

    def text_encoder(self, ids: Array) -> dict[str, Array]:
        return {"text": np.repeat(ids[:, None], 6, axis=1).astype(np.float32)}

    def vae_encoder_first(self, frames: Array) -> dict[str, Array]:
        return self._encode(frames, 1)

    def vae_encoder_next(self, frames: Array, cache_0: Array, cache_1: Array) -> dict[str, Array]:
        return self._encode(frames, int(cache_1[0]) + 1)

    def _encode(self, frames: Array, chunk: int) -> dict[str, Array]:
        _, height, width, _ = frames.shape
        last = frames[-1].reshape(height // PATCH, PATCH, width // PATCH, PATCH, 3).mean((1, 3))
        patches = np.zeros((1, height // PATCH, width // PATCH, 64), np.float32)
        patches[0, ..., :3] = last
        patches[..., 3] = chunk
        return {"patches": patches, **self._caches(frames, chunk)}

    def _caches(self, frames: Array, chunk: int) -> dict[str, Array]:
        return {
            "next_cache_0": frames[-1:].astype(np.float32),
            "next_cache_1": np.array([chunk], np.float32),
        }

    def transformer(
        self, text: Array, clean: Array, noisy: Array, layout: Array, positions: Array, timestep: Array
    ) -> dict[str, Array]:
        assert sorted(set(layout.tolist())) == list(range(len(text) + len(clean) + len(noisy) + 2))
        assert positions.shape == (len(layout), 4)
        target = clean[: len(noisy)] if len(clean) >= len(noisy) else np.full_like(noisy, GREY)
        return {"velocity": ((target - noisy) / (1 - timestep)).astype(np.float32)}

    def solver_step(
        self,
        sample: Array,
        velocity_cond: Array,
        velocity_uncond: Array,
        velocity_prev1: Array,
        velocity_prev2: Array,
        guidance: Array,
        coefficients: Array,
    ) -> dict[str, Array]:
        velocity = velocity_uncond + guidance * (velocity_cond - velocity_uncond)
        moved = sum(
            c * v for c, v in zip(coefficients, (velocity, velocity_prev1, velocity_prev2), strict=True)
        )
        return {"sample_next": (sample + moved).astype(np.float32), "velocity": velocity}

    def noise(self, seed: Array, shape: Array) -> dict[str, Array]:
        rng = np.random.default_rng(int(seed))
        return {"noise": rng.standard_normal(tuple(shape), dtype=np.float32)}

    def vae_decoder_first(self, patches: Array) -> dict[str, Array]:
        return self._decode(patches, 1, 1)

    def vae_decoder_next(self, patches: Array, cache_0: Array, cache_1: Array) -> dict[str, Array]:
        return self._decode(patches, 4, int(cache_1[0]) + 1)

    def _decode(self, patches: Array, num_frames: int, chunk: int) -> dict[str, Array]:
        picture = patches[0, ..., :3].repeat(PATCH, axis=0).repeat(PATCH, axis=1)
        frames = np.repeat(picture[None].round().clip(0, 255).astype(np.uint8), num_frames, axis=0)
        return {"frames": frames, **self._caches(frames, chunk)}


@pytest.fixture
def runner(fake_bundle: Any) -> FakeRunner:
    return FakeRunner(fake_bundle.spec)


@pytest.fixture
def pipeline(fake_bundle: Any, runner: FakeRunner) -> Pipeline:
    return Pipeline(load_bundle(fake_bundle.root), runner)


def blocky_clip(num_frames: int, height: int = 48, width: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    """Random colours, constant over each patch and over the frames of each latent frame."""
    rng = np.random.default_rng(seed)
    chunks = 1 + -(-(num_frames - 1) // 4)
    colors = rng.integers(0, 256, (chunks, height // PATCH, width // PATCH, 3), dtype=np.uint8)
    chunk_of_frame = [(i + 3) // 4 for i in range(num_frames)]
    return colors.repeat(PATCH, axis=1).repeat(PATCH, axis=2)[chunk_of_frame]


def test_an_edit_runs_the_graphs_in_order_and_gives_its_source_back(
    pipeline: Pipeline, runner: FakeRunner
) -> None:
    source = blocky_clip(9)
    result = pipeline("<video1> Turn the circle green", video1=source)
    np.testing.assert_array_equal(result.frames, source)
    assert [name for name, _ in runner.calls] == [
        "text_encoder",
        "vae_encoder_first",
        *["vae_encoder_next"] * 2,
        "noise",
        *["transformer", "transformer", "solver_step"] * 4,
        "vae_decoder_first",
        *["vae_decoder_next"] * 2,
    ]
    assert result.fps == 8.0
    assert result.notices == ()
    assert set(result.timings) == {
        *("total", "read", "text_encoder", "vae_encoder", "noise", "transformer", "solver_step"),
        "vae_decoder",
    }
    assert result.timings["total"] >= result.timings["transformer"] > 0
    np.testing.assert_array_equal(result.sources[0], source)


def test_caches_go_from_call_to_call(pipeline: Pipeline, runner: FakeRunner) -> None:
    source = blocky_clip(9)
    pipeline("<video1> Go", video1=source)
    chunks = [int(inputs["cache_1"][0]) for inputs in runner.inputs_of("vae_encoder_next")]
    assert chunks == [1, 2]
    np.testing.assert_array_equal(runner.inputs_of("vae_encoder_next")[1]["cache_0"][0], source[4])
    assert [int(inputs["cache_1"][0]) for inputs in runner.inputs_of("vae_decoder_next")] == [1, 2]


def test_both_branches_are_laid_out_by_the_rules(pipeline: Pipeline, runner: FakeRunner) -> None:
    result = pipeline(
        "<video1> Insert a paper boat <image1> in the water", video1=blocky_clip(5), image1=blocky_clip(1)[0]
    )
    counts = [
        len(pipeline._tokenizer.encode_segments([s])[0]) for s in ("Insert a paper boat", "in the water")
    ]
    segments: list[int | Grid] = [Grid(2, 3, 4), counts[0], Grid(1, 3, 4), counts[1], 1]
    target = Grid(2, 3, 4)
    cond, uncond = runner.inputs_of("transformer")[:2]
    for inputs, with_text in ((cond, True), (uncond, False)):
        expected = lay_out(segments, target, with_text=with_text)
        np.testing.assert_array_equal(inputs["layout"], expected.layout)
        np.testing.assert_array_equal(inputs["positions"], expected.positions)
        assert len(inputs["clean"]) == 36
    assert len(cond["text"]) == sum(counts) + 1
    assert uncond["text"].shape == (0, 6)
    assert runner.inputs_of("text_encoder")[0]["ids"][-1] == 1
    assert result.plan.main == "video1"
    assert result.plan.sources == {"video1": (5, 48, 64), "image1": (1, 48, 64)}


def test_clean_rows_stand_in_the_order_of_the_instruction(pipeline: Pipeline, runner: FakeRunner) -> None:
    video1, image1 = blocky_clip(1, seed=1), blocky_clip(1, seed=2)[0]
    pipeline("<image1> Like this <video1>", video1=video1, image1=image1)
    clean = runner.inputs_of("transformer")[0]["clean"]
    np.testing.assert_array_equal(clean[:12, :3], image1[::PATCH, ::PATCH].reshape(-1, 3))
    np.testing.assert_array_equal(clean[12:, :3], video1[0, ::PATCH, ::PATCH].reshape(-1, 3))


def test_the_schedule_is_the_bundles(pipeline: Pipeline, runner: FakeRunner) -> None:
    pipeline("A yellow ring")
    assert [float(i["timestep"]) for i in runner.inputs_of("transformer")[::2]] == [0.0, 0.25, 0.5, 0.75]
    assert [float(i["guidance"]) for i in runner.inputs_of("solver_step")] == [5.0] * 4
    runner.calls.clear()
    pipeline("A yellow ring", num_inference_steps=2, guidance_scale=3)
    assert [float(i["timestep"]) for i in runner.inputs_of("transformer")[::2]] == [0.0, 0.5]
    assert [i["coefficients"].tolist() for i in runner.inputs_of("solver_step")] == [[0.5, 0, 0]] * 2
    assert [float(i["guidance"]) for i in runner.inputs_of("solver_step")] == [3.0] * 2


def test_a_guidance_of_one_evaluates_once(pipeline: Pipeline, runner: FakeRunner) -> None:
    source = blocky_clip(5)
    result = pipeline("<video1> Go", video1=source, guidance_scale=1.0)
    assert runner.count("transformer") == 4
    np.testing.assert_array_equal(result.frames, source)
    assert all(len(inputs["text"]) for inputs in runner.inputs_of("transformer"))


def test_guidance_within_an_interval_and_earlier_velocities(pipeline: Pipeline, runner: FakeRunner) -> None:
    pipeline("A yellow ring", schedule="interval", guidance_scale=2)
    assert [len(i["text"]) > 0 for i in runner.inputs_of("transformer")] == [True, True, False, True]
    steps = runner.inputs_of("solver_step")
    assert [float(i["guidance"]) for i in steps] == [1.0, 2.0, 1.0]
    assert not steps[0]["velocity_prev1"].any()
    assert not steps[0]["velocity_prev2"].any()
    np.testing.assert_array_equal(steps[1]["velocity_prev1"], steps[0]["velocity_cond"])
    assert not steps[1]["velocity_prev2"].any()
    np.testing.assert_array_equal(steps[2]["velocity_prev2"], steps[0]["velocity_cond"])
    np.testing.assert_array_equal(steps[2]["velocity_prev1"], runner.solver_step(**steps[1])["velocity"])
    assert steps[2]["coefficients"].tolist() == [0.75, -0.5, 0.25]


def test_the_seed_reaches_the_noise(pipeline: Pipeline, runner: FakeRunner) -> None:
    pipeline("A yellow ring", seed=2**40 + 7)
    assert int(runner.inputs_of("noise")[0]["seed"]) == 2**40 + 7
    assert runner.inputs_of("noise")[0]["shape"].tolist() == [2 * 3 * 3, 64]


def test_generation_takes_the_bundles_defaults(pipeline: Pipeline) -> None:
    result = pipeline("A yellow ring moves")
    assert result.frames.shape == (5, 48, 48, 3)
    assert (result.frames == GREY).all()
    assert result.fps == 8.0
    assert result.sources == ()
    assert result.plan.main is None


def test_generation_as_asked_for(pipeline: Pipeline) -> None:
    result = pipeline("A yellow ring", size=(32, 64), num_frames=1, fps=12.5)
    assert result.frames.shape == (1, 32, 64, 3)
    assert result.fps == 12.5
    assert result.notices == ()


def test_images_alone_give_an_image(pipeline: Pipeline) -> None:
    image1, image2 = blocky_clip(1)[0], blocky_clip(1, 64, 48, seed=3)
    result = pipeline("<image2> into <image1>", image1=image1, image2=image2)
    assert result.frames.shape == (1, 48, 64, 3)
    assert result.plan.main == "image1"
    assert result.plan.sources["image2"] == (1, 64, 48)


def test_an_image_can_become_a_video(pipeline: Pipeline) -> None:
    result = pipeline("<image1> It moves", image1=blocky_clip(1)[0], num_frames=8)
    assert result.frames.shape == (5, 48, 64, 3)
    assert result.notices == ("num_frames 8 became 5: clips have 1 + 4 k frames, up to 9",)


def test_a_video_can_become_an_image(pipeline: Pipeline) -> None:
    source = blocky_clip(9)
    result = pipeline("<video1> Go", video1=source, num_frames=1)
    np.testing.assert_array_equal(result.frames, source[:1])
    assert result.notices == ()


def test_a_long_source_is_cut_and_says_so(pipeline: Pipeline) -> None:
    result = pipeline("<video1> Go", video1=blocky_clip(30), fps=4)
    assert result.frames.shape[0] == 9
    assert result.fps == 4.0
    assert result.notices == (
        "video1: took frames 0-8 (2.25 s) of 30 at 4 fps; clips have 1 + 4 k frames, up to 9; "
        "choose otherwise with start_s, num_frames, fps (--start, --frames, --fps)",
    )


def test_an_odd_length_is_rounded_down_and_says_so(pipeline: Pipeline) -> None:
    source = blocky_clip(8)
    result = pipeline("<video1> Go", video1=source)
    np.testing.assert_array_equal(result.frames, source[:5])
    assert "took frames 0-4 (0.62 s) of 8 at 8 fps" in result.notices[0]
    assert pipeline("<video1> Go", video1=source, num_frames=5).notices == ()
    assert "took frames 0-4" in pipeline("<video1> Go", video1=source, num_frames=7).notices[0]


def test_a_start_is_a_time_in_the_video(pipeline: Pipeline) -> None:
    source = blocky_clip(13)
    result = pipeline("<video1> Go", video1=source, start_s=1.0)
    np.testing.assert_array_equal(result.sources[0], source[8:13])
    assert result.notices == ()


def test_two_videos_keep_in_step(pipeline: Pipeline, runner: FakeRunner) -> None:
    mask = blocky_clip(9, 96, 128, seed=5)[:, ::2, ::2]
    result = pipeline("<video2> masks <video1>", video1=blocky_clip(6), video2=mask)
    assert result.frames.shape[0] == 5
    assert result.plan.sources == {"video1": (5, 48, 64), "video2": (5, 48, 64)}
    assert [notice.split(":")[0] for notice in result.notices] == ["video1"]


def test_a_second_video_that_is_shorter_keeps_its_own_length(pipeline: Pipeline) -> None:
    result = pipeline("<video1> like <video2>", video1=blocky_clip(9), video2=blocky_clip(7, seed=1))
    assert result.frames.shape[0] == 9
    assert result.plan.sources["video2"] == (5, 48, 64)
    assert result.notices[0].startswith("video2: took frames 0-4")


def fake_media(
    monkeypatch: pytest.MonkeyPatch, infos: dict[str, MediaInfo], clip: Clip
) -> list[dict[str, Any]]:
    """Stand-ins for files: what they are, and the one clip that reading gives."""
    reads: list[dict[str, Any]] = []

    def read_clip(source: str, **options: Any) -> Clip:
        reads.append({"source": str(source), **options})
        return clip

    monkeypatch.setattr(video, "probe", lambda source: infos[str(source)])
    monkeypatch.setattr(video, "read_clip", read_clip)
    return reads


def make_clip(num_frames: int, covers_source: bool, num_damaged: int = 0) -> Clip:
    frames = blocky_clip(num_frames)
    return Clip(frames, 25.0, tuple(i / 25 for i in range(num_frames)), 9, covers_source, num_damaged)


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

    def write_clip(path: str, frames: Array, fps: float, *, audio_from: Path | None) -> video.WriteReport:
        written.append((path, frames.shape, fps, audio_from))
        return video.WriteReport(Path(path), len(frames), ("a line",))

    monkeypatch.setattr(video, "write_clip", write_clip)
    result = pipeline("<video1> Go", video1="in.mp4")
    assert result.save("out.mp4") == ("a line",)
    assert result.save("out.mp4", audio=False) == ("a line",)
    assert [entry[3] for entry in written] == [Path("in.mp4") if carried else None, None]
    assert written[0][:3] == ("out.mp4", result.frames.shape, 25.0)


def test_files_are_read_at_the_planned_size_and_rate(
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
    assert pipeline("<video1> Go", video1="in.mp4").notices == ("video1: 3 damaged packets were skipped",)


def test_the_callback_sees_every_step(pipeline: Pipeline) -> None:
    seen: list[Any] = []

    def callback(*args: Any) -> None:
        seen.append(args)

    pipeline("A yellow ring", num_inference_steps=2, callback_on_step_end=callback)
    facts = {"num_inference_steps": 2}
    assert seen == [(pipeline, 0, 0.0, facts), (pipeline, 1, 0.5, facts)]


def test_a_callback_that_returns_false_stops(pipeline: Pipeline, runner: FakeRunner) -> None:
    with pytest.raises(
        RequestCancelled, match="stopped by its callback after step 2 of 4; nothing was written"
    ):
        pipeline("A yellow ring", callback_on_step_end=lambda p, step, t, facts: step < 1)
    assert runner.count("solver_step") == 2
    assert runner.count("vae_decoder_first") == 0
    assert pipeline("A yellow ring").frames.shape[0] == 5


@pytest.mark.parametrize("graph", ["text_encoder", "transformer", "vae_decoder_next"])
def test_ctrl_c_stops_anywhere(
    pipeline: Pipeline, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch, graph: str
) -> None:
    def interrupt(**inputs: Array) -> dict[str, Array]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner, graph, interrupt)
        with pytest.raises(RequestCancelled, match="Ctrl-C; nothing was written"):
            pipeline("A yellow ring")
    assert pipeline("A yellow ring").frames.shape[0] == 5


@pytest.mark.parametrize(
    ("prompt", "options", "line"),
    [
        ("", {}, "instruction is empty"),
        ("<video1> Go", {}, "no video1 is given"),
        ("Go", {"video1": blocky_clip(1)}, "does not mention <video1>"),
        ("Go", {"steps": 5}, 'an input is called "steps"'),
        ("Turn the circle green " * 9, {}, "takes up to 24; shorten it"),
        ("A ring", {"num_frames": 10}, "num_frames is 10; this bundle takes 1 to 9"),
        ("A ring", {"size": (48, 50)}, "size is 50x48"),
        ("A ring", {"seed": -1}, "seed is -1; give a whole number"),
        ("A ring", {"seed": 0.5}, "seed is 0.5; give a whole number"),
        ("A ring", {"seed": 2**63}, "seed is 9223372036854775808"),
        ("A ring", {"fps": 0}, "fps is 0; give a number above 0"),
        ("A ring", {"fps": float("nan")}, "fps is nan"),
        ("A ring", {"start_s": -1}, "start_s is -1"),
        ("A ring", {"start_s": 1.0}, "start_s is 1, but there is no video"),
        ("A ring", {"schedule": "fast"}, 'schedule is "fast"; this bundle has paper, interval'),
        ("A ring", {"schedule": "interval", "num_inference_steps": 9}, "is a multistep table of 3 steps"),
        ("A ring", {"num_inference_steps": 0}, "num_inference_steps is 0"),
        ("A ring", {"guidance_scale": -1.0}, "guidance_scale is -1.0"),
        ("<image1> Go", {"image1": blocky_clip(1, 16, 1600)}, "image1 is 1600x16 px"),
    ],
)
def test_bad_requests_end_before_any_graph_runs(
    pipeline: Pipeline, runner: FakeRunner, prompt: str, options: dict[str, Any], line: str
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
        ("image1", blocky_clip(5), "image1: an array is a video; give it as video1"),
        ("video1", "no/such/file.mp4", "no/such/file.mp4"),
    ],
)
def test_inputs_that_cannot_be_used(
    pipeline: Pipeline, runner: FakeRunner, name: str, source: Any, line: str
) -> None:
    with pytest.raises(MediaError, match=line):
        pipeline(f"<{name}> Go", **{name: source})
    assert runner.calls == []


def test_a_picture_given_as_a_video(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_media(monkeypatch, {"a.png": MediaInfo("image", 64, 64, None, None, 1, False)}, make_clip(1, True))
    with pytest.raises(MediaError, match=r"video1: a\.png is an image; give it as image1 and mention it"):
        pipeline("<video1> Go", video1="a.png")


def test_a_closed_pipeline_says_so(fake_bundle: Any, runner: FakeRunner) -> None:
    with Pipeline(load_bundle(fake_bundle.root), runner) as pipeline:
        assert runner.depth == 1
    pipeline.close()
    assert runner.depth == 0
    with pytest.raises(BackendError, match="the pipeline is closed"):
        pipeline("A yellow ring")


def test_info_says_what_is_open_and_why(fake_bundle: Any) -> None:
    with Pipeline.open(fake_bundle.root) as pipeline:
        info = pipeline.info()
    assert info["bundle"] == "fake"
    assert info["path"] == str(fake_bundle.root)
    assert info["backend"] in ("ort-cpu", "ort-cuda")
    assert info["backend_version"]
    assert list(info["passed_over"])[:2] == ["tensorrt", "tensorrt-rtx"]
    assert all(reason for reason in info["passed_over"].values())


def test_opening_checks_its_arguments(fake_bundle: Any) -> None:
    with pytest.raises(RequestError, match="num_threads is 0; give at least 1"):
        Pipeline.open(fake_bundle.root, num_threads=0)
    with pytest.raises(BackendError, match='no backend "gpu"; choose auto or one of tensorrt'):
        Pipeline.open(fake_bundle.root, "gpu")
    with pytest.raises(BackendError, match=r'backend "tensorrt" cannot be used: .*install'):
        Pipeline.open(fake_bundle.root, "tensorrt")


def test_the_temporal_ratio_is_the_bundles(fake_bundle: Any, runner: FakeRunner) -> None:
    bundle = load_bundle(fake_bundle.root)
    geometry = replace(bundle.spec.geometry, max_frames=5)
    bundle = replace(bundle, spec=replace(bundle.spec, geometry=geometry))
    result = Pipeline(bundle, runner)("<video1> Go", video1=blocky_clip(9))
    assert result.frames.shape[0] == 5
