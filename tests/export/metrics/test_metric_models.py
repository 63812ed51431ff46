"""Exported metric models against the classes that the published scores use, and ViCLIP written out in PyTorch.

The towers of `export/metrics/` are our own; what they are held to here is transformers' code, Pillow, and a
restatement of ViCLIP with PyTorch's own attention.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Model,
)

from editverse_rt.errors import BundleError
from editverse_rt.evaluate.features import MetricModels
from editverse_rt.evaluate.metrics import METRICS, ClipToScore, score_clip
from editverse_rt.media.frames import Frames
from editverse_rt.media.plain import read_frames_plain
from export.metrics.__main__ import export_metrics, main
from export.metrics.models import load_clip, load_dino, load_viclip
from export.metrics.random_models import write_random_clip, write_random_models
from reference.nano.heldout import real_clip_folder

TEXTS = [
    "The red cat's running on the hill.",
    "a",
    "and " * 60,
    "Ünïcode \N{RIGHT SINGLE QUOTATION MARK}s &amp; 12x",
]
# Both sides add float32 in other orders: the tolerance for features of unit length and for cosines.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_random_models(tmp_path_factory.mktemp("metric_sources"))


@pytest.fixture(scope="module")
def folder(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("metric_models") / "random"
    return export_metrics(out, **sources, is_random=True)


@pytest.fixture(scope="module")
def models(folder: Path) -> Iterator[MetricModels]:
    with MetricModels.open(folder, "ort-cpu", num_threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def frames() -> Frames:
    """Ten frames of a real clip, small and not square."""
    found = read_frames_plain(real_clip_folder() / "bikes.mp4")[:100:10]
    return np.ascontiguousarray(found[:, ::3, ::3])


def unit(rows: Any) -> NDArray[np.float64]:
    array = np.asarray(rows, np.float64)
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


# --- preprocessing ---


@pytest.mark.parametrize("size", [(480, 848), (848, 480), (480, 480), (37, 100), (30, 28), (272, 640)])
def test_squares_are_those_of_transformers_and_pillow(
    models: MetricModels, sources: dict[str, Path], size: tuple[int, int]
) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, *size, 3), dtype=np.uint8)
    for name, kind in (("clip", CLIPImageProcessorPil), ("dino", BitImageProcessorPil)):
        processor = kind.from_pretrained(sources[name], do_rescale=False, do_normalize=False)
        expected = processor([Image.fromarray(frame) for frame in pixels], return_tensors="np")[
            "pixel_values"
        ]
        found = models.squares(pixels, models.bundle.model(name).image)
        difference = np.abs(found.astype(int) - expected.transpose(0, 2, 3, 1).astype(int))
        assert difference.max() <= 1
        # On noise, the worst case, one value of 1000 is the other side of a half; on real frames one of 5000.
        assert (difference > 0).mean() <= 1e-3


def test_a_tall_picture_is_filtered_by_rows_first_as_pillow_before_13_did(models: MetricModels) -> None:
    """Pillow 13 filters columns first where a picture is much taller than wide; the scores are older."""
    frame = np.random.default_rng(0).integers(0, 256, (100, 37, 3), dtype=np.uint8)
    rows = Image.fromarray(frame).resize((28, 100), Image.Resampling.BICUBIC)
    expected = np.asarray(rows.resize((28, 75), Image.Resampling.BICUBIC)).astype(int)
    difference = np.abs(models.resize(frame[None], 75, 28)[0] - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3


def test_a_real_frame_is_resized_as_pillow_does(models: MetricModels) -> None:
    clip = read_frames_plain(real_clip_folder() / "bikes.mp4")[:40:10]
    expected = np.stack(
        [np.asarray(Image.fromarray(f).resize((527, 224), Image.Resampling.BICUBIC)) for f in clip]
    )
    difference = np.abs(models.resize(clip, 224, 527).astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 2e-4


def test_the_crop_of_clips_rounds_as_torchvision_does(models: MetricModels) -> None:
    """27 more pixels than the square: the left one is 13.5, which goes to 14 there and to 13 in transformers."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, 28, 28 + 27, 3), dtype=np.uint8)
    video, picture = (models.bundle.model(name).image for name in ("viclip", "clip"))
    assert np.array_equal(models.squares(pixels, video), pixels[:, :, 14 : 14 + 28])
    assert np.array_equal(models.squares(pixels, picture), pixels[:, :, 13 : 13 + 28])


# --- pictures and texts ---


