"""The metrics from features, each held to another way to compute it, and clips through a runner of our own."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from editverse_rt.backends import Runner, open_onnx_runner
from editverse_rt.bundle.spec import GraphSpec, TensorSpec
from editverse_rt.errors import BackendError, BundleError, RequestError
from editverse_rt.evaluate.bundle import (
    EVALUATION_JSON,
    ImagePreprocessing,
    MetricModel,
    MetricsBundle,
    TextPreprocessing,
    load_metrics_bundle,
    write_metrics_json,
)
from editverse_rt.evaluate.features import MetricModels
from editverse_rt.evaluate.metrics import (
    METRICS,
    ClipToScore,
    adjacent_consistency,
    clip_direction,
    cosines,
    pairwise_consistency,
    score_clip,
    text_alignment,
)
from editverse_rt.media.frames import Frames

SIDE, WIDTH, OUTPUT = 8, 6, 4
RNG = np.random.default_rng(5)
POOL = RNG.normal(size=(SIDE * SIDE * 3, WIDTH))
PROJECT = RNG.normal(size=(WIDTH, OUTPUT))
WORDS = RNG.normal(size=(16, OUTPUT))


def cosine(a: Any, b: Any) -> float:
    """By the standard library, one pair at a time."""
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(x * x for x in a)) / math.sqrt(math.fsum(x * x for x in b))


# --- from features ---


@pytest.fixture
def features() -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(7, 5)).astype(np.float32)


def test_adjacent_consistency_clips_each_cosine_at_0(features: NDArray[np.float32]) -> None:
    each = [cosine(a, b) for a, b in itertools.pairwise(features)]
    assert min(each) < 0, "or the clipping would not be seen"
    expected = sum(max(0.0, value) for value in each) / len(each)
    assert adjacent_consistency(features) == pytest.approx(expected, abs=1e-6)
    assert adjacent_consistency(features) != pytest.approx(sum(each) / len(each), abs=1e-3)


def test_pairwise_consistency_is_over_all_pairs(features: NDArray[np.float32]) -> None:
    each = [cosine(a, b) for a, b in itertools.combinations(features, 2)]
    assert pairwise_consistency(features) == pytest.approx(sum(each) / len(each), abs=1e-6)


def test_the_order_of_time_changes_neither_and_equal_frames_are_1(features: NDArray[np.float32]) -> None:
    for measure in (adjacent_consistency, pairwise_consistency):
        assert measure(features[::-1]) == pytest.approx(measure(features), abs=1e-9)
        assert measure(np.repeat(features[:1], 4, 0)) == pytest.approx(1)
        assert measure(features[:1]) is None
    # Another order changes the adjacent ones and not the pairs.
    order = [0, 3, 1, 6, 2, 5, 4]
    assert pairwise_consistency(features[order]) == pytest.approx(pairwise_consistency(features), abs=1e-9)
    assert adjacent_consistency(features[order]) != pytest.approx(adjacent_consistency(features), abs=1e-3)


def test_text_alignment_is_a_mean_of_scaled_cosines_and_not_a_cosine_of_means(
    features: NDArray[np.float32],
) -> None:
    text = np.arange(1.0, 6.0)
    expected = 20 * sum(cosine(row, text) for row in features) / len(features)
    assert text_alignment(features, text, 20.0) == pytest.approx(expected, abs=1e-6)
    assert text_alignment(features, text, 20.0) != pytest.approx(
        20 * cosine(features.mean(0), text), abs=1e-3
    )


def test_direction_makes_units_before_the_difference(features: NDArray[np.float32]) -> None:
    result, source, target, caption = (
        row * scale for row, scale in zip(features, (1, 3, 2, 9), strict=False)
    )

    def unit(row: NDArray[np.float32]) -> list[float]:
        norm = math.sqrt(math.fsum(float(x) ** 2 for x in row))
        return [float(x) / norm for x in row]

    def change(one: list[float], other: list[float]) -> list[float]:
        return [x - y for x, y in zip(one, other, strict=True)]

    expected = cosine(change(unit(result), unit(source)), change(unit(target), unit(caption)))
    assert clip_direction(result, source, target, caption) == pytest.approx(expected, abs=1e-6)
    assert expected != pytest.approx(cosine(result - source, target - caption), abs=1e-3)


def test_a_copy_has_no_direction(features: NDArray[np.float32]) -> None:
    one, two, three = features[:3]
    assert clip_direction(one, one, two, three) is None
    assert clip_direction(one, two, three, three) is None
    assert cosines(np.zeros((1, 5)), features[:1]) == 0


# --- from clips ---


class OwnRunner:
    """Plays the graphs in numpy: resizing takes the nearest pixels, features are matrix products."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __enter__(self) -> OwnRunner:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def run(self, graph: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        self.calls.append(graph)
        if graph == "resize_bicubic":
            frames, (height, width) = inputs["frames"], inputs["size"]
            rows = np.arange(height) * frames.shape[1] // height
            columns = np.arange(width) * frames.shape[2] // width
            return {"resized": frames[:, rows][:, :, columns]}
        if graph.endswith("_text"):
            return {"projected": WORDS[inputs["ids"] % 16].sum(1).astype(np.float32)}
        pixels = inputs["pixels"]
        if graph == "viclip_video":
            assert pixels.shape[1:] == (8, SIDE, SIDE, 3)
            pixels = pixels.mean(1)
        assert pixels.shape[1:] == (SIDE, SIDE, 3)
        pooled = np.tanh((pixels.reshape(len(pixels), -1) - 128.0) / 900 @ POOL)
        found = {"pooled": pooled.astype(np.float32), "projected": (pooled @ PROJECT).astype(np.float32)}
        return {"projected": found["projected"]} if graph == "viclip_video" else found


