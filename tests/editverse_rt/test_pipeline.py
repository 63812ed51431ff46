"""The loop, on the runner of conftest.py: which graphs run, in which order, with what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from editverse_rt.bundle.manifest import load_bundle
from editverse_rt.errors import BackendError, RequestCancelled, RequestError
from editverse_rt.pipeline import Pipeline
from editverse_rt.request.layout import Grid, lay_out

Array = NDArray[Any]
PATCH = 16


def test_an_edit_runs_the_graphs_in_order_and_gives_its_source_back(
    pipeline: Pipeline, runner: Any, blocky_clip: Any
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


def test_caches_go_from_call_to_call(pipeline: Pipeline, runner: Any, blocky_clip: Any) -> None:
    source = blocky_clip(9)
    pipeline("<video1> Go", video1=source)
    chunks = [int(inputs["cache_1"][0]) for inputs in runner.inputs_of("vae_encoder_next")]
    assert chunks == [1, 2]
    np.testing.assert_array_equal(runner.inputs_of("vae_encoder_next")[1]["cache_0"][0], source[4])
    assert [int(inputs["cache_1"][0]) for inputs in runner.inputs_of("vae_decoder_next")] == [1, 2]


def test_both_branches_are_laid_out_by_the_rules(pipeline: Pipeline, runner: Any, blocky_clip: Any) -> None:
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
    assert result.laid_out.main == "video1"
    assert result.laid_out.sources == {"video1": (5, 48, 64), "image1": (1, 48, 64)}


def test_clean_rows_stand_in_the_order_of_the_instruction(
    pipeline: Pipeline, runner: Any, blocky_clip: Any
) -> None:
    video1, image1 = blocky_clip(1, seed=1), blocky_clip(1, seed=2)[0]
    pipeline("<image1> Like this <video1>", video1=video1, image1=image1)
    clean = runner.inputs_of("transformer")[0]["clean"]
    np.testing.assert_array_equal(clean[:12, :3], image1[::PATCH, ::PATCH].reshape(-1, 3))
    np.testing.assert_array_equal(clean[12:, :3], video1[0, ::PATCH, ::PATCH].reshape(-1, 3))


def test_the_schedule_is_the_bundles(pipeline: Pipeline, runner: Any) -> None:
    pipeline("A yellow ring")
    assert [float(i["timestep"]) for i in runner.inputs_of("transformer")[::2]] == [0.0, 0.25, 0.5, 0.75]
    assert [float(i["guidance"]) for i in runner.inputs_of("solver_step")] == [5.0] * 4
    runner.calls.clear()
    pipeline("A yellow ring", num_inference_steps=2, guidance_scale=3)
    assert [float(i["timestep"]) for i in runner.inputs_of("transformer")[::2]] == [0.0, 0.5]
    # Another number of steps comes from the bundle's graph, and this is Euler's: x + v / 2.
    assert runner.count("schedule_euler") == 1
    euler = [[1, 0, 0, 0.5], [0, 0, 0, 1], [0, 1, 0, 0]]
    assert [i["matrix"].tolist() for i in runner.inputs_of("solver_step")] == [euler] * 2
    assert [float(i["guidance"]) for i in runner.inputs_of("solver_step")] == [3.0] * 2


def test_a_guidance_of_one_evaluates_once(pipeline: Pipeline, runner: Any, blocky_clip: Any) -> None:
    source = blocky_clip(5)
    result = pipeline("<video1> Go", video1=source, guidance_scale=1.0)
    assert runner.count("transformer") == 4
    np.testing.assert_array_equal(result.frames, source)
    assert all(len(inputs["text"]) for inputs in runner.inputs_of("transformer"))


def test_guidance_within_an_interval_and_earlier_velocities(pipeline: Pipeline, runner: Any) -> None:
    pipeline("A yellow ring", schedule="interval", guidance_scale=2)
    assert [len(i["text"]) > 0 for i in runner.inputs_of("transformer")] == [True, True, False, True]
    steps = runner.inputs_of("solver_step")
    assert [float(i["guidance"]) for i in steps] == [1.0, 2.0, 1.0]
    assert steps[0]["history"].shape == (2, *steps[0]["sample"].shape)
    assert not steps[0]["history"].any()
    np.testing.assert_array_equal(steps[1]["history"][0], steps[0]["velocity_cond"])
    assert not steps[1]["history"][1].any()
    guided = steps[1]["velocity_uncond"] + 2 * (steps[1]["velocity_cond"] - steps[1]["velocity_uncond"])
    np.testing.assert_allclose(steps[2]["history"][0], guided, rtol=1e-6)
    np.testing.assert_array_equal(steps[2]["history"][1], steps[0]["velocity_cond"])
    assert steps[2]["matrix"].tolist() == [[1, -0.5, 0.25, 0.75], [0, 0, 0, 1], [0, 1, 0, 0]]


def test_the_seed_reaches_the_noise(pipeline: Pipeline, runner: Any) -> None:
    pipeline("A yellow ring", seed=2**40 + 7)
    assert int(runner.inputs_of("noise")[0]["seed"]) == 2**40 + 7
    assert runner.inputs_of("noise")[0]["shape"].tolist() == [2 * 3 * 3, 64]


def test_the_callback_sees_every_step(pipeline: Pipeline) -> None:
    seen: list[Any] = []

    def callback(*args: Any) -> None:
        seen.append(args)

    pipeline("A yellow ring", num_inference_steps=2, callback_on_step_end=callback)
    facts = {"num_inference_steps": 2, "window": 0, "num_windows": 1}
    assert seen == [(pipeline, 0, 0.0, facts), (pipeline, 1, 0.5, facts)]


def test_a_callback_that_returns_false_stops(pipeline: Pipeline, runner: Any) -> None:
    with pytest.raises(
        RequestCancelled, match="stopped by its callback after step 2 of 4; nothing was written"
    ):
        pipeline("A yellow ring", callback_on_step_end=lambda p, step, t, facts: step < 1)
    assert runner.count("solver_step") == 2
    assert runner.count("vae_decoder_first") == 0
    assert pipeline("A yellow ring").frames.shape[0] == 5


@pytest.mark.parametrize("graph", ["text_encoder", "transformer", "vae_decoder_next"])
def test_ctrl_c_stops_anywhere(
    pipeline: Pipeline, runner: Any, monkeypatch: pytest.MonkeyPatch, graph: str
) -> None:
    def interrupt(**inputs: Array) -> dict[str, Array]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner, graph, interrupt)
        with pytest.raises(RequestCancelled, match="Ctrl-C; nothing was written"):
            pipeline("A yellow ring")
    assert pipeline("A yellow ring").frames.shape[0] == 5


def test_a_closed_pipeline_says_so(fake_bundle: Any, runner: Any) -> None:
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


def test_opening_checks_its_arguments(fake_bundle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(RequestError, match="num_threads is 0; give at least 1"):
        Pipeline.open(fake_bundle.root, num_threads=0)
    with pytest.raises(BackendError, match='no backend "gpu"; choose auto or one of tensorrt'):
        Pipeline.open(fake_bundle.root, "gpu")
    with pytest.raises(BackendError, match=r'backend "tensorrt" cannot be used: .* is not installed'):
        Pipeline.open(fake_bundle.root, "tensorrt")


def test_what_does_not_change_between_steps_is_held_once(
    pipeline: Pipeline, runner: Any, blocky_clip: Any
) -> None:
    """A backend uploads what `hold` is given once, and the rest in every step."""
    pipeline("<video1> Go", video1=blocky_clip(5), num_inference_steps=3, guidance_scale=2.0)
    held = {id(array) for array in runner.held}
    calls = runner.inputs_of("transformer")
    assert len(calls) == 6
    for branch in (calls[::2], calls[1::2]):
        for name in ("text", "clean", "layout", "positions"):
            assert {id(inputs[name]) for inputs in branch} <= held
            assert len({id(inputs[name]) for inputs in branch}) == 1
    # Two branches of three inputs, and clean rows, noise, history; beside them a time for each step.
    assert len(runner.held) == 2 * 3 + 3 + 3
