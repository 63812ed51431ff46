"""Adapters (LoRA) merged into a transformer of diffusers, by diffusers' and peft's own loaders.

Key styles: diffusers' and peft's (`transformer.blocks.0.attn1.to_q.lora_A.weight`), musubi's
(`lora_unet_blocks_0_self_attn_q.lora_down.weight`), and that of ComfyUI and LightX2V
(`diffusion_model.blocks.0.self_attn.q.lora_down.weight`), the last also without its prefix.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel, WanVACETransformer3DModel
from diffusers.loaders import WanLoraLoaderMixin
from torch import Tensor

from reference.weights import load_weights, read_json, read_tensors

__all__ = ["Lora", "MergedLora", "load_merged", "merge_loras", "read_adapter"]


@dataclass(frozen=True)
class Lora:
    """An adapter file and its strength. expert: which of two transformers takes it, None for every one."""

    path: Path
    scale: float = 1.0
    expert: int | None = None


@dataclass(frozen=True)
class MergedLora:
    """What was merged: the file by name and hash, its strength, and how many layers it changed.

    dropped: names of values that are not zero and that diffusers' loader has no place for, such as changes of norms.
    """

    file: str
    sha256: str
    scale: float
    expert: int | None
    num_layers: int
    dropped: tuple[str, ...] = ()


def load_merged(
    folder: Path, loras: Sequence[Lora], dtype: torch.dtype | None = None
) -> tuple[dict[str, Tensor], list[MergedLora]]:
    """The weights of a transformer's folder with adapters merged, under diffusers' names.

    dtype: what the weights are converted to before the merge, None for their own.
    Raises ValueError for an adapter that does not fit, FileNotFoundError for a missing file.
    """
    config = read_json(folder / "config.json")
    is_vace = config.get("_class_name") == "WanVACETransformer3DModel"
    with torch.device("meta"):
        model = (WanVACETransformer3DModel if is_vace else WanTransformer3DModel).from_config(config)
    weights = load_weights(folder)
    if dtype is not None:
        weights = {name: weight.to(dtype) for name, weight in weights.items()}
    model.load_state_dict(weights, assign=True)
    return merge_loras(model, loras)


def merge_loras(model: Any, loras: Sequence[Lora]) -> tuple[dict[str, Tensor], list[MergedLora]]:
    """Merge adapters into a transformer of diffusers, in place and one after the other. Raises ValueError."""
    notes = []
    for lora in loras:
        adapter, dropped = read_adapter(lora.path)
        layers = {name.split(".lora_")[0].removeprefix("transformer.") for name in adapter}
        unknown = sorted(layers - {name for name, _ in model.named_modules()})
        if unknown:
            raise ValueError(
                f"{lora.path}: it changes {unknown[0]}, which this transformer does not have; take an "
                "adapter that was trained for this model"
            )
        weights = model.state_dict()
        for name, value in adapter.items():
            layer, part = name.removeprefix("transformer.").rsplit(".lora_", 1)
            axis = {"A.weight": 1, "B.weight": 0}.get(part)
            if axis is not None and value.shape[axis] != weights[f"{layer}.weight"].shape[axis]:
                raise ValueError(
                    f"{lora.path}: {layer} is changed by {tuple(value.shape)} and is itself "
                    f"{tuple(weights[f'{layer}.weight'].shape)}; take an adapter that was trained for this model"
                )
        try:
            WanLoraLoaderMixin.load_lora_into_transformer(adapter, model, adapter_name="merged")
            model.fuse_lora(lora_scale=lora.scale, adapter_names=["merged"])
            model.unload_lora()
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise ValueError(
                f"{lora.path}: {reason}; take an adapter that was trained for this model"
            ) from None
        sha256 = hashlib.sha256(lora.path.read_bytes()).hexdigest()
        notes.append(MergedLora(lora.path.name, sha256, lora.scale, lora.expert, len(layers), dropped))
    return dict(model.state_dict()), notes


def read_adapter(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """An adapter file under diffusers' names, and the names of what diffusers drops though it is not zero.

    Raises ValueError for a file that is no adapter in one of the styles above.
    """
    try:
        raw = read_tensors(path)
    except Exception as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(
            f"{path} is not a safetensors file ({error}); convert or download it again"
        ) from None
    prefix = next((p for pattern, p in _MISSING_PREFIXES if any(re.match(pattern, name) for name in raw)), "")
    raw = {prefix + name.removeprefix("base_model.model."): value for name, value in raw.items()}
    if any("dora_scale" in name for name in raw):
        raise ValueError(f"{path} is a DoRA, which cannot be merged as a LoRA; take a plain LoRA")
    try:
        adapter: dict[str, Tensor] = WanLoraLoaderMixin.lora_state_dict(dict(raw))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: its names are in no style that is read ({error})") from None
    if not adapter or not all(name.startswith("transformer.") and "lora" in name for name in adapter):
        odd = next((name for name in adapter if "lora" not in name), next(iter(raw), "nothing"))
        raise ValueError(
            f"{path}: it holds {odd}; expected a LoRA with names of diffusers, musubi, ComfyUI or LightX2V"
        )
    kept = {id(value) for value in adapter.values()}
    changes = (name for name in raw if name.endswith((".diff", ".diff_b")))
    dropped = sorted(name for name in changes if id(raw[name]) not in kept and raw[name].count_nonzero())
    return adapter, tuple(dropped)


# Names without the prefix that diffusers tells a style by, and the prefix.
_MISSING_PREFIXES = (
    (r"blocks\.\d+\.(self_attn|cross_attn|ffn\.\d)", "diffusion_model."),
    (r"(base_model\.model\.)?blocks\.\d+\.(attn\d|ffn\.net)", "transformer."),
)
