"""The C library beside the Python host, on the CPU with the same ONNX Runtime: the same bytes out.

Run with pytest after `make native`; the environment variable EDITVERSE_NATIVE_BUILD names another build.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cpp.tests import library as native
from editverse_rt import Pipeline
from editverse_rt.errors import EditVerseError, RequestCancelled, RequestError
from editverse_rt.request.prompt import TextSegment

STEPS = 2


def clip(num_frames: int, height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A disc that moves over a gradient, with some noise: frames uint8 [T, H, W, 3]."""
    rng = np.random.default_rng(seed)
    t, y, x = np.ogrid[:num_frames, :height, :width]
    disc = (y - height / 2) ** 2 + (x - width * (0.3 + 0.02 * t)) ** 2 < (height / 4) ** 2
    frames = np.stack([np.where(disc, 220, 2 * x + 0 * t), np.where(disc, 30, 3 * y), 80 + 0 * disc], axis=-1)
    return np.asarray(np.clip(frames + rng.normal(0, 4, frames.shape), 0, 255), dtype=np.uint8)


def count_tokens(pipeline: Pipeline, text: str) -> int:
    """Tokens of one text segment, the end included, however long it is."""
    return len(pipeline._tokenizer._processor.encode(text)) + 1


def multistep_schedule(pipeline: Pipeline) -> str:
    """The name of a schedule whose solver uses its history, else of the default one."""
    spec = pipeline.bundle.spec
    names = [
        name
        for name, schedule in spec.schedules.items()
        if any(any(matrix[0][1:-1]) for matrix in schedule.table.matrices)
    ]
    return names[0] if names else spec.default_schedule