def write_folder(root: Path, names: tuple[str, ...] = ("clip", "pickscore", "dino", "viclip")) -> Path:
    """A folder with everything but graphs that compute."""
    root.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, [], end_of_word_suffix="</w>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ends = [(word, words.index(word)) for word in ("<|endoftext|>", "<|startoftext|>")]
    tokenizer.post_processor = processors.RobertaProcessing(*ends, False, False)
    tokenizer.save(str(root / "tokenizer.json"))
    graphs = {"resize_bicubic"}
    found = {}
    for name in names:
        graph = f"{name}_{'video' if name == 'viclip' else 'image'}"
        image = ImagePreprocessing(
            graph, SIDE, SIDE, "round" if name == "viclip" else "floor", (0.5,) * 3, (0.5,) * 3,
            8 if name == "viclip" else None,
        )  # fmt: skip
        text = None if name == "dino" else TextPreprocessing(f"{name}_text", "tokenizer.json", 32, "none")
        graphs |= {graph} | ({text.graph} if text else set())
        scale = 20.0 if name in ("clip", "pickscore") else None
        found[name] = MetricModel("random weights, for tests", None, "none", None, image, text, scale)
    for graph in graphs:
        (root / f"{graph}.onnx").write_bytes(b"not a graph")
    tensor = (TensorSpec("x", "float32", ("N", 3)),)
    specs = {graph: GraphSpec(graph, f"{graph}.onnx", tensor, tensor) for graph in sorted(graphs)}
    write_metrics_json(root, name="tiny", is_random=True, models=found, graphs=specs, made={"threads": "all"})
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "models")


def open_models(folder: Path) -> tuple[MetricModels, OwnRunner]:
    runner = OwnRunner()
    return MetricModels(load_metrics_bundle(folder), runner, "own"), runner


