"""Adapters (LoRA) merged into a transformer of diffusers, by diffusers' and peft's own loaders.

Key styles: diffusers' and peft's (`transformer.blocks.0.attn1.to_q.lora_A.weight`), musubi's
(`lora_unet_blocks_0_self_attn_q.lora_down.weight`), and that of ComfyUI and LightX2V
(`diffusion_model.blocks.0.self_attn.q.lora_down.weight`), the last also without its prefix.

A layer changes by scale * alpha / rank * B A. alpha stands in tensors of its own (musubi, ComfyUI, LightX2V), in the
header of the file (diffusers), or in `adapter_config.json` beside it (peft). Where it stands nowhere, it is the rank.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel, WanVACETransformer3DModel
from diffusers.loaders import WanLoraLoaderMixin
from torch import Tensor

from reference.weights import assign_weights, load_weights, read_header, read_json, read_tensors

__all__ = ["EXPERTS", "Adapter", "Lora", "MergedLora", "load_merged", "merge_loras", "read_adapter"]

EXPERTS = ("high", "low")
"""The noise that each of a checkpoint's two transformers is for, in their order: what an adapter names one by."""
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_HEADER_KEY = "lora_adapter_metadata"


@dataclass(frozen=True)
class Lora:
    """An adapter file and its strength.

    expert: which of two transformers takes it, an index of `EXPERTS`; None for a checkpoint with one transformer.
    Raises ValueError for a strength that is not finite, and for another expert.
    """

    path: Path
    scale: float = 1.0
    expert: int | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(
                f"{self.path}: its scale is {self.scale:g}; expected a finite number, such as 0.8"
            )
        if self.expert not in (None, *range(len(EXPERTS))):
            raise ValueError(
                f"{self.path}: its expert is {self.expert!r}; expected None, 0 (high noise) or 1 (low noise)"
            )


@dataclass(frozen=True)
class Adapter:
    """An adapter file as read, under diffusers' names.

    config: what is said of its strength, as arguments of peft's LoraConfig; None where that is in the tensors alone.
    alpha_from: where alpha stands, "tensors", "header" or "adapter_config.json"; None where it is taken as the rank.
    dropped: as in `MergedLora`.
    """

    tensors: dict[str, Tensor]
    config: dict[str, Any] | None
    alpha_from: str | None
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class MergedLora:
    """What was merged: the file by name and hash, its strength, and how many layers it changed.

    dropped: names of values that are not zero and that diffusers' loader has no place for, such as changes of norms.
    expert and alpha_from: as in `Lora` and in `Adapter`.
    """

    file: str
    sha256: str
    scale: float
    expert: int | None
    num_layers: int
    dropped: tuple[str, ...] = ()
    alpha_from: str | None = None


def load_merged(
    folder: Path, loras: Sequence[Lora], dtype: torch.dtype | None = None
) -> tuple[dict[str, Tensor], list[MergedLora]]:
    """The weights of a transformer's folder with adapters merged, under diffusers' names.

    dtype: what the weights are converted to before the merge, None for their own.
    Raises ValueError for an adapter or weights that do not fit, FileNotFoundError for a missing file.
    """
    config = read_json(folder / "config.json")
    is_vace = config.get("_class_name") == "WanVACETransformer3DModel"
    with torch.device("meta"):
        model = (WanVACETransformer3DModel if is_vace else WanTransformer3DModel).from_config(config)
    weights = load_weights(folder)
    if dtype is not None:
        weights = {name: weight.to(dtype) for name, weight in weights.items()}
    assign_weights(model, weights)
    return merge_loras(model, loras)


