"""EditVerse checkpoints: read, written, and made with random weights.

model_index.json         which class each part is; under "editverse", the sizes it was trained for
transformer/             config.json, diffusion_pytorch_model.safetensors (or shards and their index)
vae/  text_encoder/      as diffusers and transformers save them
tokenizer/spiece.model   SentencePiece, as Flan-T5 has it
scheduler/               scheduler_config.json: how many Euler steps, and the guidance (section 5.1)
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from diffusers import AutoencoderKLWan
from transformers import T5Config, T5EncoderModel

from reference.families.editverse import CONFIGS, EditVerseTransformer, TransformerConfig
from reference.random_weights import fill_randomly, random_sentences, train_tokenizer
from reference.vae import UNUSED_VAE_FIELDS, check_vae
from reference.weights import (
    assign_weights,
    existing,
    forget_origin,
    load_part,
    load_weights,
    read_fields,
    read_json,
    save_weights,
    write_json,
)

__all__ = [
    "LIMITS",
    "PAPER_SCHEDULE",
    "EditVerseCheckpoint",
    "check_steps",
    "load_editverse",
    "make_random_editverse",
    "patch_size_of",
    "save_checkpoint",
]

TOKENIZER_FILE = "spiece.model"
PAPER_SCHEDULE = {"num_inference_steps": 50, "guidance_scale": 5.0}

# What a checkpoint says of the sizes it takes; the names are those of the runtime's geometry.
LIMITS: dict[str, dict[str, float]] = {
    "nano": {  # 64 x 64, 48 x 80 and 80 x 48 were trained on: grids of these rows and columns
        "min_area_px": 48 * 64,
        "max_area_px": 64 * 80,
        "max_side_px": 128,
        "max_frames": 17,
        "default_height_px": 64,
        "default_width_px": 64,
        "default_frames": 9,
        "default_fps": 8.0,
        "max_text_tokens": 128,
    },
    "editverse-2b": {
        "min_area_px": 256 * 256,
        "max_area_px": 512 * 512,
        "max_side_px": 1024,
        "max_frames": 81,
        "default_height_px": 320,
        "default_width_px": 576,
        "default_frames": 81,
        "default_fps": 16.0,
        "max_text_tokens": 512,
    },
}
LIMITS["editverse-150m"] = LIMITS["editverse-2b"]


@dataclass(frozen=True)
class EditVerseCheckpoint:
    """A loaded checkpoint: three modules in eval mode, the tokenizer's file, and plain facts."""

    transformer: EditVerseTransformer
    vae: AutoencoderKLWan
    text_encoder: T5EncoderModel
    tokenizer_file: Path
    scheduler: dict[str, Any]
    limits: dict[str, float]

    @property
    def patch_size(self) -> int:
        return patch_size_of(self.transformer.config, self.vae)


def patch_size_of(config: TransformerConfig, vae: AutoencoderKLWan) -> int:
    """Side p of the transformer's 1 x p x p patches of latents (section 3.1).

    Raises ValueError when patch_dim is not z_dim * p * p for a whole p.
    """
    z_dim = vae.config.z_dim
    for p in itertools.takewhile(lambda side: z_dim * side * side <= config.patch_dim, itertools.count(1)):
        if z_dim * p * p == config.patch_dim:
            return p
    raise ValueError(
        f"the transformer's patch_dim is {config.patch_dim}; expected {z_dim} * p * p, the VAE's z_dim being "
        f"{z_dim}: take a transformer and a VAE that were trained together"
    )


def check_steps(scheduler: Mapping[str, Any], num_inference_steps: int, guidance_scale: float = 1.0) -> None:
    """Hold a request to the steps and the guidance that a distilled checkpoint was made for.

    scheduler: scheduler_config.json, whose "is_fixed" says that no others have a meaning; without it all are taken.
    Raises ValueError for other steps, or for guidance.
    """
    if not scheduler.get("is_fixed"):
        return
    own = int(scheduler["num_inference_steps"])
    if num_inference_steps != own:
        raise ValueError(
            f"{num_inference_steps} steps; this checkpoint was distilled for {own}: leave the number of steps out, or "
            "take the checkpoint that it was made from"
        )
    if guidance_scale != 1:
        raise ValueError(
            f"guidance {guidance_scale:g}; this checkpoint has its guidance in its weights: give 1, or take the "
            "checkpoint that it was made from"
        )


