"""What `export.build_engine` is asked to build: targets, precisions, profiles, and what no backend can."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from editverse_rt.bundle.manifest import Bundle
from editverse_rt.errors import RequestError
from editverse_rt.planning.planner import Work, estimate_work
from editverse_rt.planning.targets import (
    Target,
    check_build,
    default_precisions,
    load_recipe,
    load_target,
    target_names,
)
from export.precision import precision_of_graph
from export.profiles import Overrides, parse_shapes, profiles_of

__all__ = [
    "BUILT_GRAPHS",
    "Order",
    "built_graphs",
    "check_stored",
    "describe_order",
    "list_orders",
    "stored_precision",
]

BUILT_GRAPHS = (
    "text_encoder",
    "vae_encoder_first",
    "vae_encoder_next",
    "condition",
    "transformer",
    "transformer_2",
    "solver_step",
    "vae_decoder_first",
    "vae_decoder_next",
)
"""In the order of a request; a bundle has those of its family. The others run on the CPU with every backend."""
_STORED = {"bfloat16": "bf16", "float16": "fp16"}
"""The precision of graphs that were exported in 16 bits, by the bundle's dtype."""


@dataclass(frozen=True)
class Order:
    """What is to be built.

    targets: all go into one plan; the first of least memory gives the profiles. plugin: the library that has
    `RopeAttention`, None to build it from standard operators.
    """

    backend: str
    targets: tuple[Target, ...]
    precision: dict[str, str]
    max_tokens: int | None = None
    overrides: Overrides | None = None
    weight_streaming: bool = False
    graphs: tuple[str, ...] = BUILT_GRAPHS
    plugin: Path | None = None

    @property
    def smallest(self) -> Target:
        """The target with the least memory: its profiles fit all of them."""
        return min(self.targets, key=lambda target: target.memory_bytes)

    @property
    def capabilities(self) -> tuple[str, ...]:
        """The compute capabilities of all targets, each once, in order: ("8.9", "12.0")."""
        found = {target.compute_capability for target in self.targets}
        return tuple(sorted(found, key=lambda c: [int(x) for x in c.split(".")]))

    @property
    def folder(self) -> str:
        """The name of the plans' folder, such as sm_89+sm_120."""
        return "+".join(f"sm_{c.replace('.', '')}" for c in self.capabilities)

    def precision_of(self, graph: str) -> str:
        """The precision of one graph: "fp32", "fp16" or "bf16"."""
        return precision_of_graph(graph, self.precision)


def built_graphs(bundle: Bundle) -> tuple[str, ...]:
    """The graphs of a bundle that become plans, in the order of a request."""
    return tuple(name for name in BUILT_GRAPHS if name in bundle.spec.graphs)


def stored_precision(bundle: Bundle, graph: str) -> str | None:
    """The precision that a graph was exported in, "bf16" or "fp16"; None for one in float32, typed when it is built.

    Of a bundle in 16 bits the transformers and the text encoder carry its dtype, and all else is float32.
    """
    if not graph.startswith(("transformer", "text_encoder")):
        return None
    return _STORED.get(bundle.spec.capabilities.dtype)


def check_stored(bundle: Bundle, order: Order) -> None:
    """Refuse another precision than that of graphs in 16 bits. Raises RequestError that says which one to take."""
    # The transformer's comes first: it is what --precision names.
    for graph in sorted(order.graphs, key=lambda name: not name.startswith("transformer")):
        stored, asked = stored_precision(bundle, graph), order.precision_of(graph)
        if stored not in (None, asked):
            raise RequestError(
                f'the {graph} of bundle "{bundle.spec.name}" is {bundle.spec.capabilities.dtype}, and {asked} is '
                "asked for",
                expected=stored,
                hint=f"use --precision {stored}, or export it in float32",
            )


