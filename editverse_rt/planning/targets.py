"""GPUs that engines are built and plans are made for: the recipes in `engines/`, one TOML file each.

The one home of what a GPU is (compute capability, memory, bandwidth, peak), of what it is given (backend,
precisions, optimization profiles) and of what the backends can do there.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from editverse_rt.errors import RequestError
from editverse_rt.fields import Fields

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "BACKENDS",
    "PARTS",
    "PRECISIONS",
    "Profile",
    "Target",
    "check_build",
    "default_precisions",
    "load_recipe",
    "load_target",
    "target_names",
]

BACKENDS = ("tensorrt-rtx", "tensorrt")
PRECISIONS = ("fp32", "fp16", "bf16")
PARTS = ("transformer", "text_encoder", "vae")
"""The parts of a model that have weights, and so a precision each."""

# What TensorRT for RTX 1.7 takes as ComputeCapability; TensorRT builds for the GPU that it runs on.
_RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
_OLDEST_CAPABILITY = (7, 5)
_OLDEST_BFLOAT16 = (8, 0)
_GIGA = 10**9


@dataclass(frozen=True)
class Profile:
    """An optimization profile in tokens of the whole sequence: what it is tuned for, and its end."""

    name: str
    opt_tokens: int
    max_tokens: int


@dataclass(frozen=True)
class Target:
    """A GPU and how engines for it are built.

    workspace_bytes: what a plan may take beside its weights; the activations of fused layers are counted in.
    peak_flops: dense, operations a second by precision, accumulated in float32. precision: of each of
    `PARTS`. source: where the figures come from.
    """

    name: str
    gpu: str
    compute_capability: str
    memory_bytes: int
    bandwidth_bytes_per_s: float
    backend: str
    workspace_bytes: int
    peak_flops: dict[str, float]
    precision: dict[str, str]
    profiles: tuple[Profile, ...]
    source: str

    @property
    def sm(self) -> str:
        """The compute capability as compilers write it: sm_89."""
        return f"sm_{self.compute_capability.replace('.', '')}"


def target_names() -> tuple[str, ...]:
    """Names of the recipes that ship."""
    return tuple(
        sorted(e.name.removesuffix(".toml") for e in _recipes().iterdir() if e.name.endswith(".toml"))
    )


def load_target(name: str) -> Target:
    """The target of that name ("rtx4090"), or of an architecture ("sm_89", "8.9"), which takes
    the recipe of that architecture's smallest GPU.

    Raises RequestError for a name that no recipe has.
    """
    names = target_names()
    if name in names:
        text = (_recipes() / f"{name}.toml").read_text(encoding="utf-8")
        return _target_from_text(text, name, f"{name}.toml")
    architecture = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", name.lower())
    if architecture:
        capability = f"{architecture[1]}.{architecture[2]}"
        alike = [t for t in map(load_target, names) if t.compute_capability == capability]
        if alike:
            smallest = min(alike, key=lambda target: target.memory_bytes)
            return replace(smallest, name=smallest.sm)
    near = difflib.get_close_matches(name.lower(), names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise RequestError(
        f'there is no target "{name}"',
        hint=f"{hint}choose one of {', '.join(names)}, or give a recipe of your own",
        code="request.unknown_target",
    )


def load_recipe(path: str | os.PathLike[str]) -> Target:
    """The target of a recipe file, named after the file. Raises RequestError for one that cannot be used."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RequestError(
            f"recipe {file} cannot be read ({error})", hint="give a TOML file", code="request.recipe"
        ) from error
    return _target_from_text(text, file.stem, str(file))


def default_precisions(target: Target, precision: str | None) -> dict[str, str]:
    """The precision of each part when the caller names one; None leaves the recipe's.

    A T5 encoder's activations leave float16's range, and grey levels are decided in the VAE's last bits: so
    float16 is for the transformer, the others keep float32, unless the recipe says that its GPU cannot.
    Raises RequestError for a name that is no precision.
    """
    if precision is None:
        return dict(target.precision)
    if precision not in PRECISIONS:
        raise RequestError(
            f'precision is "{precision}"',
            hint=f"choose one of {', '.join(PRECISIONS)}",
            code="request.unknown_precision",
        )
    vae = target.precision["vae"]
    text = "bf16" if precision == "bf16" else target.precision["vae"]
    return {"transformer": precision, "text_encoder": text, "vae": vae}


