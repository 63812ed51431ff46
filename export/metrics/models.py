"""Published metric models, read into the towers of `towers.py`."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from editverse_rt.evaluate.bundle import Crop, ImagePreprocessing, MetricModel, TextPreprocessing
from editverse_rt.files import hash_file
from export.metrics.towers import ImageTower, Pixels, TextTower, TowerConfig, VideoTower

__all__ = ["LoadedModel", "load_clip", "load_dino", "load_viclip", "viclip_from_weights"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3
"""Pillow's number of the filter, in preprocessor_config.json."""
# Ids and licences of the published weights that the protocol names (docs/evaluation.md).
KNOWN = {
    "clip": ("openai/clip-vit-large-patch14", "not stated by its page; the code is MIT"),
    "pickscore": ("yuvalkirstain/PickScore_v1", "not stated by its page; the code is MIT"),
    "dino": ("facebook/dinov2-base", "Apache-2.0"),
    "viclip": ("OpenGVLab/ViCLIP ViClip-InternVid-10M-FLT.pth", "unclear: mit or CC-BY-NC-SA-4.0, by source"),
}
VICLIP_MAX_TOKENS = 32
VICLIP_HEAD_DIM = 64


@dataclass(frozen=True)
class LoadedModel:
    """A model before it is exported: its towers by graph, and what evaluation.json says of it.

    tokenizer: writes the tokenizer's JSON to a path; None for a model without texts.
    """

    facts: MetricModel
    image: nn.Module
    text: nn.Module | None = None
    tokenizer: Callable[[Path], None] | None = None


