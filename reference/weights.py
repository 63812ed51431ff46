"""Folders of a checkpoint: JSON, and safetensors in one file or in shards with an index."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

__all__ = [
    "WEIGHTS",
    "assign_weights",
    "existing",
    "forget_origin",
    "load_part",
    "load_weights",
    "read_fields",
    "read_header",
    "read_json",
    "read_tensors",
    "save_weights",
    "write_json",
]

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


def read_fields(
    path: Path, facts: Mapping[str, Any], cls: Any, unused: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """The arguments of a class of diffusers: its defaults, and above them what its config.json says.

    unused: fields that may be there and are passed over. Raises ValueError for others that the class does not have,
    which diffusers would pass over as well, and for what is no number where the class has one.
    """
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    known = {p.name: p.default for p in parameters if p.name != "kwargs"}
    given = {name: value for name, value in facts.items() if not name.startswith("_")}
    for name in sorted(given.keys() - known.keys() - unused):
        raise ValueError(
            f"{path}: {name} is {given[name]!r}, a field that {cls.__name__} of this diffusers does not "
            "have; save the checkpoint with diffusers 0.42 or take the field out"
        )
    for name, value in given.items():
        is_number = isinstance(known.get(name), (int, float))
        if is_number and value is not None and not isinstance(value, (int, float)):
            raise ValueError(
                f"{path}: {name} is {value!r}; expected a number: download or save the checkpoint again"
            )
    return known | given


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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, mapped. Raises FileNotFoundError, ValueError for a damaged file."""
    try:
        return load_file(existing(path))
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no whole safetensors file ({error}); expected one: download it again"
        ) from None


def read_header(path: Path) -> dict[str, str]:
    """What the header of a safetensors file says besides its tensors, {} for nothing. Raises as `read_tensors` does."""
    try:
        with safe_open(existing(path), "pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no whole safetensors file ({error}); expected one: download it again"
        ) from None


def load_part(cls: Any, folder: Path, **options: Any) -> Any:
    """A part of a checkpoint by its class of diffusers or transformers.

    Raises FileNotFoundError for a part that is not there, ValueError for weights that cannot be read or that the
    folder lacks: the libraries would draw those at random.
    """
    existing(folder / "config.json")
    try:
        model, info = cls.from_pretrained(folder, output_loading_info=True, **options)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{folder}: its weights cannot be read ({_first_line(error)}); expected those of a "
            f"{cls.__name__}: download the folder again"
        ) from None
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"{folder}: weight {missing[0]} is missing{'' if len(missing) == 1 else f', and {len(missing) - 1} more'}; "
            f"expected all of a {cls.__name__}: download the folder again"
        )
    return model


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a folder, in one file or in shards. Raises FileNotFoundError and ValueError, as `read_tensors`
    does, and ValueError for an index that its shards contradict."""
    index = folder / f"{WEIGHTS}.safetensors.index.json"
    if not index.is_file():
        return read_tensors(folder / f"{WEIGHTS}.safetensors")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index} has no weight_map; expected one: download it again")
    weights: dict[str, Tensor] = {}
    for file in sorted(set(weight_map.values())):
        weights.update(read_tensors(folder / file))
    if weights.keys() != weight_map.keys():
        odd = sorted(weights.keys() ^ weight_map.keys())[0]
        raise ValueError(
            f"{index}: {odd} is not both in the index and in its shard; save the checkpoint again"
        )
    return weights


def assign_weights(transformer: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a transformer made on the meta device its weights, as they are.

    Raises ValueError that names a weight which is missing, superfluous or of another shape.
    """
    expected = {name: tuple(value.shape) for name, value in transformer.state_dict().items()}
    for name in sorted(weights.keys() ^ expected.keys()):
        state = "missing" if name in expected else "not known"
        raise ValueError(f"the transformer's weight {name} is {state}; take the folder's own config.json")
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            raise ValueError(
                f"the transformer's weight {name} is {tuple(weights[name].shape)}; expected {shape} after "
                "config.json: take config.json and weights of one folder"
            )
    transformer.load_state_dict(weights, assign=True)