def save_checkpoint(
    folder: str | Path,
    *,
    transformer: EditVerseTransformer,
    vae: AutoencoderKLWan,
    text_encoder: T5EncoderModel,
    tokenizer_file: str | Path,
    limits: dict[str, float],
    scheduler: dict[str, Any] | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> Path:
    """Write a checkpoint folder; what it already holds is overwritten. Weights keep the dtype they have.

    limits: the sizes that the model was trained for, the keys of `LIMITS["nano"]`. A transformer beyond
    max_shard_bytes is cut into shards with an index.
    """
    missing = LIMITS["nano"].keys() - limits.keys()
    if missing:
        raise ValueError(f"limits lack {', '.join(sorted(missing))}; give all of {', '.join(LIMITS['nano'])}")
    root = Path(folder)
    write_json(root / "model_index.json", _model_index(limits))
    write_json(root / "transformer" / "config.json", transformer.config.to_dict())
    save_weights(root / "transformer", dict(transformer.state_dict()), max_shard_bytes)
    vae.save_pretrained(root / "vae")
    forget_origin(root / "vae" / "config.json")
    text_encoder.save_pretrained(root / "text_encoder")
    tokenizer = root / "tokenizer" / TOKENIZER_FILE
    tokenizer.parent.mkdir(parents=True, exist_ok=True)
    if Path(tokenizer_file).resolve() != tokenizer.resolve():
        shutil.copyfile(tokenizer_file, tokenizer)
    schedule = PAPER_SCHEDULE if scheduler is None else scheduler
    write_json(
        root / "scheduler" / "scheduler_config.json", {"_class_name": "EulerFlowScheduler", **schedule}
    )
    return root


def load_editverse(folder: str | Path, *, dtype: torch.dtype | None = None) -> EditVerseCheckpoint:
    """Read a checkpoint folder, the modules in eval mode without gradients.

    dtype: that of the transformer and the text encoder, None for the one they were saved in. The VAE is
    always float32, since it decides on grey levels.
    Raises ValueError for a part of another class, for a field that is not known, missing or out of its range, and for
    parts that do not fit each other; FileNotFoundError for a part that is not there.
    """
    root = Path(folder)
    index = read_json(root / "model_index.json")
    for part, (_, class_name) in _PARTS.items():
        found = _class_of(index.get(part))
        if found != class_name:
            raise ValueError(f"{root / 'model_index.json'}: {part} is {found}; expected {class_name}")
    limits = _read_limits(root / "model_index.json", index)
    scheduler = _read_scheduler(root / "scheduler" / "scheduler_config.json")
    config = _read_config(root / "transformer" / "config.json")
    with torch.device("meta"):
        transformer = EditVerseTransformer(config)
    weights = load_weights(root / "transformer")
    if dtype is not None:
        weights = {name: weight.to(dtype) for name, weight in weights.items()}
    assign_weights(transformer, weights)
    vae_config = root / "vae" / "config.json"
    read_fields(vae_config, read_json(vae_config), AutoencoderKLWan, UNUSED_VAE_FIELDS)
    vae = load_part(AutoencoderKLWan, root / "vae", torch_dtype=torch.float32)
    check_vae(vae)
    patch_size_of(config, vae)
    text_encoder = load_part(T5EncoderModel, root / "text_encoder", dtype="auto" if dtype is None else dtype)
    if text_encoder.config.d_model != config.text_dim:
        raise ValueError(
            f"{root}: the text encoder's d_model is {text_encoder.config.d_model} and the transformer's "
            f"text_dim {config.text_dim}; take the two of one checkpoint"
        )
    for module in (transformer, vae, text_encoder):
        module.eval().requires_grad_(False)
    return EditVerseCheckpoint(
        transformer=transformer,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer_file=existing(root / "tokenizer" / TOKENIZER_FILE),
        scheduler=scheduler,
        limits=limits,
    )


def _class_of(part: object) -> str | None:
    """The class of a part in model_index.json, ["library", "class"]."""
    return str(part[1]) if isinstance(part, list) and len(part) == 2 and part[1] is not None else None


def _read_config(path: Path) -> TransformerConfig:
    facts = read_json(path)
    try:
        return TransformerConfig.from_dict(facts)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; take the config.json that the weights were saved with") from None


def _read_limits(path: Path, index: Mapping[str, Any]) -> dict[str, float]:
    """The sizes that a model was trained for, from its model_index.json. Raises ValueError for one that lacks."""
    limits = index.get("editverse")
    if not isinstance(limits, dict):
        raise ValueError(
            f"{path}: editverse is {limits!r}; expected an object of {', '.join(LIMITS['nano'])}"
        )
    for name in LIMITS["nano"]:
        _check_positive(path, f"editverse.{name}", limits.get(name))
    return limits


def _read_scheduler(path: Path) -> dict[str, Any]:
    """scheduler_config.json with the numbers that every schedule begins from. Raises ValueError for one that lacks."""
    scheduler = read_json(path)
    for name in PAPER_SCHEDULE:
        _check_positive(path, name, scheduler.get(name))
    return scheduler


def _check_positive(path: Path, name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
        raise ValueError(f"{path}: {name} is {value!r}; expected a number above 0")


_PARTS = {
    "transformer": ("reference.families.editverse", "EditVerseTransformer"),
    "vae": ("diffusers", "AutoencoderKLWan"),
    "text_encoder": ("transformers", "T5EncoderModel"),
    "tokenizer": ("sentencepiece", "SentencePieceProcessor"),
    "scheduler": ("reference.sampler", "EulerFlowScheduler"),
}


def _model_index(limits: dict[str, float]) -> dict[str, Any]:
    return {"_class_name": "EditVersePipeline", **_PARTS, "editverse": limits}


def make_random_editverse(
    config_name: str,
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    tokenizer_file: str | Path | None = None,
    seed: int = 0,
    max_shard_bytes: int = 5_000_000_000,
    transformer_overrides: dict[str, Any] | None = None,
    vae_overrides: dict[str, Any] | None = None,
    text_overrides: dict[str, Any] | None = None,
) -> Path:
    """A checkpoint of the right shapes with random weights, to try an export; its pictures mean nothing.

    The transformer has the sizes of `CONFIGS[config_name]`. The VAE and the text encoder are small in either
    case: only the text encoder's width is the model's, its layers are two narrow ones. The overrides change
    single arguments of the transformer's config, of the VAE and of the text encoder's config.
    """
    config = replace(CONFIGS[config_name], **(transformer_overrides or {}))
    with torch.device("meta"):
        transformer = EditVerseTransformer(config).to(dtype)
    transformer.to_empty(device="cpu")
    fill_randomly(transformer, seed)
    torch.manual_seed(seed)
    z_dim = config.patch_dim // 4  # a patch is two by two latents
    statistics = torch.rand((2, z_dim)).tolist()
    layout: dict[str, Any] = {
        "base_dim": 8, "z_dim": z_dim, "dim_mult": [1, 2, 4], "num_res_blocks": 1, "attn_scales": [],
        "temperal_downsample": [True, True], "patch_size": 2, "in_channels": 12, "out_channels": 12,
        "scale_factor_temporal": 4, "scale_factor_spatial": 8,
        "latents_mean": statistics[0], "latents_std": [0.5 + value for value in statistics[1]],
    }  # fmt: skip
    vae = AutoencoderKLWan(**(layout | (vae_overrides or {})))
    fill_randomly(vae, seed)
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    if tokenizer_file is None:
        (root / "tokenizer").mkdir(exist_ok=True)
        tokenizer_file = train_tokenizer(
            random_sentences(), root / "tokenizer" / TOKENIZER_FILE, vocab_size=384
        )
    vocab_size = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_file)).vocab_size()
    text_layout: dict[str, Any] = {
        "vocab_size": vocab_size, "d_model": config.text_dim, "d_kv": 32, "d_ff": 128, "num_layers": 2,
        "num_heads": 2, "feed_forward_proj": "gated-gelu", "dropout_rate": 0.0, "tie_word_embeddings": False,
    }  # fmt: skip
    text_encoder = T5EncoderModel(T5Config(**(text_layout | (text_overrides or {})))).to(dtype)
    return save_checkpoint(
        root,
        transformer=transformer,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer_file=tokenizer_file,
        limits=LIMITS[config_name],
        max_shard_bytes=max_shard_bytes,
    )