def load_clip(name: str, folder: Path, processor: Path | None = None) -> LoadedModel:
    """A CLIP model in the transformers layout, as "clip" or "pickscore".

    processor: the folder of its preprocessing and tokenizer, where they stand apart from the weights.
    Raises FileNotFoundError for a folder without a model, ValueError for what the towers do not have.
    """
    from transformers import CLIPModel, CLIPTokenizer

    model: Any = cast(Any, CLIPModel).from_pretrained(_checked(folder), dtype=torch.float32)
    processor = _checked(processor or folder, "preprocessor_config.json")
    tokenizer: Any = CLIPTokenizer.from_pretrained(processor)
    weights, config = model.state_dict(), model.config
    vision, text = config.vision_config, config.text_config
    end_id = int(tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    _check_end(text.eos_token_id, end_id, folder)
    image = _read_image(processor, f"{name}_image", vision.image_size)
    image_tower = ImageTower(
        _clip_config(vision, config.projection_dim),
        _pixels(vision, image),
        (vision.image_size // vision.patch_size) ** 2,
        has_pre_norm=True,
    )
    _fill_image(image_tower, weights, _CLIP_IMAGE, "vision_model.encoder.layers", _CLIP_BLOCK)
    text_tower = TextTower(
        _clip_config(text, config.projection_dim), text.vocab_size, text.max_position_embeddings, end_id
    )
    _fill(text_tower, weights, _CLIP_TEXT, "text_model.encoder.layers", _CLIP_BLOCK)
    facts = _facts(
        name,
        folder,
        image,
        TextPreprocessing(f"{name}_text", f"{name}_tokenizer.json", text.max_position_embeddings, "none"),
        math.exp(float(weights["logit_scale"])),
    )
    return LoadedModel(
        facts, image_tower, text_tower, lambda path: tokenizer.backend_tokenizer.save(str(path))
    )


def load_dino(folder: Path) -> LoadedModel:
    """A DINOv2 model in the transformers layout. Raises as `load_clip`."""
    from transformers import Dinov2Model

    model: Any = cast(Any, Dinov2Model).from_pretrained(_checked(folder), dtype=torch.float32)
    config = model.config
    if config.use_swiglu_ffn or config.hidden_act != "gelu":
        raise ValueError(
            f"{folder} has SwiGLU or another activation than gelu; expected DINOv2 small to large"
        )
    image = _read_image(folder, "dino_image", None)
    weights = model.state_dict()
    tower = ImageTower(
        TowerConfig(
            config.hidden_size, config.num_hidden_layers, config.num_attention_heads,
            config.hidden_size * config.mlp_ratio, "gelu", config.layer_norm_eps,
        ),
        _pixels(config, image),
        (image.crop_px // config.patch_size) ** 2,
        has_pre_norm=False,
    )  # fmt: skip
    weights["places"] = _resized_places(weights["embeddings.position_embeddings"][0], image.crop_px, config)
    _fill_image(tower, weights, _DINO_IMAGE, "encoder.layer", _DINO_BLOCK)
    with torch.no_grad():
        for index, block in enumerate(cast(Any, tower.blocks)):
            # LayerScale: a factor for each channel of what a residual adds.
            for layer, scale in ((block.out, "layer_scale1"), (block.down, "layer_scale2")):
                factor = weights[f"encoder.layer.{index}.{scale}.lambda1"]
                layer.weight.mul_(factor[:, None])
                layer.bias.mul_(factor)
    return LoadedModel(_facts("dino", folder, image), tower)


def load_viclip(file: Path, tokenizer_folder: Path) -> LoadedModel:
    """ViCLIP from its published checkpoint; its tokenizer is CLIP's, read from that folder.

    Raises FileNotFoundError where either is missing, ValueError for another checkpoint.
    """
    from transformers import CLIPTokenizer

    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected ViCLIP's checkpoint (.pth)")
    found: Any = torch.load(file, map_location="cpu", weights_only=True)
    weights = found.get("model", found) if isinstance(found, dict) else None
    if weights is None or "vision_encoder.conv1.weight" not in weights:
        raise ValueError(f"{file} holds no vision_encoder.conv1.weight; expected ViCLIP's checkpoint")
    tokenizer: Any = CLIPTokenizer.from_pretrained(_checked(tokenizer_folder, "tokenizer"))
    end_id = int(tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    return viclip_from_weights(
        {key: value.float() for key, value in weights.items() if isinstance(value, Tensor)},
        file,
        end_id,
        lambda path: tokenizer.backend_tokenizer.save(str(path)),
    )


def viclip_from_weights(
    weights: dict[str, Tensor], file: Path, end_id: int, save_tokenizer: Callable[[Path], None]
) -> LoadedModel:
    """ViCLIP's towers from its weights by name; sizes are read from the weights.

    file: where the weights come from, for messages. end_id: of the end-of-text token, whose row is the text's feature.
    save_tokenizer: writes the tokenizer to a path. Raises ValueError for patches of more than one frame.
    """
    conv = weights["vision_encoder.conv1.weight"]
    width, _, depth, patch, _ = conv.shape
    if depth != 1:
        raise ValueError(f"{file} takes patches of {depth} frames; expected 1")
    # In the order of nn.Linear's weights, patches without the axis of time.
    weights = {**weights, "vision_encoder.conv1.weight": conv.squeeze(2)}
    num_patches = weights["vision_encoder.positional_embedding"].shape[0] - 1
    side = patch * math.isqrt(num_patches)
    times = weights["vision_encoder.temporal_positional_embedding"][0]
    image = ImagePreprocessing("viclip_video", side, side, "round", CLIP_MEAN, CLIP_STD, len(times))
    for prefix in ("vision_encoder", "text_encoder"):
        _split_attention(weights, prefix)
    for name in ("vision_encoder.proj", "text_encoder.text_projection"):
        weights[name] = weights[name].T
    weights["times"] = times
    video = VideoTower(
        _viclip_config(weights, "vision_encoder", width, weights["vision_encoder.proj"]),
        Pixels(width, patch, torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)),
        num_patches,
        len(times),
    )
    _fill_image(video, weights, _VICLIP_VIDEO, "vision_encoder.transformer.resblocks", _VICLIP_BLOCK)
    places = weights["text_encoder.positional_embedding"]
    vocabulary, text_width = weights["text_encoder.token_embedding.weight"].shape
    text = TextTower(
        _viclip_config(weights, "text_encoder", text_width, weights["text_encoder.text_projection"]),
        vocabulary,
        len(places),
        end_id,
    )
    _fill(text, weights, _VICLIP_TEXT, "text_encoder.transformer.resblocks", _VICLIP_BLOCK)
    max_tokens = min(VICLIP_MAX_TOKENS, len(places))
    facts = _facts(
        "viclip", file, image, TextPreprocessing("viclip_text", "viclip_tokenizer.json", max_tokens, "ftfy")
    )
    return LoadedModel(facts, video, text, save_tokenizer)


# --- names of weights: the towers' on the left ---

_BOTH = ("weight", "bias")
_CLIP_BLOCK = {
    "norm_1": "layer_norm1", "query": "self_attn.q_proj", "key": "self_attn.k_proj",
    "value": "self_attn.v_proj", "out": "self_attn.out_proj", "norm_2": "layer_norm2",
    "up": "mlp.fc1", "down": "mlp.fc2",
}  # fmt: skip
_DINO_BLOCK = {
    "norm_1": "norm1", "query": "attention.q_proj", "key": "attention.k_proj",
    "value": "attention.v_proj", "out": "attention.o_proj", "norm_2": "norm2",
    "up": "mlp.fc1", "down": "mlp.fc2",
}  # fmt: skip
_VICLIP_BLOCK = {
    "norm_1": "ln_1", "query": "attn.query", "key": "attn.key", "value": "attn.value",
    "out": "attn.out_proj", "norm_2": "ln_2", "up": "mlp.c_fc", "down": "mlp.c_proj",
}  # fmt: skip
_CLIP_IMAGE = {
    "class_row": "vision_model.embeddings.class_embedding",
    "places": "vision_model.embeddings.position_embedding.weight",
    "pixels.project.weight": "vision_model.embeddings.patch_embedding.weight",
    "norm_before": "vision_model.pre_layrnorm",
    "norm_after": "vision_model.post_layernorm",
    "project.weight": "visual_projection.weight",
}
_CLIP_TEXT = {
    "words.weight": "text_model.embeddings.token_embedding.weight",
    "places": "text_model.embeddings.position_embedding.weight",
    "norm_after": "text_model.final_layer_norm",
    "project.weight": "text_projection.weight",
}
_DINO_IMAGE = {
    "class_row": "embeddings.cls_token",
    "places": "places",
    "pixels.project.weight": "embeddings.patch_embeddings.projection.weight",
    "pixels.project.bias": "embeddings.patch_embeddings.projection.bias",
    "norm_after": "layernorm",
}
_VICLIP_VIDEO = {
    "class_row": "vision_encoder.class_embedding",
    "places": "vision_encoder.positional_embedding",
    "times": "times",
    "pixels.project.weight": "vision_encoder.conv1.weight",
    "norm_before": "vision_encoder.ln_pre",
    "norm_after": "vision_encoder.ln_post",
    "project.weight": "vision_encoder.proj",
}
_VICLIP_TEXT = {
    "words.weight": "text_encoder.token_embedding.weight",
    "places": "text_encoder.positional_embedding",
    "norm_after": "text_encoder.ln_final",
    "project.weight": "text_encoder.text_projection",
}


def _fill_image(
    tower: nn.Module,
    weights: Mapping[str, Tensor],
    names: Mapping[str, str],
    blocks: str,
    block: Mapping[str, str],
) -> None:
    """Fill a tower with patches; CLIP's have no bias."""
    if "pixels.project.bias" not in names:
        width = weights[names["pixels.project.weight"]].shape[0]
        weights, names = {**weights, "none": torch.zeros(width)}, {**names, "pixels.project.bias": "none"}
    _fill(tower, weights, names, blocks, block)


def _fill(
    tower: nn.Module,
    weights: Mapping[str, Tensor],
    names: Mapping[str, str],
    blocks: str,
    block: Mapping[str, str],
) -> None:
    """Copy weights by name; every parameter of the tower has to be found, of its number of elements."""
    found: dict[str, Tensor] = {}
    for ours, theirs in names.items():
        if theirs in weights:
            found[ours] = weights[theirs]
        else:
            found.update({f"{ours}.{part}": weights[f"{theirs}.{part}"] for part in _BOTH})
    for index in range(len(cast(nn.ModuleList, tower.blocks))):
        for ours, theirs in block.items():
            for part in _BOTH:
                found[f"blocks.{index}.{ours}.{part}"] = weights[f"{blocks}.{index}.{theirs}.{part}"]
    parameters = dict(tower.named_parameters())
    if set(found) != set(parameters):
        raise ValueError(f"weights differ from the tower's by {sorted(set(found) ^ set(parameters))}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(found[name].reshape(parameter.shape))


def _split_attention(weights: dict[str, Tensor], prefix: str) -> None:
    """Cut the one matrix of nn.MultiheadAttention into those of queries, keys and values."""
    for name in [name for name in weights if re.match(rf"{prefix}\..*\.attn\.in_proj_(weight|bias)$", name)]:
        stem, part = name.rsplit(".in_proj_", 1)
        for role, piece in zip(("query", "key", "value"), weights.pop(name).chunk(3), strict=True):
            weights[f"{stem}.{role}.{part}"] = piece


def _viclip_config(weights: Mapping[str, Tensor], prefix: str, width: int, projection: Tensor) -> TowerConfig:
    pattern = re.compile(rf"{prefix}\.transformer\.resblocks\.(\d+)\.ln_1\.weight$")
    num_blocks = sum(pattern.match(name) is not None for name in weights)
    mlp_width = weights[f"{prefix}.transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
    heads = max(1, width // VICLIP_HEAD_DIM)
    return TowerConfig(width, num_blocks, heads, mlp_width, "quick_gelu", 1e-5, projection.shape[0])


def _clip_config(config: Any, output_dim: int) -> TowerConfig:
    if config.hidden_act not in ("gelu", "quick_gelu"):
        raise ValueError(f"the model's activation is {config.hidden_act}; expected gelu or quick_gelu")
    return TowerConfig(
        config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size,
        config.hidden_act, config.layer_norm_eps, output_dim,
    )  # fmt: skip


def _pixels(config: Any, image: ImagePreprocessing) -> Pixels:
    return Pixels(config.hidden_size, config.patch_size, torch.tensor(image.mean), torch.tensor(image.std))


def _resized_places(places: Tensor, crop_px: int, config: Any) -> Tensor:
    """DINOv2's places, learned at 518 pixels, for another square: bicubic, as transformers computes them."""
    old, new = config.image_size // config.patch_size, crop_px // config.patch_size
    if old == new:
        return places
    grid = places[1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat((places[:1], grid.permute(0, 2, 3, 1).flatten(1, 2)[0]))


def _read_image(folder: Path, graph: str, side_px: int | None) -> ImagePreprocessing:
    """preprocessor_config.json. Raises ValueError for preprocessing that the runtime does not follow."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the model's preprocessing beside it")
    found = json.loads(path.read_text(encoding="utf-8"))
    # Older files hold a number where newer ones hold an object.
    size, crop = found["size"], found["crop_size"]
    resize_px = size["shortest_edge"] if isinstance(size, dict) else size
    crop_px = crop["height"] if isinstance(crop, dict) else crop
    if found.get("resample", BICUBIC) != BICUBIC:
        raise ValueError(f"{path}: resample is {found['resample']}; expected {BICUBIC}, bicubic")
    if side_px is not None and crop_px != side_px:
        raise ValueError(f"{path}: crop_size is {crop_px}; the model takes {side_px}")
    rounding: Crop = "floor"
    return ImagePreprocessing(
        graph, int(resize_px), int(crop_px), rounding, tuple(found["image_mean"]), tuple(found["image_std"])
    )


def _facts(
    name: str,
    source: Path,
    image: ImagePreprocessing,
    text: TextPreprocessing | None = None,
    logit_scale: float | None = None,
) -> MetricModel:
    model_id, licence = KNOWN[name]
    # A folder of the hub's cache is named by its revision.
    revision = source.name if re.fullmatch(r"[0-9a-f]{40}", source.name) else None
    return MetricModel(model_id, revision, licence, _hash_weights(source), image, text, logit_scale)


def _hash_weights(source: Path) -> str | None:
    """sha256 of the file of weights; of several, of their hashes in order."""
    if source.is_file():
        return hash_file(source)
    files = sorted(source.glob("*.safetensors")) or sorted(source.glob("*.bin"))
    hashes = [hash_file(file) for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _checked(folder: Path, wanted: str = "config.json") -> Path:
    if wanted == "tokenizer":
        found = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    else:
        found = (folder / wanted).is_file()
    if not found:
        raise FileNotFoundError(f"{folder}: found no {wanted}; expected a folder in the transformers layout")
    return folder


def _check_end(of_model: int, of_tokenizer: int, folder: Path) -> None:
    # 2 is what old configurations say; transformers then takes the largest id, which is the end token.
    if of_model not in (2, of_tokenizer):
        raise ValueError(f"{folder}: the model ends texts with {of_model}, the tokenizer with {of_tokenizer}")
