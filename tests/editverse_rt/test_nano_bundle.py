"""The bundle that ships, end to end: real graphs, a trained model, files in and out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from editverse_rt import Pipeline, RequestCancelled, RequestQueue, media, stages
from editverse_rt.backends.ort_cuda import BoundOrtRunner

Frames = NDArray[np.uint8]
FEW_STEPS = 3
LEAST_SUCCESS_RATE = 0.8
"""Of the held-out edits (docs/nano.md). No nano that does less may take this one's place."""


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    with Pipeline.open("nano", "ort-cpu") as opened:
        yield opened


def draw_clip(num_frames: int, height: int = 64, width: int = 64) -> Frames:
    """A red disc that moves right over a blue-green gradient."""
    rows, columns = np.mgrid[0:height, 0:width]
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[..., 1] = 60 + 100 * rows // height
        frame[..., 2] = 80 + 100 * columns // width
        center = width * (0.35 + 0.02 * i)
        disc = (rows - height / 2) ** 2 + (columns - center) ** 2 < (0.2 * min(height, width)) ** 2
        frame[disc] = (220, 30, 36)
    return frames


def is_disc(frames: Frames) -> NDArray[np.bool_]:
    """Where `draw_clip` has its disc, [T, H, W]."""
    return np.asarray(frames[..., 0] > 200)


def mean_difference(found: Frames, expected: Frames, where: NDArray[np.bool_]) -> float:
    """In grey levels."""
    return float(np.abs(found[where].astype(int) - expected[where]).mean())


def color_spread(frames: Frames) -> float:
    """Mean distance between a pixel's largest and smallest channel: 0 for grey."""
    return float((frames.max(-1).astype(int) - frames.min(-1)).mean())


def test_the_bundle_says_how_good_it_is(pipeline: Pipeline) -> None:
    spec = pipeline.bundle.spec
    assert spec.name == "nano"
    assert {"success_rate", "edits", "by_task"} <= set(spec.quality)
    assert spec.quality["edits"] >= 240
    assert spec.quality["success_rate"] >= LEAST_SUCCESS_RATE
    default = spec.schedules[spec.default_schedule]
    assert default.num_inference_steps == 50
    assert default.guidance_scale == 2.0
    assert default.table.guidance == (2.0,) * 50


def test_a_video_is_made_grayscale(pipeline: Pipeline) -> None:
    source = draw_clip(9)
    result = pipeline("<video1> Make it grayscale", video1=source, num_inference_steps=12)
    assert result.frames.shape == source.shape
    assert result.frames.dtype == np.uint8
    assert color_spread(source) > 60
    assert color_spread(result.frames) < 20
    # The same picture, not just any grey one.
    luma = source @ np.array([0.299, 0.587, 0.114])
    assert np.corrcoef(luma.ravel(), result.frames.mean(-1).ravel())[0, 1] > 0.8


def test_an_image_is_made_grayscale(pipeline: Pipeline) -> None:
    source = draw_clip(1)[0]
    result = pipeline("Make it grayscale <image1>", image1=source, num_inference_steps=12)
    assert result.frames.shape == (1, *source.shape)
    assert color_spread(result.frames) < 20


@pytest.mark.parametrize("num_frames", [1, 9])
def test_the_circle_turns_green_and_the_rest_stays(pipeline: Pipeline, num_frames: int) -> None:
    source = draw_clip(num_frames)
    name = "video1" if num_frames > 1 else "image1"
    clip = source if num_frames > 1 else source[0]
    result = pipeline(f"<{name}> Turn the circle green", num_inference_steps=12, **{name: clip})
    red, green, blue = result.frames[is_disc(source)].mean(0)
    assert green > 100 + max(red, blue) / 2  # it was (220, 30, 36)
    assert mean_difference(result.frames, source, ~is_disc(source)) < 16