def check_build(target: Target, backend: str, precision: dict[str, str]) -> None:
    """Refuse what a backend cannot build for a target. Raises RequestError that says what to use instead."""
    capability = _version(target.compute_capability)
    if backend not in BACKENDS:
        raise RequestError(
            f'backend is "{backend}"',
            hint=f"plans are built for {' or '.join(BACKENDS)}",
            code="request.unknown_backend",
        )
    if backend == "tensorrt-rtx" and target.compute_capability not in _RTX_CAPABILITIES:
        raise RequestError(
            f"{target.name} has compute capability {target.compute_capability}, TensorRT for RTX "
            f"builds for {', '.join(_RTX_CAPABILITIES)}",
            hint="use the backend tensorrt, on a machine with that GPU",
            code="request.target_cannot",
        )
    if capability < _OLDEST_CAPABILITY:
        raise RequestError(
            f"{target.name} has compute capability {target.compute_capability}, TensorRT needs 7.5 or above",
            hint="use ort-cuda or ort-cpu",
            code="request.target_cannot",
        )
    for part, wanted in precision.items():
        if wanted == "bf16" and capability < _OLDEST_BFLOAT16:
            raise RequestError(
                f"{target.name} ({target.sm}) has no bfloat16, asked for in the {part}",
                hint="use the precision fp16",
                code="request.target_cannot",
            )
        if wanted == "fp32" and backend == "tensorrt-rtx" and capability < _OLDEST_BFLOAT16:
            raise RequestError(
                f"TensorRT for RTX has no float32 matrix products on {target.name} ({target.sm}), "
                f"asked for in the {part}",
                hint="use the precision fp16",
                code="request.target_cannot",
            )


def _recipes() -> Traversable:
    """The folder of the recipes: inside an installed package, or at the root of a checkout."""
    package = resources.files("editverse_rt")
    installed = package / "engines" / "recipes"
    return installed if installed.is_dir() else Path(str(package)).parent / "engines"


def _version(capability: str) -> tuple[int, int]:
    major, minor = capability.split(".")
    return int(major), int(minor)


def _target_from_text(text: str, name: str, where: str) -> Target:
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RequestError(
            f"{where}: not TOML: {error}", hint="correct the recipe", code="request.recipe"
        ) from error
    fields = Fields(value, where, "", error=RequestError, fix="correct the recipe")
    peaks, precision = fields.child("peak_tflops"), fields.child("precision")
    target = Target(
        name=name,
        gpu=fields.string("gpu"),
        compute_capability=fields.string("compute_capability"),
        memory_bytes=int(fields.positive_number("memory_gb") * _GIGA),
        bandwidth_bytes_per_s=fields.positive_number("bandwidth_gb_s") * _GIGA,
        backend=fields.string("backend"),
        workspace_bytes=int(fields.positive_number("workspace_gb") * _GIGA),
        peak_flops={p: peaks.positive_number(p) * 1e12 for p in PRECISIONS if p in peaks},
        precision={part: precision.string(part) for part in PARTS},
        profiles=tuple(_read_profile(entry) for entry in fields.children("profiles")),
        source=fields.string("source"),
    )
    for table in (fields, peaks, precision):
        table.finish()
    if not re.fullmatch(r"\d{1,2}\.\d", target.compute_capability):
        fields.refuse("compute_capability", target.compute_capability, 'a version such as "8.9"')
    if target.backend not in BACKENDS:
        fields.refuse("backend", target.backend, " or ".join(BACKENDS))
    for part, wanted in target.precision.items():
        if wanted not in PRECISIONS:
            precision.refuse(part, wanted, " or ".join(PRECISIONS))
        if wanted not in target.peak_flops:
            peaks.refuse(wanted, None, f"the peak of {wanted}, which [precision] gives to the {part}")
    ends = [profile.max_tokens for profile in target.profiles]
    if not ends or ends != sorted(set(ends)):
        fields.refuse("profiles", ends, "one profile or more, each reaching further than the one before")
    return target


def _read_profile(fields: Fields) -> Profile:
    profile = Profile(
        name=fields.string("name"),
        opt_tokens=fields.integer("opt_tokens", 1),
        max_tokens=fields.integer("max_tokens", 1),
    )
    fields.finish()
    if profile.opt_tokens > profile.max_tokens:
        fields.refuse("opt_tokens", profile.opt_tokens, f"at most max_tokens = {profile.max_tokens}")
    return profile