def clip(num_frames: int = 11, seed: int = 0, size: tuple[int, int] = (12, 20)) -> Frames:
    """Noise that changes a little from frame to frame."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 256, (1, *size, 3))
    steps = np.cumsum(rng.integers(-60, 61, (num_frames, *size, 3)), 0)
    return np.clip(first + steps, 0, 255).astype(np.uint8)


def pooled_of(frames: Frames, top: int, left: int) -> NDArray[np.float64]:
    """What `OwnRunner` gives for 12x20 frames cut at a place, written again."""
    rows, columns = np.arange(8) * 12 // 8, np.arange(13) * 20 // 13
    squares = frames[:, rows][:, :, columns][:, top : top + 8, left : left + 8]
    return np.tanh((squares.reshape(len(frames), -1) - 128.0) / 900 @ POOL)


def test_every_metric_measures_what_its_protocol_says(folder: Path) -> None:
    models, _ = open_models(folder)
    frames, source = clip(), clip(seed=3)
    item = ClipToScore(frames, "a red cat", source, "a cat")
    found = {name: value.value for name, value in score_clip(models, item, list(METRICS)).items()}
    pooled = pooled_of(frames, 0, 2)
    projected = pooled @ PROJECT
    text = models.text_features("clip", ["a red cat"])[0]
    adjacent = [max(0.0, cosine(a, b)) for a, b in itertools.pairwise(pooled)]
    pairs = [cosine(a, b) for a, b in itertools.combinations(projected, 2)]
    to_text = [20 * cosine(row, text) for row in projected]
    # 8-bit pixels and float32 features; five digits are what is left of them.
    close = {"abs": 1e-4}
    assert found["clip_temporal"] == pytest.approx(100 * sum(adjacent) / len(adjacent), **close)
    assert found["dino_temporal"] == pytest.approx(found["clip_temporal"], **close)
    assert found["frame_text"] == pytest.approx(sum(to_text) / len(to_text), **close)
    assert found["tgve_clip_score"] == found["frame_text"]
    assert found["tgve_clip_frame"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert found["pick"] == pytest.approx(found["frame_text"], **close)
    # A crop of 5 pixels leaves 2.5 on the left: torchvision goes to 2, and so it is for 7 pixels with 4.
    taken = [i * 11 // 8 for i in range(8)]
    rows, columns = np.arange(8) * 12 // 8, np.arange(13) * 20 // 13

    def video(frames: Frames) -> NDArray[np.float64]:
        mean = frames[taken][:, rows][:, :, columns][:, :, 2:10].mean(0)
        return np.tanh((mean.reshape(-1) - 128.0) / 900 @ POOL) @ PROJECT

    assert found["viclip_out"] == pytest.approx(cosine(video(frames), text), abs=1e-6)
    assert found["video_text"] == pytest.approx(100 * found["viclip_out"], **close)
    unit = [row / np.linalg.norm(row) for row in (video(frames), video(source), text)]
    caption = models.text_features("viclip", ["a cat"])[0]
    wanted = unit[2] - caption / np.linalg.norm(caption)
    assert found["viclip_dir"] == pytest.approx(cosine(unit[0] - unit[1], wanted), abs=1e-5)


def test_the_projected_features_or_all_pairs_would_be_another_temporal_score(folder: Path) -> None:
    models, _ = open_models(folder)
    frames = clip()
    found = score_clip(models, ClipToScore(frames), ["clip_temporal"])["clip_temporal"].value
    features = models.image_features("clip", frames)
    for wrong in (adjacent_consistency(features["projected"]), pairwise_consistency(features["pooled"])):
        assert wrong is not None
        assert found != pytest.approx(100 * wrong, abs=0.1)


def test_frames_are_seen_once_by_each_model_and_in_batches(folder: Path) -> None:
    models, runner = open_models(folder)
    score_clip(models, ClipToScore(clip(), "a cat"), ["clip_temporal", "frame_text", "tgve_clip_frame"])
    assert runner.calls.count("clip_image") == 2  # of 8 and of 3 frames
    assert runner.calls.count("clip_text") == 1


def test_picks_first_resize_is_its_own(folder: Path) -> None:
    models, runner = open_models(folder)
    frames = clip(2, size=(20, 700))
    score_clip(models, ClipToScore(frames, "a"), ["pick"])
    assert runner.calls.count("resize_bicubic") == 2
    score_clip(models, ClipToScore(frames, "a"), ["tgve_pick"])
    assert runner.calls.count("resize_bicubic") == 3


def test_a_copy_of_the_source_is_0_and_says_so(folder: Path) -> None:
    models, _ = open_models(folder)
    found = score_clip(models, ClipToScore(clip(), "a red cat", clip(), "a cat"), ["viclip_dir"])[
        "viclip_dir"
    ]
    assert found.value == 0
    assert "copies" in str(found.note)


def test_one_frame_has_no_temporal_score_and_says_so(folder: Path) -> None:
    models, _ = open_models(folder)
    found = score_clip(models, ClipToScore(clip(1), "a"), ["clip_temporal", "tgve_clip_frame", "frame_text"])
    assert found["clip_temporal"].value is found["tgve_clip_frame"].value is None
    assert "one frame" in str(found["clip_temporal"].note)
    assert found["frame_text"].value is not None


def test_what_a_metric_lacks_is_named(folder: Path, tmp_path: Path) -> None:
    models, _ = open_models(folder)
    with pytest.raises(RequestError, match="source and source_prompt"):
        score_clip(models, ClipToScore(clip(), "a"), ["viclip_dir"])
    with pytest.raises(RequestError, match="target_prompt"):
        score_clip(models, ClipToScore(clip()), ["frame_text"])
    with pytest.raises(RequestError, match='found metric "beauty"'):
        score_clip(models, ClipToScore(clip()), ["beauty"])
    with pytest.raises(RequestError, match="uint8"):
        score_clip(models, ClipToScore(clip().astype(np.float32), "a"), ["frame_text"])  # type: ignore[arg-type]
    part, _ = open_models(write_folder(tmp_path / "part", ("clip",)))
    with pytest.raises(BundleError, match=r'have no "dino".*--dino'):
        score_clip(part, ClipToScore(clip()), ["dino_temporal"])


# --- the folder ---


def test_a_folder_reads_back_and_says_that_it_is_random(folder: Path) -> None:
    bundle = load_metrics_bundle(folder)
    assert bundle.spec.is_random
    assert set(bundle.spec.models) == {"clip", "pickscore", "dino", "viclip"}
    assert bundle.spec.models["viclip"].image.num_frames == 8
    assert bundle.spec.models["dino"].text is None
    assert bundle.spec.models["clip"].logit_scale == 20.0
    assert json.loads((folder / EVALUATION_JSON).read_text())["weights"] == "random"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "clip_text.onnx").unlink(), "no such file"),
        (lambda f: (f / "clip_text.onnx").write_bytes(b"short"), "found 5 bytes"),
        (lambda f: (f / "clip_text.onnx").write_bytes(b"NOT a graph"), "sha256 differs"),
        (lambda f: (f / EVALUATION_JSON).unlink(), "found no evaluation.json"),
        (lambda f: (f / EVALUATION_JSON).write_text("{"), "cannot be read"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(folder: Path, change: Any, message: str) -> None:
    change(folder)
    with pytest.raises(BundleError, match=message):
        load_metrics_bundle(folder)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("format_version",), 99, "upgrade"),
        (("weights",), "made up", "published or random"),
        (("models", "clip", "image", "crop"), "ceil", "floor or round"),
        (("models", "clip", "image", "crop_px"), 9, "at most resize_px"),
        (("models", "clip", "image", "graph"), "gone", "also gone"),
        (("models", "clip", "text", "tokenizer"), "gone.json", "a tokenizer of the list"),
        (("models", "clip", "text", "tokenizer"), "../x.json", "stays inside"),
        (("models", "clip", "extra"), 1, "no field of this name"),
        (("graphs", "clip_text", "file"), "gone.onnx", "files of the list"),
        (("graphs", "clip_text", "inputs"), "x", "a list"),
    ],
)
def test_a_wrong_field_is_named(folder: Path, where: tuple[str, ...], value: object, message: str) -> None:
    path = folder / EVALUATION_JSON
    facts = json.loads(path.read_text())
    inner = facts
    for name in where[:-1]:
        inner = inner[name]
    inner[where[-1]] = value
    path.write_text(json.dumps(facts))
    with pytest.raises(BundleError, match=message):
        load_metrics_bundle(folder)


def test_only_a_backend_of_onnx_files_can_run_them(folder: Path) -> None:
    bundle: MetricsBundle = load_metrics_bundle(folder)
    name, runner = open_onnx_runner("auto", bundle)
    assert name.startswith("ort-")
    found: Runner = runner
    with found, pytest.raises(BackendError, match="cannot load graph"):
        found.run("clip_text", {"ids": np.zeros((1, 2), np.int64)})
    with pytest.raises(BackendError, match="does not run plain ONNX files"):
        open_onnx_runner("tensorrt", bundle)
