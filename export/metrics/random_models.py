"""Small random metric models in the layouts of the published ones, for tests and demonstrations.

Their scores mean nothing; `evaluation.json` says so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.metrics.models import CLIP_MEAN, CLIP_STD

__all__ = ["write_random_clip", "write_random_dino", "write_random_models", "write_random_viclip"]

SIDE_PX, PATCH_PX = 28, 14
WIDTH, NUM_BLOCKS, OUTPUT_DIM = 64, 2, 32
MAX_TOKENS = 77
SPREAD = 4.0
"""Random weights are widened by this, or all pictures would have nearly the same features."""
_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def write_random_models(folder: Path) -> dict[str, Path]:
    """One model of each kind below folder, by the names of `python -m export.metrics`'s options."""
    return {
        "clip": write_random_clip(folder / "clip", seed=1),
        "pickscore": write_random_clip(folder / "pickscore", seed=2, activation="gelu"),
        "dino": write_random_dino(folder / "dino", seed=3),
        "viclip": write_random_viclip(folder / "viclip.pth", seed=4),
    }


def write_random_clip(
    folder: Path,
    *,
    seed: int,
    activation: str = "quick_gelu",
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    output_dim: int = OUTPUT_DIM,
) -> Path:
    """A CLIP model, its preprocessing and its tokenizer in the transformers layout."""
    from transformers import CLIPConfig, CLIPModel

    folder.mkdir(parents=True)
    vocabulary = _write_tokenizer(folder)
    blocks = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": NUM_BLOCKS,
        "num_attention_heads": 2,
        "hidden_act": activation,
        "projection_dim": output_dim,
    }
    ends = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1}
    config: Any = CLIPConfig(
        text_config={**blocks, "vocab_size": vocabulary, **ends, **(text or {})},
        vision_config={**blocks, "image_size": SIDE_PX, "patch_size": PATCH_PX, **(vision or {})},
        projection_dim=output_dim,
    )
    torch.manual_seed(seed)
    model: Any = CLIPModel(config)
    _widen(model)
    model.save_pretrained(folder)
    side = config.vision_config.image_size
    _write_preprocessing(folder, side, side, CLIP_MEAN, CLIP_STD)
    return folder


def write_random_dino(
    folder: Path, *, seed: int, config: dict[str, Any] | None = None, side_px: int = SIDE_PX
) -> Path:
    """A DINOv2 model in the transformers layout, its places learned at another size than its pictures'."""
    from transformers import Dinov2Config, Dinov2Model

    folder.mkdir(parents=True)
    small = {
        "hidden_size": WIDTH,
        "num_hidden_layers": NUM_BLOCKS,
        "num_attention_heads": 2,
        "mlp_ratio": 2,
        "image_size": 3 * PATCH_PX,
        "patch_size": PATCH_PX,
    }
    torch.manual_seed(seed)
    model: Any = Dinov2Model(Dinov2Config(**{**small, **(config or {})}))
    _widen(model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layer_scale" in name:
                weight.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    _write_preprocessing(folder, side_px * 8 // 7, side_px, *_IMAGENET)
    return folder


def write_random_viclip(
    file: Path,
    *,
    seed: int,
    width: int = WIDTH,
    num_blocks: int = NUM_BLOCKS,
    text_width: int = WIDTH,
    text_blocks: int = NUM_BLOCKS,
    output_dim: int = OUTPUT_DIM,
    side_px: int = SIDE_PX,
    num_frames: int = 8,
    vocabulary: int | None = None,
) -> Path:
    """ViCLIP's checkpoint: {"model": weights by the published names}."""
    torch.manual_seed(seed)
    vocabulary = vocabulary or _vocabulary_size()
    num_patches = (side_px // PATCH_PX) ** 2
    weights: dict[str, Tensor] = {
        "temp": torch.tensor(0.01),
        "vision_encoder.conv1.weight": torch.randn(width, 3, 1, PATCH_PX, PATCH_PX) * 0.05,
        "vision_encoder.class_embedding": torch.randn(width) * 0.3,
        "vision_encoder.positional_embedding": torch.randn(1 + num_patches, width) * 0.3,
        "vision_encoder.temporal_positional_embedding": torch.randn(1, num_frames, width) * 0.3,
        "vision_encoder.proj": torch.randn(width, output_dim) * width**-0.5,
        "text_encoder.token_embedding.weight": torch.randn(vocabulary, text_width) * 0.5,
        "text_encoder.positional_embedding": torch.randn(32, text_width) * 0.3,
        "text_encoder.text_projection": torch.randn(text_width, output_dim) * text_width**-0.5,
    }
    norms = ("vision_encoder.ln_pre", "vision_encoder.ln_post", "text_encoder.ln_final")
    sizes = {"vision_encoder": (width, num_blocks), "text_encoder": (text_width, text_blocks)}
    for name in norms:
        _add_norm(weights, name, sizes[name.split(".")[0]][0])
    for prefix, (size, blocks) in sizes.items():
        for index in range(blocks):
            stem = f"{prefix}.transformer.resblocks.{index}"
            _add_norm(weights, f"{stem}.ln_1", size)
            _add_norm(weights, f"{stem}.ln_2", size)
            _add_linear(weights, f"{stem}.attn.in_proj_", size, 3 * size)
            _add_linear(weights, f"{stem}.attn.out_proj.", size, size)
            _add_linear(weights, f"{stem}.mlp.c_fc.", size, 4 * size)
            _add_linear(weights, f"{stem}.mlp.c_proj.", 4 * size, size)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": weights}, file)
    return file


def _add_norm(weights: dict[str, Tensor], name: str, size: int) -> None:
    weights[f"{name}.weight"] = 1 + 0.1 * torch.randn(size)
    weights[f"{name}.bias"] = 0.1 * torch.randn(size)


def _add_linear(weights: dict[str, Tensor], name: str, width_in: int, width_out: int) -> None:
    weights[f"{name}weight"] = torch.randn(width_out, width_in) * width_in**-0.5
    weights[f"{name}bias"] = 0.1 * torch.randn(width_out)


def _widen(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.mul_(SPREAD)
            elif name.endswith("bias"):
                weight.normal_(0, 0.1)


def _write_preprocessing(folder: Path, resize_px: int, crop_px: int, mean: Any, std: Any) -> None:
    facts = {
        "size": {"shortest_edge": resize_px},
        "crop_size": {"height": crop_px, "width": crop_px},
        "resample": 3,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(facts, indent=1))


def _byte_letters() -> list[str]:
    """The printable characters that stand for the 256 bytes, in the order of GPT-2's table."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _merges() -> list[tuple[str, str]]:
    """A few merges, so that words are more than letters."""
    return [
        ("t", "h"), ("th", "e</w>"), ("i", "n"), ("in", "g</w>"), ("a", "n"), ("an", "d</w>"), ("e", "r</w>"),
        ("r", "e"), ("re", "d</w>"), ("o", "n</w>"), ("'", "s</w>"), ("c", "a"), ("ca", "t</w>"),
    ]  # fmt: skip


def _vocabulary_size() -> int:
    return 2 * len(_byte_letters()) + len(_merges()) + 2


def _write_tokenizer(folder: Path) -> int:
    """CLIP's tokenizer over bytes and a few merges; returns how many ids it has, the last being the end's."""
    letters = _byte_letters()
    merges = _merges()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(
        json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8"
    )
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_TOKENS})
    )
    return len(words)
