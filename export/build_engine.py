"""`python -m export.build_engine BUNDLE --target rtx4090`: build a bundle's TensorRT plans for named GPUs.

Each graph but the noise, which TensorRT cannot read, is typed (export/precision.py), its error against
float32 measured on the CPU, and built; a plan that is there already, of the same inputs, is left as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from editverse_rt.bundle import Bundle, load_bundle
from editverse_rt.engine import (
    ENGINES_FOLDER,
    EngineSet,
    PlanSpec,
    ShapeProfile,
    read_manifest,
    source_digest,
    verify_plan_file,
    write_manifest,
)
from editverse_rt.errors import BackendError, EditVerseError, RequestCancelled, RequestError
from editverse_rt.planner import Work, estimate_work
from editverse_rt.targets import (
    BACKENDS,
    PRECISIONS,
    Target,
    check_build,
    default_precisions,
    load_recipe,
    load_target,
    target_names,
)
from export.builder import Builder, Options, Progress
from export.precision import count_types, save_typed, set_precision, use_standard_attention
from export.precision_error import measure_error
from export.profiles import Overrides, parse_shapes, profiles_of

__all__ = ["BUILT_GRAPHS", "Order", "build_engines", "main", "plan_orders"]

BUILT_GRAPHS = (
    "text_encoder",
    "vae_encoder_first",
    "vae_encoder_next",
    "transformer",
    "solver_step",
    "vae_decoder_first",
    "vae_decoder_next",
)


@dataclass(frozen=True)
class Order:
    """What is to be built. targets: all go into one plan; the first of least memory gives the profiles."""

    backend: str
    targets: tuple[Target, ...]
    precision: dict[str, str]
    max_tokens: int | None = None
    overrides: Overrides | None = None
    weight_streaming: bool = False
    graphs: tuple[str, ...] = BUILT_GRAPHS

    @property
    def smallest(self) -> Target:
        return min(self.targets, key=lambda target: target.memory_bytes)

    @property
    def capabilities(self) -> tuple[str, ...]:
        found = {target.compute_capability for target in self.targets}
        return tuple(sorted(found, key=lambda c: [int(x) for x in c.split(".")]))

    @property
    def folder(self) -> str:
        return "+".join(f"sm_{c.replace('.', '')}" for c in self.capabilities)

    def precision_of(self, graph: str) -> str:
        if graph == "solver_step":
            return "fp32"
        return self.precision["vae" if graph.startswith("vae_") else graph]


def plan_orders(args: argparse.Namespace) -> list[Order]:
    """What the arguments ask for: one order, or for --all one for each set of precisions.

    Raises RequestError for what no backend can build, with what to use instead.
    """
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
        precision = default_precisions(target, args.precision)
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
    bounds = {"min": args.minShapes, "opt": args.optShapes, "max": args.maxShapes}
    overrides = {bound: parse_shapes(text) for bound, text in bounds.items()}
    return [
        Order(
            backend=backend,
            targets=tuple(group),
            precision=default_precisions(group[0], args.precision),
            max_tokens=args.max_tokens,
            overrides=overrides,
            weight_streaming=args.weight_streaming,
            graphs=tuple(args.graph or BUILT_GRAPHS),
        )
        for group in groups.values()
    ]


def _can_build(target: Target, backend: str, precision: str | None) -> bool:
    try:
        check_build(target, backend, default_precisions(target, precision))
    except RequestError:
        return False
    return True


def build_engines(
    bundle: Bundle,
    order: Order,
    output: Path,
    builder: Builder,
    *,
    quality: dict[str, object] | None = None,
    report: Any = print,
    progress: Progress = lambda phase, step, total: True,
) -> EngineSet:
    """Build what is not there yet; the manifest is written after each graph, so a stop loses one at most.

    Raises BackendError where the builder fails, RequestCancelled, BundleError.
    """
    folder = output / order.folder / f"{order.backend}-{builder.version}"
    folder.mkdir(parents=True, exist_ok=True)
    engines = _existing(folder) or EngineSet(
        folder=folder,
        backend=order.backend,
        backend_version=builder.version,
        compute_capabilities=order.capabilities,
        gpu="" if order.backend == "tensorrt-rtx" else order.targets[0].gpu,
        plans=(),
    )
    notes = {**engines.notes, **({} if quality is None else {"quality": quality})}
    with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as scratch:
        for graph in order.graphs:
            plan = _build_graph(bundle, order, graph, engines, Path(scratch), builder, report, progress)
            others = tuple(p for p in engines.plans if p.file != plan.file)
            engines = replace(engines, plans=(*others, plan), notes=notes)
            write_manifest(engines)
    return engines


def _build_graph(
    bundle: Bundle,
    order: Order,
    graph: str,
    engines: EngineSet,
    scratch: Path,
    builder: Builder,
    report: Any,
    progress: Progress,
) -> PlanSpec:
    precision = order.precision_of(graph)
    spec = bundle.spec.graphs[graph]
    profiles = profiles_of(bundle.spec, spec, order.smallest, order.max_tokens, order.overrides or {})
    source = source_digest(bundle, graph)
    key = _build_key(order, builder.version, graph, precision, source, profiles)
    file = f"{graph}-{precision}.plan"
    for plan in engines.plans:
        if plan.file == file and plan.key == key and _is_whole(engines, plan):
            report(f"{graph}: {file} is there, built from the same")
            return plan
    onnx_file = scratch / f"{graph}.onnx"
    model = ir.load(bundle.graph_path(graph))
    use_standard_attention(model)
    if str(bundle.spec.made.get("dtype", "float32")) == "float32" or graph.startswith("vae_"):
        set_precision(model, precision)
        errors = measure_error(bundle, graph, precision)
    elif graph == "solver_step" or precision == "bf16":
        # Traced in bfloat16, with the float32 that PyTorch itself takes for norms and angles.
        errors = {}
    else:
        raise RequestError(
            f"the bundle's {graph} is bfloat16, {precision} is asked for; export it with --dtype float32"
        )
    types = count_types(model)
    save_typed(model, onnx_file)
    del model
    options = Options(order.capabilities, order.smallest.workspace_bytes, order.weight_streaming)
    # The graph and its weights, before the builder: what the plan is made from, to the byte.
    typed_files = {path.name: _digest(path) for path in sorted(scratch.iterdir())}
    built = builder.build(onnx_file, profiles, options, progress)
    for path in scratch.iterdir():
        path.unlink()
    partial = engines.folder / f"{file}.partial"
    partial.write_bytes(built.plan)
    os.replace(partial, engines.folder / file)
    report(
        f"{graph}: {precision}, {built.seconds:.1f} s, {built.plan.nbytes / 1e6:.1f} MB, peak memory "
        f"{built.peak_bytes / 1e9:.2f} GB"
        + "".join(f", {name} off by {error:.1e}" for name, error in list(errors.items())[:1])
    )
    facts: dict[str, object] = {
        "seconds": round(built.seconds, 2),
        "peak_bytes": built.peak_bytes,
        "layers": built.layers,
        "layer_types": built.types,
        "onnx_types": types,
        "onnx_sha256": typed_files,
        "relative_error": errors,
        "weight_streaming": order.weight_streaming,
        "workspace_bytes": order.smallest.workspace_bytes,
    }
    digest = hashlib.sha256(built.plan).hexdigest()
    return PlanSpec(graph, precision, file, built.plan.nbytes, digest, source, key, profiles, facts)


def _build_key(
    order: Order,
    version: str,
    graph: str,
    precision: str,
    source: str,
    profiles: tuple[ShapeProfile, ...],
) -> str:
    facts = [
        source, order.backend, version, list(order.capabilities), graph, precision, order.weight_streaming,
        order.smallest.workspace_bytes, [[p.name, p.shapes] for p in profiles], _typing_digest(),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _typing_digest() -> str:
    """The rules of types are part of what a plan is made from."""
    return hashlib.sha256(Path(__file__).with_name("precision.py").read_bytes()).hexdigest()


def _is_whole(engines: EngineSet, plan: PlanSpec) -> bool:
    try:
        verify_plan_file(engines, plan)
    except BackendError:
        return False
    return True


def _existing(folder: Path) -> EngineSet | None:
    path = folder / "manifest.json"
    return read_manifest(path) if path.is_file() else None


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
    work = Work(bundle.spec.tokenizer.max_tokens, (shape,), shape, schedule)
    for target in order.targets:
        estimate = estimate_work(bundle.spec, work, replace(target, precision=order.precision))
        verdict = "fits" if estimate.fits else "does not fit"
        lines.append(
            f"  {target.name}: an edit of {shape[0]} frames at {shape[2]}x{shape[1]} takes "
            f"{estimate.peak_bytes / 1e9:.2f} GB and {verdict}"
        )
    return lines


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export.build_engine",
        description="Build a bundle's TensorRT plans for named GPUs.",
        epilog="example: python -m export.build_engine bundles/nano --target rtx4090 --target rtx5090",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", help="its folder, or the name of one that ships")
    add("--target", action="append", metavar="GPU", help="rtx4090, sm_89 ...; several go into one plan")
    add("--all", action="store_true", help="every target of the backend, in one plan")
    add("--recipe", type=Path, metavar="FILE", help="a recipe of your own, TOML")
    add("--backend", choices=BACKENDS, help="(default: the recipe's)")
    add("--precision", choices=PRECISIONS, help="of the transformer (default: the recipe's)")
    add("--max-tokens", type=int, metavar="N", help="where the longest profile ends")
    for bound in ("min", "opt", "max"):
        add(f"--{bound}Shapes", metavar="SPEC", help="name:1x2,graph/name:3x4 (trtexec's syntax)")
    add("--graph", action="append", choices=BUILT_GRAPHS, help="this one alone (default: all)")
    add("--timingCacheFile", type=Path, metavar="FILE", help="read before, written after (TensorRT only)")
    add("--weight-streaming", action="store_true", help="let weights stay in the host's memory")
    add("--quality", type=Path, metavar="FILE", help="a quality report (JSON) to keep beside the plans")
    add("--output", type=Path, metavar="DIR", help=f"(default: BUNDLE/{ENGINES_FOLDER})")
    add("--dry-run", action="store_true", help="print what would be built, and build nothing")
    args = parser.parse_args(argv)
    if sum((bool(args.target), args.all, args.recipe is not None)) > 1:
        parser.error("--target, --all and --recipe exclude each other")
    return args


class _Interrupt:
    """Ctrl-C asks the builder to stop at its next step; it takes no exception."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, *_: object) -> None:
        self.asked = True


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    interrupt = _Interrupt()
    try:
        bundle = load_bundle(args.bundle)
        orders = plan_orders(args)
        if args.dry_run:
            for order in orders:
                print("\n".join(describe_order(bundle, order)))
            return 0
        cache = args.timingCacheFile
        try:
            known = cache.read_bytes() if cache is not None and cache.is_file() else b""
            quality = None if args.quality is None else json.loads(args.quality.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RequestError(f"{args.quality or cache} cannot be read ({error})") from error
        builder = Builder(orders[0].backend, known)
        in_place = sys.stderr.isatty()

        def show(phase: str, step: int, total: int) -> bool:
            if in_place:
                print(f"\r\033[K{phase} {step}/{total}", end="", file=sys.stderr, flush=True)
            return not interrupt.asked

        signal.signal(signal.SIGINT, interrupt)
        for order in orders:
            engines = build_engines(
                bundle,
                order,
                args.output or bundle.root / ENGINES_FOLDER,
                builder,
                quality=quality,
                report=lambda line: print(("\r\033[K" if in_place else "") + line, flush=True),
                progress=show,
            )
            print(engines.folder)
        if cache is not None and builder.timing_cache:
            cache.write_bytes(builder.timing_cache)
    except RequestCancelled as error:
        print(f"error: {error}", file=sys.stderr)
        return 130
    except (BackendError, EditVerseError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
