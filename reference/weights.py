"""Folders of a checkpoint: JSON, and safetensors in one file or in shards with an index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["WEIGHTS", "existing", "forget_origin", "load_weights", "read_json", "save_weights", "write_json"]

WEIGHTS = "diffusion_pytorch_model"
"""The name that diffusers gives to a module's weights; transformers says `model`."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises FileNotFoundError, or ValueError for something else."""
    try:
        value = json.loads(existing(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); download or save it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no object; download or save it again")
    return value


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def existing(path: Path) -> Path:
    """The path. Raises FileNotFoundError that names what lies beside it under another name."""
    if not path.is_file():
        near = sorted(path.parent.glob(f"{path.name.split('.')[0]}.*"))
        hint = f": {near[0].name} lies there; rename or convert it to that name" if near else ""
        raise FileNotFoundError(f"{path} is missing; a checkpoint holds it{hint}")
    return path


def forget_origin(config: Path) -> None:
    """diffusers notes the folder that a module was loaded from, which is nobody else's business."""
    facts = json.loads(config.read_text(encoding="utf-8"))
    facts.pop("_name_or_path", None)
    write_json(config, facts)


def save_weights(folder: Path, weights: dict[str, Tensor], max_shard_bytes: int) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, weight in weights.items():
        if shards[-1] and filled + weight.nbytes > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = weight.contiguous()
        filled += weight.nbytes
    for stale in folder.glob(f"{WEIGHTS}*"):
        stale.unlink()
    if len(shards) == 1:
        save_file(shards[0], folder / f"{WEIGHTS}.safetensors", metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"{WEIGHTS}-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
    total = sum(weight.nbytes for weight in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / f"{WEIGHTS}.safetensors.index.json", index)


def load_weights(folder: Path) -> dict[str, Tensor]:
    index = folder / f"{WEIGHTS}.safetensors.index.json"
    if not index.is_file():
        return load_file(existing(folder / f"{WEIGHTS}.safetensors"))
    weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    weights: dict[str, Tensor] = {}
    for file in sorted(set(weight_map.values())):
        weights.update(load_file(existing(folder / file)))
    if weights.keys() != weight_map.keys():
        odd = sorted(weights.keys() ^ weight_map.keys())[0]
        raise ValueError(
            f"{index}: {odd} is not both in the index and in its shard; save the checkpoint again"
        )
    return weights