def merge_loras(model: Any, loras: Sequence[Lora]) -> tuple[dict[str, Tensor], list[MergedLora]]:
    """Merge adapters into a transformer of diffusers, in place and one after the other. Raises ValueError."""
    notes = []
    for lora in loras:
        adapter = read_adapter(lora.path)
        layers = {_layer_of(name) for name in adapter.tensors}
        unknown = sorted(layers - {name for name, _ in model.named_modules()})
        if unknown:
            raise ValueError(
                f"{lora.path}: it changes {unknown[0]}, which this transformer does not have; take an "
                "adapter that was trained for this model"
            )
        weights = model.state_dict()
        for name, value in adapter.tensors.items():
            layer, part = name.removeprefix("transformer.").rsplit(".lora_", 1)
            axis = {"A.weight": 1, "B.weight": 0}.get(part)
            if axis is not None and value.shape[axis] != weights[f"{layer}.weight"].shape[axis]:
                raise ValueError(
                    f"{lora.path}: {layer} is changed by {tuple(value.shape)} and is itself "
                    f"{tuple(weights[f'{layer}.weight'].shape)}; take an adapter that was trained for this model"
                )
        # The file's own names say which layers it changes, whatever its config says of the model it was trained on.
        config = None if adapter.config is None else {**adapter.config, "target_modules": sorted(layers)}
        try:
            WanLoraLoaderMixin.load_lora_into_transformer(
                adapter.tensors,
                model,
                adapter_name="merged",
                metadata=config and {f"transformer.{name}": value for name, value in config.items()},
            )
            model.fuse_lora(lora_scale=lora.scale, adapter_names=["merged"])
            model.unload_lora()
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise ValueError(
                f"{lora.path}: {reason}; take an adapter that was trained for this model"
            ) from None
        sha256 = hashlib.sha256(lora.path.read_bytes()).hexdigest()
        notes.append(
            MergedLora(
                file=lora.path.name,
                sha256=sha256,
                scale=lora.scale,
                expert=lora.expert,
                num_layers=len(layers),
                dropped=adapter.dropped,
                alpha_from=adapter.alpha_from,
            )
        )
    return dict(model.state_dict()), notes


def read_adapter(path: Path) -> Adapter:
    """An adapter file under diffusers' names, with its alpha.

    Raises ValueError for a file that is no adapter in one of the styles above, for a config with a field that is not
    run, and for alpha in two places. Raises FileNotFoundError for a missing file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected the safetensors file of an adapter")
    try:
        raw = read_tensors(path)
        header = read_header(path)
    except Exception as error:
        raise ValueError(
            f"{path} is not a safetensors file ({error}); convert or download it again"
        ) from None
    config, alpha_from = _find_config(path, header, raw)
    prefix = next((p for pattern, p in _MISSING_PREFIXES if any(re.match(pattern, name) for name in raw)), "")
    raw = {prefix + name.removeprefix("base_model.model."): value for name, value in raw.items()}
    if any("dora_scale" in name or "lora_magnitude_vector" in name for name in raw):
        raise ValueError(f"{path} is a DoRA, which cannot be merged as a LoRA; take a plain LoRA")
    try:
        tensors: dict[str, Tensor] = WanLoraLoaderMixin.lora_state_dict(dict(raw))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: its names are in no style that is read ({error})") from None
    if not tensors or not all(name.startswith("transformer.") and "lora" in name for name in tensors):
        odd = next((name for name in tensors if "lora" not in name), next(iter(raw), "nothing"))
        raise ValueError(
            f"{path}: it holds {odd}; expected a LoRA with names of diffusers, musubi, ComfyUI or LightX2V"
        )
    if config is not None:
        _check_patterns(path, config, {_layer_of(name) for name in tensors})
    kept = {id(value) for value in tensors.values()}
    changes = (name for name in raw if name.endswith((".diff", ".diff_b")))
    dropped = sorted(name for name in changes if id(raw[name]) not in kept and raw[name].count_nonzero())
    return Adapter(tensors, config, alpha_from, tuple(dropped))


def _layer_of(name: str) -> str:
    """The transformer's layer that a tensor of an adapter changes."""
    return name.split(".lora_")[0].removeprefix("transformer.")


