"""What the runtime calls: the inputs and outputs that each graph of a bundle has to have."""

from __future__ import annotations

from editverse_rt.bundle.spec import BundleSpec, TensorSpec
from editverse_rt.fields import Fields

__all__ = ["check_interfaces"]

# What the runtime calls, as "name dtype axes": r, P and Dt stand for the bundle's temporal_ratio, patch_dim
# and text width, other letters for dynamic axes. "caches" are the VAE's own, as many as it needs.
_INTERFACE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "text_encoder": (("ids int64 Lt",), ("text float32 Lt Dt",)),
    "vae_encoder_first": (("frames uint8 1 H W 3",), ("patches float32 1 h w P", "caches")),
    "vae_encoder_next": (("frames uint8 r H W 3", "caches"), ("patches float32 1 h w P", "caches")),
    "transformer": (
        (
            "text float32 Lt Dt",
            "clean float32 Lc P",
            "noisy float32 Lg P",
            "layout int64 L",
            "positions int64 L 4",
            "timestep float32",
        ),
        ("velocity float32 Lg P",),
    ),
    "solver_step": (
        (
            "sample float32 Lg P",
            "velocity_cond float32 Lg P",
            "velocity_uncond float32 Lg P",
            "velocity_prev1 float32 Lg P",
            "velocity_prev2 float32 Lg P",
            "guidance float32",
            "coefficients float32 3",
        ),
        ("sample_next float32 Lg P", "velocity float32 Lg P"),
    ),
    "noise": (("seed int64", "shape int64 2"), ("noise float32 N P",)),
    "vae_decoder_first": (("patches float32 1 h w P",), ("frames uint8 1 H W 3", "caches")),
    "vae_decoder_next": (("patches float32 1 h w P", "caches"), ("frames uint8 r H W 3", "caches")),
}


def check_interfaces(spec: BundleSpec, fields: Fields) -> None:
    """Refuse graphs that the runtime could not call, or whose caches do not go from one to the next.

    fields: of the bundle.json that the spec was read from. Raises its error, with the graph's name.
    """
    for name in _INTERFACE:
        if name not in spec.graphs:
            fields.refuse("graphs", list(spec.graphs), f'a graph "{name}" among them')
    text = {tensor.name: tensor for tensor in spec.graphs["transformer"].inputs}.get("text")
    text_dim = text.shape[-1] if text is not None and text.shape else None
    if not isinstance(text_dim, int):
        fields.refuse("graphs.transformer.inputs", None, 'an input "text" whose last axis is a whole number')
    sizes = {"r": spec.geometry.temporal_ratio, "P": spec.geometry.patch_dim, "Dt": text_dim}
    for name, (inputs, outputs) in _INTERFACE.items():
        graph = spec.graphs[name]
        for side, expected, found, prefix in (
            ("inputs", inputs, graph.inputs, "cache_"),
            ("outputs", outputs, graph.outputs, "next_cache_"),
        ):
            caches = [tensor.name for tensor in found if tensor.name.startswith(prefix)]
            others = [tensor for tensor in found if tensor.name not in caches]
            wanted = [_parse_tensor(line, sizes) for line in expected if line != "caches"]
            if not _match_tensors(others, wanted):
                shown = [f"{t.name} {t.dtype} {list(t.shape)}" for t in others]
                fields.refuse(f"graphs.{name}.{side}", shown, f"{', '.join(expected)} with {sizes}")
            if "caches" in expected and caches != [f"{prefix}{i}" for i in range(len(caches))]:
                fields.refuse(f"graphs.{name}.{side}", caches, f"{prefix}0, {prefix}1 ... in this order")
            if "caches" not in expected and caches:
                fields.refuse(f"graphs.{name}.{side}", caches, "no caches")
    for vae in ("vae_encoder", "vae_decoder"):
        first, following = spec.graphs[f"{vae}_first"], spec.graphs[f"{vae}_next"]
        taken = _cache_kinds(following.inputs)
        if any(_cache_kinds(given) != taken for given in (first.outputs, following.outputs)):
            fields.refuse(f"graphs.{vae}_next.inputs", [k[0] for k in taken], "the caches that both give")


def _parse_tensor(line: str, sizes: dict[str, int]) -> TensorSpec:
    name, dtype, *axes = line.split()
    return TensorSpec(name, dtype, tuple(int(a) if a.isdigit() else sizes.get(a, a) for a in axes))


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