def list_orders(args: argparse.Namespace, bundle: Bundle) -> list[Order]:
    """What the arguments ask for: one order, or for --all one for each set of precisions.

    Raises RequestError for what no backend can build, with what to use instead, for a graph that the bundle does
    not have, and as `check_stored` does.
    """
    graphs = built_graphs(bundle)
    for name in args.graph or ():
        if name not in graphs:
            raise RequestError(f'bundle "{bundle.spec.name}" has no graph {name}; it has {", ".join(graphs)}')
    if args.all:
        backend = args.backend or "tensorrt-rtx"
        targets = [t for t in map(load_target, target_names()) if _can_build(t, backend, args.precision)]
    elif args.recipe is not None:
        targets = [load_recipe(args.recipe)]
    else:
        targets = [load_target(name) for name in args.target or []]
    if not targets:
        raise RequestError("no target is given; name one with --target, such as rtx4090, or take --all")
    backend = args.backend or ("tensorrt-rtx" if args.all else targets[0].backend)
    groups: dict[tuple[str, ...], list[Target]] = {}
    for target in targets:
        precision = _choose_precisions(bundle, target, args.precision)
        check_build(target, backend, precision)
        groups.setdefault(tuple(precision.values()), []).append(target)
    if len(groups) > 1 and not args.all:
        names = [" and ".join(t.name for t in group) for group in groups.values()]
        raise RequestError(
            f"{', '.join(names)} take different precisions; one plan has one: name it with --precision, or "
            "build them one by one"
        )
    if backend == "tensorrt" and len({t.compute_capability for t in targets}) > 1:
        raise RequestError(
            "TensorRT builds for the GPU that it runs on; give one target, or --backend tensorrt-rtx"
        )
    if args.plugin is not None:
        _check_plugin(args.plugin, backend, default_precisions(targets[0], args.precision)["transformer"])
    if args.timingCacheFile is not None and backend == "tensorrt-rtx":
        raise RequestError(
            "TensorRT for RTX times no kernels while it builds, it chooses them on the user's machine; leave "
            "--timingCacheFile out"
        )
    bounds = {"min": args.minShapes, "opt": args.optShapes, "max": args.maxShapes}
    overrides = {bound: parse_shapes(text) for bound, text in bounds.items()}
    orders = [
        Order(
            backend=backend,
            targets=tuple(group),
            precision=_choose_precisions(bundle, group[0], args.precision),
            max_tokens=args.max_tokens,
            overrides=overrides,
            weight_streaming=args.weight_streaming,
            graphs=tuple(args.graph or graphs),
            plugin=None if args.plugin is None else args.plugin.absolute(),
        )
        for group in groups.values()
    ]
    for order in orders:
        check_stored(bundle, order)
    return orders


def _choose_precisions(bundle: Bundle, target: Target, precision: str | None) -> dict[str, str]:
    """As `default_precisions`; a text encoder in the 16 bits that are asked for stays in them."""
    chosen = default_precisions(target, precision)
    if precision is not None and precision == stored_precision(bundle, "text_encoder"):
        chosen["text_encoder"] = precision
    return chosen


def _check_plugin(library: Path, backend: str, precision: str) -> None:
    if backend == "tensorrt-rtx":
        raise RequestError(
            "TensorRT for RTX loads no plugins; leave --plugin out, and the attention is built from its own"
        )
    if precision == "fp32":
        raise RequestError(
            "the plugin computes in fp16 and bf16; use --precision bf16, or leave --plugin out"
        )
    if not library.is_file():
        raise RequestError(f"{library} is not there; build it: cmake -S cpp/plugin -B build/plugin")


def _can_build(target: Target, backend: str, precision: str | None) -> bool:
    try:
        check_build(target, backend, default_precisions(target, precision))
    except RequestError:
        return False
    return True


def describe_order(bundle: Bundle, order: Order) -> list[str]:
    """What --dry-run prints: the plans, their profiles, and what the bundle's largest request would take."""
    names = ", ".join(target.name for target in order.targets)
    lines = [f"{bundle.spec.name} for {names} ({order.folder}) with {order.backend}"]
    for graph in order.graphs:
        lines.append(f"  {graph}: {order.precision_of(graph)}")
        spec = bundle.spec.graphs[graph]
        for profile in profiles_of(
            bundle.spec, spec, order.smallest, order.max_tokens, order.overrides or {}
        ):
            first = next(iter(profile.shapes), None)
            rows = [] if first is None else [list(shape) for shape in profile.shapes[first]]
            lines.append(f"    {profile.name}: {first} {rows}, and {max(0, len(profile.shapes) - 1)} more")
    geometry = bundle.spec.geometry
    shape = (
        geometry.round_frames(geometry.max_frames),
        geometry.default_height_px,
        geometry.default_width_px,
    )
    schedule = bundle.spec.schedules[bundle.spec.default_schedule]
    steps = schedule.num_inference_steps
    guided = schedule.table.num_evaluations - steps
    work = Work(bundle.spec.tokenizer.max_tokens, (shape,), shape, steps, guided)
    for target in order.targets:
        estimate = estimate_work(bundle.spec, work, replace(target, precision=order.precision))
        verdict = "fits" if estimate.fits else "does not fit"
        lines.append(
            f"  {target.name}: an edit of {shape[0]} frames at {shape[2]}x{shape[1]} takes "
            f"{estimate.peak_bytes / 1e9:.2f} GB and {verdict}"
        )
    return lines
