"""Wan checkpoints with random weights, in the layout of diffusers, which opens them too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import sentencepiece
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel, WanVACETransformer3DModel
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from reference.families.wan_config import NEGATIVE_PROMPT
from reference.random_weights import fill_randomly, random_sentences, train_tokenizer
from reference.weights import forget_origin, save_weights, write_json

__all__ = ["RANDOM", "fill_transformer", "make_random_wan"]

_TINY = {"num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 96, "num_layers": 3, "text_dim": 32,
         "freq_dim": 64}  # fmt: skip
_1B3 = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30}
_5B = {"num_attention_heads": 24, "attention_head_dim": 128, "ffn_dim": 14336, "num_layers": 30,
       "in_channels": 48, "out_channels": 48}  # fmt: skip
_14B = {"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "num_layers": 40}
_Z48 = {"in_channels": 48, "out_channels": 48}
_LUCY = {"in_channels": 96, "out_channels": 48}


@dataclass(frozen=True)
class _Recipe:
    """A pipeline's class, its transformer's arguments, and what model_index.json says besides.

    residual: the VAE of Wan 2.2. experts: how many transformers.
    """

    pipeline: str
    transformer: dict[str, Any]
    shift: float
    residual: bool = False
    experts: int = 1
    index: Mapping[str, Any] = field(default_factory=dict)


_TI2V = {"expand_timesteps": True, "boundary_ratio": None}
_A14B = {"expand_timesteps": False, "boundary_ratio": 0.875}
_VACE_TINY = {"vace_layers": [0, 2], "vace_in_channels": 96}

RANDOM: dict[str, _Recipe] = {
    "wan-t2v-tiny": _Recipe("WanPipeline", _TINY, 3.0),
    "wan-v2v-tiny": _Recipe("WanVideoToVideoPipeline", _TINY, 3.0),
    "wan-ti2v-tiny": _Recipe("WanImageToVideoPipeline", _TINY | _Z48, 5.0, residual=True, index=_TI2V),
    "wan-ti2v-text-tiny": _Recipe("WanPipeline", _TINY | _Z48, 5.0, residual=True, index=_TI2V),
    "wan-a14b-tiny": _Recipe("WanPipeline", _TINY, 3.0, experts=2, index=_A14B),
    "wan-vace-tiny": _Recipe("WanVACEPipeline", _TINY | _VACE_TINY, 3.0),
    "lucy-tiny": _Recipe("LucyEditPipeline", _TINY | _LUCY, 5.0, residual=True, index=_TI2V),
    "wan2.1-t2v-1.3b": _Recipe("WanPipeline", _1B3, 3.0),
    "wan2.1-v2v-1.3b": _Recipe("WanVideoToVideoPipeline", _1B3, 3.0),
    "wan2.1-vace-1.3b": _Recipe("WanVACEPipeline", _1B3 | {"vace_layers": list(range(0, 30, 2))}, 3.0),
    "wan2.1-t2v-14b": _Recipe("WanPipeline", _14B, 5.0),
    "wan2.1-vace-14b": _Recipe("WanVACEPipeline", _14B | {"vace_layers": list(range(0, 40, 5))}, 5.0),
    "wan2.2-ti2v-5b": _Recipe("WanImageToVideoPipeline", _5B, 5.0, residual=True, index=_TI2V),
    "wan2.2-t2v-a14b": _Recipe("WanPipeline", _14B, 3.0, experts=2, index=_A14B),
    "lucy-edit-5b": _Recipe("LucyEditPipeline", _5B | _LUCY, 5.0, residual=True, index=_TI2V),
}


def make_random_wan(
    name: str,
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    tokenizer_file: str | Path | None = None,
    seed: int = 0,
    blocks: int | None = None,
    max_shard_bytes: int = 5_000_000_000,
    transformer_overrides: Mapping[str, Any] | None = None,
    vae_overrides: Mapping[str, Any] | None = None,
    text_overrides: Mapping[str, Any] | None = None,
) -> Path:
    """A checkpoint of the right shapes with random weights; its pictures mean nothing.

    name: a key of `RANDOM`. blocks: how many of the transformer's blocks, for a trial at full width in less
    memory; VACE keeps the control blocks that still have a place. The VAE and the text encoder are narrow
    unless the overrides, arguments of their classes, say otherwise; the text encoder's width is the model's.
    """
    recipe, root = RANDOM[name], Path(folder)
    arguments: dict[str, Any] = {**recipe.transformer, **(transformer_overrides or {})}
    if blocks is not None:
        arguments["num_layers"] = blocks
        if "vace_layers" in arguments:
            arguments["vace_layers"] = [layer for layer in arguments["vace_layers"] if layer < blocks]
    is_vace = "vace_layers" in arguments
    cls = WanVACETransformer3DModel if is_vace else WanTransformer3DModel
    index: dict[str, Any] = {"_class_name": recipe.pipeline, "_diffusers_version": diffusers.__version__}
    for expert, part in enumerate(["transformer", "transformer_2"][: recipe.experts]):
        with torch.device("meta"):
            model = cls(**arguments)
        nn.Module.to(model, dtype)  # the class's own warns of parts that it would rather keep in float32
        model.to_empty(device="cpu")
        fill_transformer(model, seed + expert)
        model.save_config(root / part)
        save_weights(root / part, dict(model.state_dict()), max_shard_bytes)
        index[part] = ["diffusers", cls.__name__]
        text_dim, z_dim = model.config.text_dim, model.config.out_channels
        del model
    _save_vae(root / "vae", recipe.residual, z_dim, seed, vae_overrides or {})
    vocab_size = _save_tokenizer(root / "tokenizer", tokenizer_file)
    _save_text_encoder(root / "text_encoder", text_dim, vocab_size, dtype, seed, text_overrides or {})
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=recipe.shift
    )
    scheduler.save_pretrained(root / "scheduler")
    index |= {
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "vae": ["diffusers", "AutoencoderKLWan"],
        **recipe.index,
    }
    write_json(root / "model_index.json", index)
    return root


@torch.no_grad()
def fill_transformer(model: nn.Module, seed: int) -> None:
    """Values that keep activations near 1. Weights of norms are near 1; biases and tables are small."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        weight.normal_(0, 1, generator=generator)
        if weight.ndim > 1 and weight[0].numel() > 1 and "scale_shift_table" not in name:
            weight.mul_(weight[0].numel() ** -0.5)
        else:
            weight.mul_(0.1).add_(1.0 if name.endswith("weight") else 0.0)


