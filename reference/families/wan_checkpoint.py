"""Wan checkpoints in the layout of diffusers, loaded as they are.

| `_class_name` of model_index.json | what is run |
| --- | --- |
| WanPipeline | Wan 2.1 T2V (1.3B, 14B), 2.2 TI2V-5B, 2.2 T2V-A14B with two experts |
| WanImageToVideoPipeline | Wan 2.2 TI2V-5B: a first frame in the sequence |
| WanVideoToVideoPipeline | Wan 2.1 T2V, beginning with a noised source |
| WanVACEPipeline | Wan 2.1 VACE (1.3B, 14B) |
| LucyEditPipeline | Lucy-Edit: a source in the channels |
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from transformers import UMT5EncoderModel

from reference.families.wan import WanConfig, WanTransformer
from reference.families.wan_config import (
    NEGATIVE_PROMPT,
    PIPELINES,
    WanSchedule,
    limits_of,
    read_scheduler,
    read_transformer,
)
from reference.families.wan_weights import build_transformer
from reference.lora import EXPERTS, Lora, MergedLora, load_merged
from reference.tokenizers import find_tokenizer_model
from reference.vae import UNUSED_VAE_FIELDS, check_vae
from reference.weights import load_part, load_weights, read_fields, read_json

__all__ = ["NEGATIVE_PROMPT", "WanCheckpoint", "load_wan"]

_PARTS = {
    "vae": ("AutoencoderKLWan",),
    "text_encoder": ("UMT5EncoderModel",),
    "tokenizer": ("T5Tokenizer", "T5TokenizerFast", "TokenizersBackend", "PreTrainedTokenizerFast"),
    "scheduler": ("UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"),
}
_UNUSED_PARTS = ("image_encoder", "image_processor")
A14B_GUIDANCE = (4.0, 3.0)
"""What Wan 2.2's repository guides its two experts with, the one for high noise first."""
NOISED_STRENGTH = 0.8
"""WanVideoToVideoPipeline's default share of the steps that is run."""


@dataclass(frozen=True)
class WanCheckpoint:
    """A loaded checkpoint: modules in eval mode, the tokenizer's file, and plain facts.

    transformers: one, or the expert for high noise and the one for low noise. strength: for a noised source,
    the share of the steps that is run by default, else None. tokenizer_file: a SentencePiece model, which is
    the folder's own or lies in a temporary folder for as long as this object lives.
    """

    pipeline: str
    transformers: tuple[WanTransformer, ...]
    vae: AutoencoderKLWan
    text_encoder: UMT5EncoderModel
    tokenizer_file: Path
    schedule: WanSchedule
    limits: dict[str, float]
    negative_prompt: str = NEGATIVE_PROMPT
    strength: float | None = None
    merged: tuple[MergedLora, ...] = ()
    _held: Any = field(default=None, repr=False)

    @property
    def transformer(self) -> WanTransformer:
        return self.transformers[0]

    @property
    def config(self) -> WanConfig:
        return self.transformer.config

    @property
    def patch_size(self) -> int:
        return self.config.patch_size


def load_wan(
    folder: str | Path, *, dtype: torch.dtype | None = None, loras: Sequence[Lora] = ()
) -> WanCheckpoint:
    """Read a checkpoint folder. Weights are mapped from their files, and keep the dtypes they have.

    dtype: what the transformers and the text encoder are converted to, None to leave them; the VAE is always
    float32. loras: adapters that are merged into the transformers (reference/lora.py); of two experts each names one.
    Raises ValueError for a class, a field or a value that is not run, and for an adapter of no or another expert;
    FileNotFoundError for a missing file.
    """
    root = Path(folder)
    index_path = root / "model_index.json"
    index = read_json(index_path)
    pipeline = str(index.get("_class_name"))
    names = _read_index(index_path, index, pipeline)
    _check_experts(index_path, loras, len(names))
    schedule = _read_schedule(root, index, len(names))
    clean_timestep = bool(index.get("expand_timesteps"))
    transformers, merged = [], []
    for expert, name in enumerate(names):
        config = read_transformer(
            root / name / "config.json",
            read_json(root / name / "config.json"),
            clean_timestep=clean_timestep,
            rounds_timestep=schedule.told == "floor",
        )
        _check_source(index_path, pipeline, config)
        chosen = [lora for lora in loras if (lora.expert or 0) == expert]
        if chosen:
            weights, notes = load_merged(root / name, chosen, dtype)
            merged += notes
        else:
            weights = load_weights(root / name)
            if dtype is not None:
                weights = {key: weight.to(dtype) for key, weight in weights.items()}
        transformers.append(build_transformer(config, weights))
    if transformers[-1].config != transformers[0].config:
        raise ValueError(
            f"{root}: the config.json of {names[0]} and of {names[1]} give other sizes; expected the same: take the "
            "two of one checkpoint"
        )
    vae_config = root / "vae" / "config.json"
    read_fields(vae_config, read_json(vae_config), AutoencoderKLWan, UNUSED_VAE_FIELDS)
    vae = load_part(AutoencoderKLWan, root / "vae", torch_dtype=torch.float32)
    check_vae(vae)
    config = transformers[0].config
    if vae.config.z_dim != config.latent_channels:
        raise ValueError(
            f"{root}: the VAE's z_dim is {vae.config.z_dim} and the transformer's latents have "
            f"{config.latent_channels} channels; take the two of one checkpoint"
        )
    text_encoder = load_part(
        UMT5EncoderModel, root / "text_encoder", dtype="auto" if dtype is None else dtype
    )
    if text_encoder.config.d_model != config.text_dim:
        raise ValueError(
            f"{root}: the text encoder's d_model is {text_encoder.config.d_model} and the transformer's "
            f"text_dim {config.text_dim}; take the two of one checkpoint"
        )
    for module in (vae, text_encoder):
        module.eval().requires_grad_(False)
    tokenizer_file, held = _tokenizer_file(root / "tokenizer")
    return WanCheckpoint(
        pipeline=pipeline,
        transformers=tuple(transformers),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer_file=tokenizer_file,
        schedule=schedule,
        limits=limits_of(config),
        strength=NOISED_STRENGTH if pipeline == "WanVideoToVideoPipeline" else None,
        merged=tuple(merged),
        _held=held,
    )