@pytest.mark.parametrize("name", ["clip", "pickscore"])
def test_clips_features_are_transformers(
    models: MetricModels, sources: dict[str, Path], frames: Frames, name: str
) -> None:
    model: Any = CLIPModel.from_pretrained(sources[name])
    squares = models.squares(frames, models.bundle.model(name).image)
    processor = CLIPImageProcessorPil.from_pretrained(sources[name], do_resize=False, do_center_crop=False)
    pixel_values = processor([Image.fromarray(frame) for frame in squares], return_tensors="pt")[
        "pixel_values"
    ]
    with torch.no_grad():
        pooled = model.vision_model(pixel_values).pooler_output
        projected = model.visual_projection(pooled)
    found = models.image_features(name, frames)
    assert np.abs(unit(found["pooled"]) - unit(pooled)).max() < TOLERANCE
    assert np.abs(unit(found["projected"]) - unit(projected)).max() < TOLERANCE
    # Random weights that do not spread their features would prove nothing.
    assert (unit(pooled) @ unit(pooled).T).min() < 0.97
    assert models.bundle.model(name).logit_scale == pytest.approx(model.logit_scale.exp().item(), rel=1e-6)


@pytest.mark.parametrize("name", ["clip", "pickscore"])
def test_text_features_are_transformers_whatever_stands_behind_the_end(
    models: MetricModels, sources: dict[str, Path], name: str
) -> None:
    model: Any = CLIPModel.from_pretrained(sources[name])
    tokenizer: Any = CLIPTokenizer.from_pretrained(sources[name])
    inputs = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        expected = model.text_projection(model.text_model(**inputs).pooler_output)
    assert np.abs(unit(models.text_features(name, TEXTS)) - unit(expected)).max() < TOLERANCE
    one_by_one = np.concatenate([models.text_features(name, [text]) for text in TEXTS])
    assert np.abs(unit(one_by_one) - unit(expected)).max() < TOLERANCE


def test_dinos_features_are_transformers_with_places_resized(
    models: MetricModels, sources: dict[str, Path], frames: Frames
) -> None:
    model: Any = Dinov2Model.from_pretrained(sources["dino"])
    image = models.bundle.model("dino").image
    assert model.config.image_size != image.crop_px, "or nothing would be resized"
    squares = models.squares(frames, image)
    processor = BitImageProcessorPil.from_pretrained(sources["dino"], do_resize=False, do_center_crop=False)
    pixel_values = processor([Image.fromarray(frame) for frame in squares], return_tensors="pt")[
        "pixel_values"
    ]
    with torch.no_grad():
        expected = model(pixel_values).pooler_output
    assert np.abs(unit(models.image_features("dino", frames)["pooled"]) - unit(expected)).max() < TOLERANCE


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_ids_are_transformers_for_any_text(models: MetricModels, sources: dict[str, Path], text: str) -> None:
    tokenizer: Any = CLIPTokenizer.from_pretrained(sources["clip"])
    models.text_features("clip", ["a"])
    expected = tokenizer([text], truncation=True, max_length=77)["input_ids"]
    assert models._tokenizers["clip"].encode([text]).tolist() == expected


# --- ViCLIP, written out ---


class ViclipBlock(nn.Module):
    def __init__(self, width: int, heads: int, mask: Tensor | None) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        """x: [rows, batch, width], as PyTorch's attention takes it by default."""
        y = self.ln_1(x)
        mask = None if self.mask is None else self.mask[: len(x), : len(x)]
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        y = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](y * torch.sigmoid(1.702 * y))