def _save_vae(folder: Path, residual: bool, z_dim: int, seed: int, overrides: Mapping[str, Any]) -> None:
    torch.manual_seed(seed)
    statistics = torch.rand((2, z_dim)).tolist()
    layout: dict[str, Any] = {
        "base_dim": 8, "z_dim": z_dim, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1, "attn_scales": [],
        "temperal_downsample": [False, True, True], "is_residual": residual,
        "latents_mean": statistics[0], "latents_std": [0.5 + value for value in statistics[1]],
    }  # fmt: skip
    if residual:
        layout |= {"patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16}
    vae = AutoencoderKLWan(**(layout | dict(overrides)))
    fill_randomly(vae, seed)
    vae.save_pretrained(folder)
    forget_origin(folder / "config.json")


def _save_text_encoder(
    folder: Path, width: int, vocab_size: int, dtype: torch.dtype, seed: int, overrides: Mapping[str, Any]
) -> None:
    layout: dict[str, Any] = {
        "vocab_size": vocab_size, "d_model": width, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2,
        "dropout_rate": 0.0, "tie_word_embeddings": False,
    }  # fmt: skip
    model = UMT5EncoderModel(UMT5Config(**(layout | dict(overrides))))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(0, 1, generator=generator)
            if name.endswith(".q.weight"):  # T5 does not divide its scores by the root of their width
                weight.mul_((weight.shape[1] * model.config.d_kv) ** -0.5)
            elif weight.ndim > 1 and "relative_attention_bias" not in name and "shared" not in name:
                weight.mul_(weight.shape[1] ** -0.5)
            elif weight.ndim == 1:
                weight.mul_(0.1).add_(1.0)
    model.to(dtype).save_pretrained(folder)


def _save_tokenizer(folder: Path, tokenizer_file: str | Path | None) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "spiece.model"
    if tokenizer_file is not None:
        path.write_bytes(Path(tokenizer_file).read_bytes())
    else:
        train_tokenizer([*random_sentences(), NEGATIVE_PROMPT], path, vocab_size=512)
    facts = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return int(sentencepiece.SentencePieceProcessor(model_file=str(path)).vocab_size())