def requests(pipeline: Pipeline) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> (prompt, settings); sizes come from the bundle, so that any bundle can be tried."""
    geometry, tokenizer = pipeline.bundle.spec.geometry, pipeline.bundle.spec.tokenizer
    height, width = geometry.default_height_px, geometry.default_width_px
    multiple = geometry.size_multiple
    wide = next(
        (h, w)
        for h in range(multiple, geometry.max_side_px + 1, multiple)
        for w in range(h + multiple, geometry.max_side_px + 1, multiple)
        if geometry.min_area_px <= h * w <= geometry.max_area_px
    )
    most = geometry.max_frames
    few = 1 + geometry.temporal_ratio
    video = clip(most, height, width)
    mask = np.where(clip(most, height, width, 3) > 200, 255, 0).astype(np.uint8)
    words = [
        "slowly",
        "and",
        "gently",
        "turn",
        "the",
        "big",
        "red",
        "circle",
        "in",
        "the",
        "middle",
        "of",
        "the",
        "picture",
        "a",
        "little",
        "greener,",
        "please",
    ]
    long_text = max(
        (" ".join((words * 50)[:n]) for n in range(1, 50 * len(words))),
        key=lambda text: (count_tokens(pipeline, text) <= tokenizer.max_tokens, len(text)),
    )
    wide_buffer = np.zeros((few, wide[0] + 3, wide[1] + 5, 3), np.uint8)
    strided = wide_buffer[:, 1 : 1 + wide[0], 2 : 2 + wide[1]]
    strided[:] = clip(few, *wide)
    return {
        "image": ("<image1> Make it grayscale", {"image1": video[0]}),
        "video": ("<video1> Make it night", {"video1": video}),
        "two inputs": (
            "<video1> Insert the boat <image1> in the water",
            {"video1": video, "image1": video[3]},
        ),
        "text only": ("A red circle moves over a blue gradient", {"seed": 3}),
        "propagation": ("<image1> is how <video1> begins", {"video1": video[:few], "image1": video[0] // 2}),
        "mask": (
            "<video1> Where <video2> is white, make it snow",
            {"video1": video[:few], "video2": mask[:few]},
        ),
        "odd size": ("A yellow star", {"size": wide, "num_frames": few, "seed": 2**63 - 1}),
        "long text": (f"<video1> {long_text}", {"video1": video[:few]}),
        "cut and strided": ("<video1> Sharpen", {"video1": strided, "num_frames": few - 1, "start_s": 0.2}),
        "guidance, rate and schedule": (
            "<video1> Blur",
            {
                "video1": video[:few],
                "fps": 24.0,
                "guidance_scale": 2.5,
                "schedule": pipeline.bundle.spec.default_schedule,
                "num_inference_steps": 3,
            },
        ),
        # A number of steps that no table has: the schedule's graph makes one, of a solver with a history.
        "multistep, other steps": (
            "A green square",
            {"num_frames": 1, "schedule": multistep_schedule(pipeline), "num_inference_steps": 7},
        ),
        "multistep, other steps and guidance": (
            "<image1> Make it grayscale",
            {
                "image1": video[1],
                "schedule": multistep_schedule(pipeline),
                "num_inference_steps": 5,
                "guidance_scale": 3.5,
            },
        ),
    }


NAMES = [
    "image",
    "video",
    "two inputs",
    "text only",
    "propagation",
    "mask",
    "odd size",
    "long text",
    "cut and strided",
    "guidance, rate and schedule",
    "multistep, other steps",
    "multistep, other steps and guidance",
]


def test_every_request_is_named(host: Pipeline) -> None:
    assert list(requests(host)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bytes(name: str, host: Pipeline, twin: Any) -> None:
    prompt, settings = requests(host)[name]
    settings = {"num_inference_steps": STEPS, **settings}
    expected = host(prompt, **settings)
    info, sizes = twin.describe(prompt, **settings)
    frames, fps, notices = twin.run(prompt, **settings)
    assert frames.shape == expected.frames.shape
    assert np.array_equal(frames, expected.frames)  # every byte: the same graphs, the same library
    assert fps == expected.fps
    assert notices == list(expected.notices)

    laid_out = expected.laid_out
    assert (info.result.num_frames, info.result.height_px, info.result.width_px) == frames.shape[:3]
    assert info.fps == expected.fps
    assert info.num_inference_steps == laid_out.schedule.num_inference_steps
    assert info.sequence_length == len(laid_out.cond.layout.layout)
    words = [segment.text for segment in laid_out.segments if isinstance(segment, TextSegment)]
    assert info.num_tokens == sum(map(len, host._tokenizer.encode_segments(words)))
    named = [n for n in settings if n.startswith(("video", "image"))]
    assert {
        n: (s.num_frames, s.height_px, s.width_px) for n, s in zip(named, sizes, strict=True)
    } == laid_out.sources


def test_the_same_bytes_on_two_threads(host: Pipeline) -> None:
    prompt, settings = requests(host)["propagation"]
    settings = {"num_inference_steps": STEPS, **settings}
    with native.NativePipeline(host.bundle.root, num_threads=2) as two:
        assert np.array_equal(two.run(prompt, **settings)[0], host(prompt, **settings).frames)


@pytest.mark.parametrize(
    ("prompt", "settings"),
    [
        ("", {}),
        ("<video1> x", {}),
        ("x", {"negative_prompt": "blurred"}),
        ("x", {"strength": 0.5}),
        ("x", {"strength": 1.5}),
        ("x", {"num_inference_steps": 0}),
        ("x", {"num_inference_steps": 10_001}),
        ("x", {"guidance_scale": -3.0}),
        ("x", {"guidance_scale": float("nan")}),
        ("x", {"seed": -1}),
        ("x", {"fps": 0.0}),
        ("x", {"start_s": 2.0}),
        ("x", {"schedule": "none"}),
        ("x", {"num_frames": 10**6, "length": "cut"}),
        ("x", {"num_frames": 10**8}),
        ("x", {"length": "half"}),
        ("x", {"length": "it's whole"}),
        ("x", {"length": "w" * 70}),
        ("x", {"size": (7, 9)}),
        ("x", {"size": (0, 0)}),
        ("word " * 2000, {}),
        ("<image1> x", {"image1": np.zeros((2, 64, 64, 3), np.uint8)}),
        ("<video1> x", {"video1": np.zeros((2, 10, 1000, 3), np.uint8)}),
        ("<video1> x", {"video1": np.zeros((2, 64, 64, 3), np.uint8), "start_s": 99.0}),
    ],
)
def test_the_same_errors(prompt: str, settings: dict[str, Any], host: Pipeline, twin: Any) -> None:
    with pytest.raises(EditVerseError) as expected:
        host(prompt, **settings)
    with pytest.raises(native.LibraryError) as found:
        twin.run(prompt, **settings)
    assert found.value.name == type(expected.value).__name__
    facts, wanted = found.value.facts, expected.value.to_json()
    assert facts["message"] == found.value.text
    assert facts["code"] == wanted["code"]
    # Each host calls a field by the name that its caller knows.
    name = facts["field"].removeprefix("ev_request.")
    assert ("size" if name == "width_px" else name) == wanted["field"]
    assert facts["expected"] == wanted["expected"]
    if isinstance(expected.value, RequestError):  # what is said of media names a path, or an array
        assert (facts["found"], facts["hint"]) == (wanted["found"], wanted["hint"])


def test_a_callback_stops_both(host: Pipeline, twin: Any) -> None:
    with pytest.raises(RequestCancelled):
        host("A star", num_frames=1, num_inference_steps=3, callback_on_step_end=lambda *_: False)
    with pytest.raises(native.LibraryError) as found:
        twin.run("A star", num_frames=1, num_inference_steps=3, on_step=lambda *_: False)
    assert found.value.code == native.CANCELLED