def viclip_blocks(
    weights: dict[str, Tensor], prefix: str, width: int, mask: Tensor | None
) -> list[ViclipBlock]:
    blocks = []
    for index in itertools.count():
        stem = f"{prefix}.transformer.resblocks.{index}."
        own = {key.removeprefix(stem): value for key, value in weights.items() if key.startswith(stem)}
        if not own:
            return blocks
        block = ViclipBlock(width, width // 64, mask)
        block.load_state_dict(own)
        blocks.append(block.eval())
    return blocks


def norm(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return nn.functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


@torch.no_grad()
def viclip_video(weights: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """pixels: normalised, [B, T, 3, S, S]. Every row is put together one by one."""
    v = {
        key.removeprefix("vision_encoder."): value for key, value in weights.items() if key.startswith("vis")
    }
    width = len(v["class_embedding"])
    grids = torch.nn.functional.conv3d(pixels.transpose(1, 2), v["conv1.weight"], stride=(1, 14, 14))
    batch, _, times, high, wide = grids.shape
    clips = []
    for b in range(batch):
        rows = [v["class_embedding"] + v["positional_embedding"][0]]
        for place in range(high * wide):
            for time in range(times):
                row = grids[b, :, time, place // wide, place % wide] + v["positional_embedding"][1 + place]
                rows.append(row + v["temporal_positional_embedding"][0, time])
        clips.append(torch.stack(rows))
    x = norm(v, "ln_pre", torch.stack(clips, 1))
    for block in viclip_blocks(weights, "vision_encoder", width, None):
        x = block(x)
    return norm(v, "ln_post", x)[0] @ v["proj"]


@torch.no_grad()
def viclip_text(weights: dict[str, Tensor], ids: Tensor) -> Tensor:
    """ids: [B, 32], zeros behind the end, which has the largest id."""
    t = {key.removeprefix("text_encoder."): value for key, value in weights.items() if key.startswith("text")}
    width = t["token_embedding.weight"].shape[1]
    mask = torch.full((32, 32), float("-inf")).triu(1)
    x = (t["token_embedding.weight"][ids] + t["positional_embedding"]).transpose(0, 1)
    for block in viclip_blocks(weights, "text_encoder", width, mask):
        x = block(x)
    x = norm(t, "ln_final", x).transpose(0, 1)
    return x[torch.arange(len(ids)), ids.argmax(-1)] @ t["text_projection"]


@pytest.fixture(scope="module")
def viclip_weights(sources: dict[str, Path]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(sources["viclip"], weights_only=True)["model"]
    return found


def normalized(squares: Frames) -> Tensor:
    mean, std = (
        torch.tensor(x) for x in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    return ((torch.from_numpy(squares) / 255 - mean) / std).permute(0, 3, 1, 2)


def test_viclips_clip_features_are_the_restatements(
    models: MetricModels, viclip_weights: dict[str, Tensor], frames: Frames
) -> None:
    taken = [int(i * len(frames) / 8) for i in range(8)]
    squares = models.squares(frames[taken], models.bundle.model("viclip").image)
    expected = viclip_video(viclip_weights, normalized(squares)[None])[0]
    found = models.clip_features("viclip", frames)
    assert np.abs(unit(found) - unit(expected)).max() < TOLERANCE
    # A class row with a time, or rows frame by frame, would be another model.
    turned = viclip_video(viclip_weights, normalized(squares).flip(0)[None])[0]
    assert np.abs(unit(found) - unit(turned)).max() > 100 * TOLERANCE


def test_viclips_text_features_are_the_restatements(
    models: MetricModels, viclip_weights: dict[str, Tensor], sources: dict[str, Path]
) -> None:
    tokenizer: Any = CLIPTokenizer.from_pretrained(sources["clip"])
    texts = ["The red cat's running.", "a", "and " * 60]
    ids = torch.zeros((len(texts), 32), dtype=torch.int64)
    for row, text in zip(ids, texts, strict=True):
        found = tokenizer(text)["input_ids"]
        found = found if len(found) <= 32 else [*found[:31], found[-1]]
        row[: len(found)] = torch.tensor(found)
    assert int(ids[2, 31]) == tokenizer.eos_token_id
    expected = viclip_text(viclip_weights, ids)
    assert np.abs(unit(models.text_features("viclip", texts)) - unit(expected)).max() < TOLERANCE


# --- scores, with the published preprocessing of Pillow and PyTorch ---


def cosine(a: Any, b: Any) -> float:
    return float(torch.nn.functional.cosine_similarity(torch.as_tensor(a), torch.as_tensor(b), dim=-1))


def test_scores_are_those_of_the_published_steps(
    models: MetricModels, sources: dict[str, Path], frames: Frames
) -> None:
    prompt = "The red cat's running on the hill."
    model: Any = CLIPModel.from_pretrained(sources["clip"])
    processor = CLIPImageProcessorPil.from_pretrained(sources["clip"])
    tokenizer: Any = CLIPTokenizer.from_pretrained(sources["clip"])
    pictures = [Image.fromarray(frame) for frame in frames]
    with torch.no_grad():
        pixel_values = processor(pictures, return_tensors="pt")["pixel_values"]
        pooled = model.vision_model(pixel_values).pooler_output
        projected = model.visual_projection(pooled)
        text = model.text_projection(
            model.text_model(**tokenizer(prompt, return_tensors="pt")).pooler_output
        )[0]
    item = ClipToScore(frames, prompt)
    found = {
        k: v.value
        for k, v in score_clip(models, item, ["clip_temporal", "frame_text", "tgve_clip_frame"]).items()
    }
    pairs = list(itertools.pairwise(pooled))
    temporal = 100 * sum(max(0.0, cosine(a, b)) for a, b in pairs) / len(pairs)
    scale = model.logit_scale.exp().item()
    # One level in a few pixels moves scores of these random models in the fourth digit.
    assert found["clip_temporal"] == pytest.approx(temporal, abs=0.02)
    assert found["frame_text"] == pytest.approx(
        sum(scale * cosine(f, text) for f in projected) / 10, abs=0.01
    )
    every = [cosine(a, b) for a, b in itertools.permutations(projected, 2)]
    assert found["tgve_clip_frame"] == pytest.approx(sum(every) / len(every), abs=2e-4)
    # Mistakes that have to show: projected features, and all pairs, for the temporal score.
    wrong = [max(0.0, cosine(a, b)) for a, b in itertools.pairwise(projected)]
    assert abs(found["clip_temporal"] - 100 * sum(wrong) / len(wrong)) > 0.1
    wrong = [max(0.0, cosine(a, b)) for a, b in itertools.combinations(pooled, 2)]
    assert abs(found["clip_temporal"] - 100 * sum(wrong) / len(wrong)) > 0.1


def test_equal_frames_are_100_and_a_reversed_clip_keeps_its_temporal_scores(
    models: MetricModels, frames: Frames
) -> None:
    names = ["clip_temporal", "dino_temporal", "tgve_clip_frame"]
    still = score_clip(models, ClipToScore(np.repeat(frames[:1], 4, 0)), names)
    assert still["clip_temporal"].value == pytest.approx(100)
    assert still["dino_temporal"].value == pytest.approx(100)
    assert still["tgve_clip_frame"].value == pytest.approx(1)
    forward, back = (score_clip(models, ClipToScore(clip), names) for clip in (frames, frames[::-1]))
    for name in names:
        assert back[name].value == pytest.approx(forward[name].value, abs=1e-3)


def test_every_metric_has_a_value_and_a_copy_has_no_direction(models: MetricModels, frames: Frames) -> None:
    item = ClipToScore(frames, "a red cat", frames.copy(), "a cat")
    found = score_clip(models, item, list(METRICS))
    assert all(value.value is not None for value in found.values())
    assert found["viclip_dir"].value == 0
    assert found["viclip_dir"].note is not None


# --- the command ---


def test_a_subset_is_exported_with_what_it_was_made_of(sources: dict[str, Path], tmp_path: Path) -> None:
    revision = "0123456789abcdef0123456789abcdef01234567"
    source = tmp_path / "snapshots" / revision
    source.parent.mkdir()
    source.symlink_to(sources["dino"])
    assert main([str(tmp_path / "out"), "--dino", str(source)]) == 0
    facts = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert facts["weights"] == "published"
    assert set(facts["models"]) == {"dino"}
    dino = facts["models"]["dino"]
    assert (dino["id"], dino["revision"], dino["licence"]) == ("facebook/dinov2-base", revision, "Apache-2.0")
    assert (dino["image"]["resize_px"], dino["image"]["crop_px"]) == (32, 28)
    assert set(facts["graphs"]) == {"resize_bicubic", "dino_image"}


def test_random_models_say_so(folder: Path) -> None:
    facts = json.loads((folder / "evaluation.json").read_text())
    assert facts["weights"] == "random"
    assert all("random" in model["id"] for model in facts["models"].values())


def test_a_folder_that_is_something_else_is_left_alone(sources: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no metric models"):
        export_metrics(tmp_path, dino=sources["dino"])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_cannot_be_exported_is_refused(sources: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="no model was given"):
        export_metrics(out)
    with pytest.raises(ValueError, match="ViCLIP's tokenizer is CLIP's"):
        export_metrics(out, viclip=sources["viclip"])
    for load in (lambda p: load_clip("clip", p), load_dino, lambda p: load_viclip(p, sources["clip"])):
        with pytest.raises(FileNotFoundError, match="expected"):
            load(tmp_path / "none")
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="expected ViCLIP's checkpoint"):
        load_viclip(tmp_path / "other.pth", sources["clip"])
    assert not out.exists()
    with pytest.raises(SystemExit):
        main([str(out), "--random-small", "--dino", str(sources["dino"])])


def test_preprocessing_that_the_runtime_does_not_follow_is_refused(tmp_path: Path) -> None:
    folder = write_random_clip(tmp_path / "clip", seed=0)
    path = folder / "preprocessor_config.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "resample": 2}))
    with pytest.raises(ValueError, match="expected 3, bicubic"):
        load_clip("clip", folder)
    path.write_text(json.dumps({**facts, "crop_size": {"height": 14, "width": 14}}))
    with pytest.raises(ValueError, match="the model takes 28"):
        load_clip("clip", folder)
    # As old files have it.
    path.write_text(json.dumps({**facts, "crop_size": 28, "size": 28}))
    assert load_clip("clip", folder).facts.image.crop_px == 28


def test_an_altered_graph_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "dino_image.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"dino_image\.onnx: found 1 bytes"):
        MetricModels.open(copy)
