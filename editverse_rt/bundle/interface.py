"""The one table of graphs: the inputs and outputs that each graph of a bundle has, family by family.

The exporter writes graphs by it, `check_interfaces` holds a bundle.json to it, and the C++ host has it from
`cpp/tools/write_tables.py`. A line is "name dtype axes". These axes are numbers of a bundle:

    r   geometry.temporal_ratio           P   geometry.patch_dim        Dt  width of a text row
    s   pixels a side of a patch          Pc  geometry.clean_dim        K   rows of the solver's history
    S   rows of the solver's state, 1 + K; S1 = S + 1

Any other letter names a dynamic axis; `s*h` is a multiple of one. "caches" stands for the VAE's own
caches, as many as it needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from editverse_rt.bundle.spec import BundleSpec, GraphSpec, TensorSpec
from editverse_rt.fields import Fields

__all__ = [
    "FAMILIES",
    "SCHEDULE_INPUTS",
    "Interface",
    "check_interfaces",
    "interfaces_of",
    "tensor_from_line",
]


@dataclass(frozen=True)
class Interface:
    """Inputs and outputs of one graph as lines; optional: a bundle may lack it."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    optional: bool = False


# Every family's.
_COMMON = {
    "text_encoder": Interface(("ids int64 Lt",), ("text float32 Lt Dt",)),
    "vae_encoder_first": Interface(("frames uint8 1 s*h s*w 3",), ("patches float32 1 h w P", "caches")),
    "vae_encoder_next": Interface(
        ("frames uint8 r s*h s*w 3", "caches"), ("patches float32 1 h w P", "caches")
    ),
    "solver_step": Interface(
        (
            "sample float32 Lg P",
            "history float32 K Lg P",
            "velocity_cond float32 Lg P",
            "velocity_uncond float32 Lg P",
            "guidance float32",
            "matrix float32 S S1",
        ),
        ("sample_next float32 Lg P", "history_next float32 K Lg P"),
    ),
    "noise": Interface(("seed int64", "shape int64 2"), ("noise float32 N P",)),
    "vae_decoder_first": Interface(("patches float32 1 h w P",), ("frames uint8 1 s*h s*w 3", "caches")),
    "vae_decoder_next": Interface(
        ("patches float32 1 h w P", "caches"), ("frames uint8 r s*h s*w 3", "caches")
    ),
}
_TRANSFORMER = Interface(
    (
        "text float32 Lt Dt",
        "clean float32 Lc Pc",
        "noisy float32 Lg P",
        "layout int64 L",
        "positions int64 L 4",
        "timestep float32",
    ),
    ("velocity float32 Lg P",),
)

_OPTIONAL_TRANSFORMER = replace(_TRANSFORMER, optional=True)
# A masked encoder sees mid-grey, which uint8 cannot say, where `keep` is 0.
_MASKED_ENCODERS = {
    name: Interface((frames, keep, *caches), _COMMON[name].outputs)
    for name, frames, keep, caches in (
        ("vae_encoder_first", "frames uint8 1 s*h s*w 3", "keep float32 1 s*h s*w", ()),
        ("vae_encoder_next", "frames uint8 r s*h s*w 3", "keep float32 r s*h s*w", ("caches",)),
    )
}
_CONDITION = Interface(
    ("inactive float32 1 h w P", "reactive float32 1 h w P", "mask float32 s*h s*w"),
    ("clean float32 1 h w Pc",),
)
_ADD_NOISE = Interface(
    ("sample float32 Lg P", "noise float32 Lg P", "time float64"), ("noisy float32 Lg P",), optional=True
)

_KEEP_KNOWN = Interface(
    (
        "sample float32 Lg P",
        "known float32 Lk P",
        "noise float32 Lg P",
        "rows int64 Lk",
        "time float32",
    ),
    ("sample_next float32 Lg P",),
    optional=True,
)

FAMILIES: dict[str, dict[str, Interface]] = {
    "editverse": {**_COMMON, "transformer": _TRANSFORMER, "keep_known": _KEEP_KNOWN},
    "wan": {
        **_COMMON,
        "transformer": _TRANSFORMER,
        "transformer_2": _OPTIONAL_TRANSFORMER,
        "add_noise": _ADD_NOISE,
        "keep_known": _KEEP_KNOWN,
    },
}
"""Graph tables by family. Besides them a bundle has graphs named `schedule_...`."""

SCHEDULE_INPUTS = (
    "num_steps int64",
    "first_step int64",
    "shift float64",
    "guidance_scale float64",
    "guidance_scale_2 float64",
    "guided_from float64",
    "guided_until float64",
)
"""What a graph `schedule_...` takes. Of num_steps those from first_step on are run; the second guidance scale is
that of the second expert, in a bundle with two. The outputs are the columns of `ScheduleTable`."""
_SCHEDULE = Interface(
    SCHEDULE_INPUTS,
    (
        "times float64 n",
        "timesteps float64 n",
        "guidance float64 n",
        "matrices float64 n S S1",
        "experts int64 n",
    ),
)


def interfaces_of(family: str, conditioning: str, graph_names: tuple[str, ...]) -> dict[str, Interface]:
    """The table of a family for a kind of conditioning, with the `schedule_...` graphs among those names."""
    schedules = {name: _SCHEDULE for name in graph_names if name.startswith("schedule_")}
    control = {**_MASKED_ENCODERS, "condition": _CONDITION} if conditioning == "control" else {}
    return {**FAMILIES[family], **control, **schedules}