@pytest.mark.parametrize("num_frames", [1, 9])
def test_the_circle_is_removed_and_the_rest_stays(pipeline: Pipeline, num_frames: int) -> None:
    source = draw_clip(num_frames)
    name = "video1" if num_frames > 1 else "image1"
    clip = source if num_frames > 1 else source[0]
    result = pipeline(f"<{name}> Remove the circle", num_inference_steps=12, **{name: clip})
    assert result.frames[is_disc(source)][:, 0].mean() < 100  # it was 220, the background has no red
    assert mean_difference(result.frames, source, ~is_disc(source)) < 16


def test_the_vae_carries_what_it_is_given(pipeline: Pipeline) -> None:
    """Encode and decode without the transformer, in chunks: the caches have to be right."""
    source = draw_clip(9)
    laid_out = pipeline("<video1> Go", video1=source, num_inference_steps=1).laid_out
    patches = stages.encode_clip(pipeline.run_graph, pipeline.bundle.spec.geometry, source)
    decoded = stages.decode_patches(pipeline.run_graph, laid_out.target, patches)
    error = ((decoded.astype(float) - source) ** 2).mean()
    assert 10 * np.log10(255**2 / error) > 22


def test_the_same_seed_gives_the_same_bytes_on_any_thread_count() -> None:
    source = draw_clip(5)
    frames = []
    for num_threads in (1, 1, 2, 3):
        with Pipeline.open("nano", "ort-cpu", num_threads=num_threads) as opened:
            prompt = "<video1> Turn the circle green"
            result = opened(prompt, video1=source, num_inference_steps=2, seed=7)
            frames.append(result.frames)
    for other in frames[1:]:
        np.testing.assert_array_equal(other, frames[0])


def test_requests_at_once_give_the_bytes_of_each_alone() -> None:
    """Unequal lengths, on sessions that all of them share."""
    requests = [
        {"video1": draw_clip(frames), "num_inference_steps": steps, "seed": seed}
        for seed, (frames, steps) in enumerate([(9, 2), (1, 3), (5, 1), (1, 1), (9, 1), (5, 2)])
    ]
    prompt = "<video1> Turn the circle green"
    with Pipeline.open("nano", "ort-cpu", num_threads=1) as opened:
        alone = [opened(prompt, **options).frames for options in requests]
    with (
        Pipeline.open("nano", "ort-cpu", num_threads=1) as opened,
        RequestQueue(opened, num_workers=3, memory_budget_bytes=10**9) as queue,
    ):
        handles = [queue.submit(prompt, **options) for options in requests]
        for handle, expected in zip(handles, alone, strict=True):
            np.testing.assert_array_equal(handle.result(300).frames, expected)