def _find_config(
    path: Path, header: Mapping[str, str], names: Iterable[str]
) -> tuple[dict[str, Any] | None, str | None]:
    """What is said of an adapter's strength, and where: in its header, in peft's file beside it, or in its tensors.

    header: that of the file; names: those of its tensors. Raises ValueError as `read_adapter` does.
    """
    names = list(names)
    alpha = next((name for name in names if name.endswith(".alpha")), None)
    beside = path.with_name(PEFT_CONFIG)
    is_peft = path.name == PEFT_FILE or any(name.startswith("base_model.model.") for name in names)
    if _HEADER_KEY in header:
        place, found = "header", f"{path}, {_HEADER_KEY} of its header"
        try:
            facts = json.loads(header[_HEADER_KEY])
        except ValueError as error:
            raise ValueError(f"{found} is not JSON ({error}); save or download the adapter again") from None
        if not isinstance(facts, dict):
            raise ValueError(f"{found} holds no object; save or download the adapter again")
        # A pipeline's save_lora_weights writes the prefix, a transformer's save_lora_adapter does not.
        facts = {name.removeprefix("transformer."): value for name, value in facts.items()}
    elif is_peft and beside.is_file():
        place, found, facts = PEFT_CONFIG, str(beside), read_json(beside)
    else:
        return None, None if alpha is None else "tensors"
    if alpha is not None:
        raise ValueError(
            f"{found} says alpha, and so does the tensor {alpha}; expected one of them: take an adapter as its "
            "trainer saved it"
        )
    return _check_config(found, facts), place


def _check_config(found: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of peft's LoraConfig that a merge follows. Raises ValueError for others that would change it."""
    if not _is_count(facts.get("r")) or not _is_number(facts.get("lora_alpha")):
        raise ValueError(
            f"{found}: r is {facts.get('r')!r} and lora_alpha {facts.get('lora_alpha')!r}; expected a whole number "
            "and a number: save or download the adapter again"
        )
    for name, is_value in (("rank_pattern", _is_count), ("alpha_pattern", _is_number)):
        pattern = facts.get(name) or {}
        if not isinstance(pattern, dict) or not all(map(is_value, pattern.values())):
            raise ValueError(f"{found}: {name} is {pattern!r}; expected a number for each name of a layer")
    for name, value in sorted(facts.items()):
        if name in _CONFIG_MUST and value not in _CONFIG_MUST[name]:
            expected = " or ".join(map(repr, _CONFIG_MUST[name]))
            raise ValueError(f"{found}: {name} is {value!r}; expected {expected}: take a plain LoRA")
        # What is off changes nothing, whichever version of peft wrote it.
        if value and name not in _CONFIG_READ.keys() | _CONFIG_MUST.keys() | _CONFIG_UNUSED:
            raise ValueError(f"{found}: {name} is {value!r}, a field that is not run; take a plain LoRA")
    return {name: facts.get(name) or default for name, default in _CONFIG_READ.items()}


def _check_patterns(path: Path, config: Mapping[str, Any], layers: set[str]) -> None:
    """Refuse a rank or an alpha of layers that the file does not have: peft would pass over it. Raises ValueError."""
    for name in ("rank_pattern", "alpha_pattern"):
        for pattern in config[name]:
            try:  # as peft's get_pattern_key matches
                is_known = any(re.match(rf"(.*\.)?({pattern})$", layer) for layer in layers)
            except re.error as error:
                raise ValueError(f"{path}: {name} has {pattern!r}, which is no pattern ({error})") from None
            if not is_known:
                raise ValueError(
                    f"{path}: {name} has {pattern!r}, which is none of its layers; expected names of diffusers: "
                    "convert the adapter to them with its config"
                )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# Fields of peft's LoraConfig that a merge follows, and what they are where they are left out.
_CONFIG_READ: dict[str, Any] = {
    "r": 0,
    "lora_alpha": 0,
    "rank_pattern": {},
    "alpha_pattern": {},
    "use_rslora": False,
    "lora_bias": False,
}
# Fields of which some values are run. Other first values than these change the transformer's own weights.
_CONFIG_MUST: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA", None),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}
# Fields of the training, of the model that was trained, and of the layers, which the names of the tensors say.
_CONFIG_UNUSED = frozenset({
    "auto_mapping", "base_model_name_or_path", "eva_config", "exclude_modules", "inference_mode", "layers_pattern",
    "layers_to_transform", "lora_dropout", "megatron_core", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "target_modules", "task_type",
})  # fmt: skip

# Names without the prefix that diffusers tells a style by, and the prefix.
_MISSING_PREFIXES = (
    (r"blocks\.\d+\.(self_attn|cross_attn|ffn\.\d)", "diffusion_model."),
    (r"(base_model\.model\.)?blocks\.\d+\.(attn\d|ffn\.net)", "transformer."),
)