def tensor_from_line(line: str, sizes: Mapping[str, int]) -> TensorSpec:
    """A tensor of a line, with the numbers of a bundle put in for their letters: `s*h` becomes `16*h`."""
    name, dtype, *axes = line.split()
    return TensorSpec(name, dtype, tuple(_axis(axis, sizes) for axis in axes))


def _axis(axis: str, sizes: Mapping[str, int]) -> int | str:
    if axis.isdigit():
        return int(axis)
    factor, star, name = axis.partition("*")
    if star:
        return f"{sizes.get(factor, factor)}*{name}"
    return sizes.get(axis, axis)


def check_interfaces(spec: BundleSpec, fields: Fields) -> None:
    """Refuse graphs that the runtime could not call, or whose caches do not go from one to the next.

    fields: of the bundle.json that the spec was read from. Raises its error, with the graph's name.
    """
    if spec.family not in FAMILIES:
        fields.refuse("family", spec.family, f"one of {', '.join(FAMILIES)}")
    table = interfaces_of(spec.family, spec.conditioning, tuple(spec.graphs))
    for name, interface in table.items():
        if name not in spec.graphs and not interface.optional:
            fields.refuse("graphs", list(spec.graphs), f'a graph "{name}" among them')
    for name in spec.graphs:
        if name not in table:
            fields.refuse("graphs", name, f"graphs of the family {spec.family}: {', '.join(table)}")
    sizes = _numbers_of(spec, fields)
    for name, interface in table.items():
        if name in spec.graphs:
            _check_graph(name, interface, spec.graphs[name], sizes, fields)
    for vae in ("vae_encoder", "vae_decoder"):
        first, following = spec.graphs[f"{vae}_first"], spec.graphs[f"{vae}_next"]
        taken = _cache_kinds(following.inputs)
        if any(_cache_kinds(given) != taken for given in (first.outputs, following.outputs)):
            fields.refuse(f"graphs.{vae}_next.inputs", [k[0] for k in taken], "the caches that both give")


def _numbers_of(spec: BundleSpec, fields: Fields) -> dict[str, int]:
    text_dim = _last_axis(spec, "transformer", "text", -1, fields)
    history = _last_axis(spec, "solver_step", "history", 0, fields)
    return {
        "r": spec.geometry.temporal_ratio,
        "s": spec.geometry.size_multiple,
        "P": spec.geometry.patch_dim,
        "Pc": spec.geometry.clean_dim,
        "Dt": text_dim,
        "K": history,
        "S": history + 1,
        "S1": history + 2,
    }


def _last_axis(spec: BundleSpec, graph: str, name: str, axis: int, fields: Fields) -> int:
    """A number that only a graph's input says."""
    tensor = {tensor.name: tensor for tensor in spec.graphs[graph].inputs}.get(name)
    size = tensor.shape[axis] if tensor is not None and tensor.shape else None
    if not isinstance(size, int):
        where = "last" if axis else "first"
        fields.refuse(
            f"graphs.{graph}.inputs", None, f'an input "{name}" whose {where} axis is a whole number'
        )
    return size


def _check_graph(
    name: str, interface: Interface, graph: GraphSpec, sizes: Mapping[str, int], fields: Fields
) -> None:
    for side, expected, found, prefix in (
        ("inputs", interface.inputs, graph.inputs, "cache_"),
        ("outputs", interface.outputs, graph.outputs, "next_cache_"),
    ):
        caches = [tensor.name for tensor in found if tensor.name.startswith(prefix)]
        others = [tensor for tensor in found if tensor.name not in caches]
        wanted = [tensor_from_line(line, sizes) for line in expected if line != "caches"]
        if not _match_tensors(others, wanted):
            shown = [f"{t.name} {t.dtype} {list(t.shape)}" for t in others]
            asked = [f"{t.name} {t.dtype} {list(t.shape)}" for t in wanted]
            fields.refuse(f"graphs.{name}.{side}", shown, ", ".join(asked))
        if "caches" in expected and caches != [f"{prefix}{i}" for i in range(len(caches))]:
            fields.refuse(f"graphs.{name}.{side}", caches, f"{prefix}0, {prefix}1 ... in this order")
        if "caches" not in expected and caches:
            fields.refuse(f"graphs.{name}.{side}", caches, "no caches")


def _match_tensors(found: list[TensorSpec], wanted: list[TensorSpec]) -> bool:
    """Same names, dtypes and ranks; a size where one is wanted (or left open), a dynamic axis elsewhere."""
    by_name = {tensor.name: tensor for tensor in found}
    return len(by_name) == len(found) == len(wanted) and all(
        tensor.name in by_name
        and by_name[tensor.name].dtype == tensor.dtype
        and len(by_name[tensor.name].shape) == len(tensor.shape)
        and all(
            have == want or isinstance(have, str)
            for have, want in zip(by_name[tensor.name].shape, tensor.shape, strict=True)
        )
        for tensor in wanted
    )


def _cache_kinds(tensors: tuple[TensorSpec, ...]) -> list[tuple[str, str, int]]:
    return [
        (tensor.name.removeprefix("next_"), tensor.dtype, len(tensor.shape))
        for tensor in tensors
        if tensor.name.removeprefix("next_").startswith("cache_")
    ]