def test_io_binding_changes_no_byte_and_reads_nothing_back_while_it_solves() -> None:
    """The runner of ort-cuda with the CPU for its device: the same edit, velocities never read back."""

    class Recorder(BoundOrtRunner):
        kept: ClassVar[list[tuple[str, Any]]] = []

        def run(self, graph: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
            outputs = super().run(graph, inputs)
            kept = ("velocity", "sample_next", "history_next")
            self.kept += [(name, value) for name, value in outputs.items() if name in kept]
            return outputs

    source = draw_clip(5)
    request: dict[str, Any] = {"video1": source, "num_inference_steps": FEW_STEPS}
    with Pipeline.open("nano", "ort-cpu", num_threads=1) as plain:
        expected = plain("<video1> Make it night", **request)
        bundle = plain.bundle
    with Pipeline(bundle, Recorder(bundle, 1, "CPUExecutionProvider")) as bound:
        found = bound("<video1> Make it night", **request)
    assert found.frames.tobytes() == expected.frames.tobytes()
    # Two branches of the transformer and one step of the solver, of which only the last sample is read.
    assert [name for name, _ in Recorder.kept] == (
        ["velocity", "velocity", "sample_next", "history_next"] * FEW_STEPS
    )
    read = [(index, name) for index, (name, value) in enumerate(Recorder.kept) if value._host is not None]
    assert set(read) <= {(len(Recorder.kept) - 2, "sample_next")}


def test_another_seed_gives_another_picture(pipeline: Pipeline) -> None:
    first, second = (
        pipeline("A red circle", num_inference_steps=FEW_STEPS, num_frames=1, seed=seed).frames
        for seed in (1, 2)
    )
    assert (first != second).any()


def test_two_videos_and_an_image_in_any_order(pipeline: Pipeline) -> None:
    mask = np.zeros((5, 64, 64, 3), np.uint8)
    mask[:, 16:48, 16:48] = 255
    result = pipeline(
        "<image1> Put this into <video2> where <video1> is white",
        video1=mask,
        video2=draw_clip(5),
        image1=draw_clip(1, 64, 80)[0],
        num_inference_steps=FEW_STEPS,
    )
    assert result.frames.shape == (5, 64, 64, 3)
    assert [source.shape for source in result.sources] == [(5, 64, 64, 3), (5, 64, 64, 3), (1, 64, 80, 3)]


@pytest.mark.parametrize(("num_frames", "size"), [(1, (64, 64)), (5, (64, 80)), (9, (80, 64))])
def test_text_alone_generates(pipeline: Pipeline, num_frames: int, size: tuple[int, int]) -> None:
    result = pipeline(
        "A red circle moving right over a blue background",
        num_frames=num_frames,
        size=size,
        num_inference_steps=FEW_STEPS,
    )
    assert result.frames.shape == (num_frames, *size, 3)


def test_no_guidance_skips_the_unconditional_branch_and_still_edits(pipeline: Pipeline) -> None:
    result = pipeline(
        "<video1> Make it grayscale", video1=draw_clip(1), guidance_scale=1, num_inference_steps=8
    )
    assert color_spread(result.frames) < color_spread(draw_clip(1))


def test_stopping_leaves_the_pipeline_usable(pipeline: Pipeline) -> None:
    with pytest.raises(RequestCancelled):
        pipeline("A red circle", num_frames=1, callback_on_step_end=lambda *args: False)
    assert len(pipeline("A red circle", num_frames=1, num_inference_steps=1).frames) == 1


def test_from_file_to_file(pipeline: Pipeline, tmp_path: Path) -> None:
    media.write_clip(tmp_path / "in.mp4", draw_clip(30, 120, 160), 25.0)
    result = pipeline(
        "<video1> Make it grayscale", video1=tmp_path / "in.mp4", num_frames=5, num_inference_steps=FEW_STEPS
    )
    result.save(tmp_path / "out.mp4")
    info = media.probe(tmp_path / "out.mp4")
    assert (info.num_frames, info.fps) == (5, 25.0)
    assert (info.height_px, info.width_px) == result.frames.shape[1:3]
    assert result.timings["transformer"] > 0


def test_released_graphs_are_loaded_again_and_give_the_same_bytes() -> None:
    with Pipeline.open("nano", "ort-cpu", num_threads=1) as kept:
        expected = kept("A red circle.", size=(64, 64), num_frames=5, num_inference_steps=2).frames
        assert len(kept._runner._sessions) >= 5  # type: ignore[union-attr]
    with Pipeline.open("nano", "ort-cpu", num_threads=1, release_graphs=True) as pipeline:
        seen: list[set[str]] = []

        def look(pipeline: Pipeline, *_: object) -> None:
            seen.append(set(pipeline._runner._sessions))  # type: ignore[union-attr]

        for _ in range(2):
            found = pipeline(
                "A red circle.", size=(64, 64), num_frames=5, num_inference_steps=2, callback_on_step_end=look
            )
            np.testing.assert_array_equal(found.frames, expected)
            assert not [g for g in pipeline._runner._sessions if not g.startswith("schedule_")]  # type: ignore[union-attr]
        # While the transformer runs, nothing of what came before is in memory.
        assert seen[0] - {"schedule_euler", "schedule_ab2", "schedule_ab3"} == {"transformer", "solver_step"}