def _read_index(path: Path, index: dict[str, Any], pipeline: str) -> list[str]:
    """The folders of the transformers. Raises ValueError for parts that are not run."""
    if pipeline not in PIPELINES:
        raise ValueError(f"{path}: _class_name is {pipeline!r}; expected one of {', '.join(PIPELINES)}")
    known = {*_PARTS, *_UNUSED_PARTS, "transformer", "transformer_2", "boundary_ratio", "expand_timesteps"}
    for name in sorted(key for key in index.keys() - known if not key.startswith("_")):
        raise ValueError(f"{path}: {name} is a part that {pipeline} is not run with; take it out")
    for part, classes in _PARTS.items():
        found = _class_of(index, part)
        if found not in classes:
            raise ValueError(f"{path}: {part} is {found}; expected {' or '.join(classes)}")
    for part in _UNUSED_PARTS:
        if _class_of(index, part) is not None:
            raise ValueError(
                f"{path}: {part} is {_class_of(index, part)}; expected none: of image-to-video checkpoints "
                "Wan 2.2 TI2V-5B is run"
            )
    if pipeline == "WanImageToVideoPipeline" and not index.get("expand_timesteps"):
        raise ValueError(
            f"{path}: expand_timesteps is {index.get('expand_timesteps')!r}; expected true: of "
            "image-to-video checkpoints Wan 2.2 TI2V-5B is run"
        )
    cls = "WanVACETransformer3DModel" if pipeline == "WanVACEPipeline" else "WanTransformer3DModel"
    names = ["transformer", *(["transformer_2"] if _class_of(index, "transformer_2") else [])]
    for name in names:
        if _class_of(index, name) != cls:
            raise ValueError(f"{path}: {name} is {_class_of(index, name)}; expected {cls}")
    boundary = index.get("boundary_ratio")
    if (boundary is not None) != (len(names) == 2):
        raise ValueError(
            f"{path}: boundary_ratio is {boundary!r} with {len(names)} transformers; expected one between 0 "
            "and 1 for two, and null for one"
        )
    return names


def _check_experts(path: Path, loras: Sequence[Lora], num_experts: int) -> None:
    """Of two experts each adapter names its own, of one transformer none names any. Raises ValueError."""
    for lora in loras:
        if num_experts == len(EXPERTS) and lora.expert is None:
            raise ValueError(
                f"{path}: it has two transformers, one for high noise and one for low, and {lora.path} names none of "
                f"them; expected the one that it was trained for: write {lora.path.name}@high or {lora.path.name}@low, "
                "and give it twice for both"
            )
        if num_experts == 1 and lora.expert is not None:
            raise ValueError(
                f"{path}: {lora.path} is for the transformer for {EXPERTS[lora.expert]} noise, of two; expected an "
                f"adapter of a checkpoint with one transformer: leave @{EXPERTS[lora.expert]} out if it is one"
            )


def _class_of(index: dict[str, Any], part: str) -> str | None:
    value = index.get(part)
    return None if value is None else str(value[1]) if value[1] is not None else None


def _read_schedule(root: Path, index: dict[str, Any], num_experts: int) -> WanSchedule:
    path = root / "scheduler" / "scheduler_config.json"
    schedule = read_scheduler(path, read_json(path))
    if num_experts == 1:
        return schedule
    boundary = float(index["boundary_ratio"])
    return replace(schedule, num_inference_steps=40, guidance_scales=A14B_GUIDANCE, boundary=boundary)


def _check_source(path: Path, pipeline: str, config: WanConfig) -> None:
    expected = {"LucyEditPipeline": "channels", "WanVACEPipeline": "control"}.get(pipeline, "rows")
    if config.source != expected:
        raise ValueError(
            f"{path}: {pipeline} with a transformer that takes its source as {config.source}; expected "
            f"{expected}: write the pipeline that the transformer was trained for into _class_name"
        )


def _tokenizer_file(folder: Path) -> tuple[Path, Any]:
    """The folder's SentencePiece model, or one made for it and what keeps that on disk."""
    model, own = find_tokenizer_model(folder, [NEGATIVE_PROMPT]), folder / "spiece.model"
    if own.is_file() and own.read_bytes() == model:
        return own, None
    held = tempfile.TemporaryDirectory(prefix="tokenizer-")
    path = Path(held.name) / "spiece.model"
    path.write_bytes(model)
    return path, held
