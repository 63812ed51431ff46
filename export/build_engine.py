"""`python -m export.build_engine BUNDLE --target rtx4090`: build a bundle's TensorRT plans for named GPUs.

Each graph but those that run on the CPU with every backend is typed (export/precision.py), its error against
float32 measured on the CPU, and built; a plan that is there already, of the same inputs, is left as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

if not __package__:  # run as a file: `python export/build_engine.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from editverse_rt.backends.cuda import Cuda
from editverse_rt.bundle.manifest import Bundle, load_bundle
from editverse_rt.engines.manifest import (
    EngineSet,
    PlanSpec,
    ShapeProfile,
    engines_folder,
    read_manifest,
    source_digest,
    verify_plan_file,
    write_manifest,
)
from editverse_rt.errors import BackendError, EditVerseError, RequestCancelled, RequestError
from editverse_rt.files import hash_file
from editverse_rt.planning.targets import BACKENDS, PRECISIONS
from export.builder import Builder, Options, Progress
from export.emulate import score_rounding
from export.orders import BUILT_GRAPHS, Order, check_stored, describe_order, list_orders, stored_precision
from export.precision import count_types, save_typed, set_precision
from export.precision_error import measure_error
from export.profiles import profiles_of
from export.standard import check_source, keeps_plugin, load_standard

__all__ = ["Heldout", "build_engines", "main"]

FLAGS = {"max_tokens": "--max-tokens", "num_inference_steps": "--heldout-steps"}


@dataclass(frozen=True)
class Heldout:
    """The held-out edits that the plans' rounding is scored on before anything is built (export/emulate.py).

    per_kind: edits of each task, for images and for videos; 0 scores none.
    """

    per_kind: int
    num_inference_steps: int


def build_engines(
    bundle: Bundle,
    order: Order,
    output: Path,
    builder: Builder,
    *,
    notes: Mapping[str, object] | None = None,
    report: Any = print,
    progress: Progress = lambda phase, step, total: True,
) -> EngineSet:
    """Build what is not there yet; the manifest is written after each graph, so a stop loses one at most.

    notes: to stand in the manifest beside what it notes already.
    Raises RequestError as `check_stored` does, BackendError where the builder fails, RequestCancelled, BundleError.
    """
    check_stored(bundle, order)
    gpu = _gpu_here(order)
    folder = _engine_folder(order, output, builder)
    folder.mkdir(parents=True, exist_ok=True)
    engines = _existing(folder) or EngineSet(
        folder=folder,
        backend=order.backend,
        backend_version=builder.version,
        compute_capabilities=order.capabilities,
        gpu=gpu,
        plans=(),
    )
    engines = replace(engines, notes={**engines.notes, **(notes or {})})
    with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as scratch:
        for graph in order.graphs:
            plan = _build_graph(bundle, order, graph, engines, Path(scratch), builder, report, progress)
            others = tuple(p for p in engines.plans if p.file != plan.file)
            engines = replace(engines, plans=(*others, plan))
            write_manifest(engines)
    return engines


def score_order(
    bundle: Bundle, order: Order, heldout: Heldout, output: Path, builder: Builder, report: Any = print
) -> dict[str, object]:
    """What the plans' rounding does to held-out edits, as a note; {} if the manifest has it of just these.

    Raises as `export.emulate.score_rounding` does.
    """
    precisions = {g: order.precision_of(g) for g in order.graphs if order.precision_of(g) != "fp32"}
    if not precisions or not heldout.per_kind:
        return {}
    sources = [source_digest(bundle, graph) for graph in bundle.spec.graphs]
    typed = {graph: _hash_typed(bundle, order, graph) for graph in precisions}
    key = _hash_facts([sources, typed, asdict(heldout)])
    engines = _existing(_engine_folder(order, output, builder))
    known = {} if engines is None else engines.notes.get("rounding")
    if isinstance(known, dict) and known.get("key") == key:
        return {}
    found: Any = score_rounding(bundle, precisions, heldout.per_kind, heldout.num_inference_steps)
    rounded, exact, distance = found["rounded"], found["float32"], found["psnr_db"]
    report(
        f"{rounded['edits']} held-out edits of {heldout.num_inference_steps} steps, rounded as the plans "
        f"round: {rounded['success_rate']:.1%} right, in float32 {exact['success_rate']:.1%}; "
        f"{distance['median']} dB from float32 in the median, {distance['least']} at worst"
    )
    return {"rounding": {"key": key, **found}}


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
    plugin = order.plugin if keeps_plugin(bundle, graph) else None
    onnx_file = scratch / f"{graph}.onnx"
    types = _write_typed(bundle, order, graph, onnx_file)
    # Hashed before the builder runs: exactly the bytes that the plan is built from.
    typed_files = _hash_files(scratch)
    options = Options(order.capabilities, order.smallest.workspace_bytes, order.weight_streaming, plugin)
    key = _build_key(order.backend, builder.version, typed_files, profiles, options)
    file = f"{graph}-{precision}.plan"
    for plan in engines.plans:
        if plan.file == file and plan.key == key and _is_whole(engines, plan):
            report(f"{graph}: {file} is there, built from the same")
            _empty(scratch)
            # Parts of the bundle that are not in the typed graph may have changed.
            return replace(plan, source_sha256=source)
    # The types of a graph in 16 bits were chosen by PyTorch: there is no float32 here to hold it to.
    errors = measure_error(bundle, graph, precision) if stored_precision(bundle, graph) is None else {}
    built = builder.build(onnx_file, profiles, options, progress)
    _empty(scratch)
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
        "kernels": [list(asdict(kernel).values()) for kernel in built.kernels],
        "onnx_types": types,
        "onnx_sha256": typed_files,
        "relative_error": errors,
        "weight_streaming": order.weight_streaming,
        "workspace_bytes": order.smallest.workspace_bytes,
        "plugin": None if plugin is None else {"file": plugin.name, "sha256": hash_file(plugin)},
    }
    digest = hashlib.sha256(built.plan).hexdigest()
    return PlanSpec(graph, precision, file, built.plan.nbytes, digest, source, key, profiles, facts)


def _write_typed(bundle: Bundle, order: Order, graph: str, file: Path) -> dict[str, int]:
    """Write the strongly typed graph that a plan is built from; returns how many values have each type."""
    has_plugin = order.plugin is not None and keeps_plugin(bundle, graph)
    model = load_standard(bundle, graph, keep_plugin=has_plugin)
    if stored_precision(bundle, graph) is None:
        set_precision(model, order.precision_of(graph))
    types = count_types(model)
    save_typed(model, file)
    return types


def _hash_typed(bundle: Bundle, order: Order, graph: str) -> dict[str, str]:
    """The hashes of the typed graph's files."""
    with tempfile.TemporaryDirectory(prefix="typed-") as folder:
        _write_typed(bundle, order, graph, Path(folder, f"{graph}.onnx"))
        return _hash_files(Path(folder))


def _hash_files(folder: Path) -> dict[str, str]:
    return {path.name: hash_file(path) for path in sorted(folder.iterdir())}


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _build_key(
    backend: str,
    version: str,
    typed_files: Mapping[str, str],
    profiles: tuple[ShapeProfile, ...],
    options: Options,
) -> str:
    """A hash of everything that the builder is given. The code that produced it does not enter the hash."""
    given = {
        **asdict(options),
        "plugin": None if options.plugin is None else hash_file(options.plugin),
    }
    return _hash_facts([backend, version, typed_files, [[p.name, p.shapes] for p in profiles], given])


def _hash_facts(facts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _engine_folder(order: Order, output: Path, builder: Builder) -> Path:
    """Plans for one GPU alone lie under its name: another of the same architecture has plans of its own."""
    gpu = _gpu_here(order)
    target = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") if gpu else order.folder
    return output / target / f"{order.backend}-{builder.version}"


def _gpu_here(order: Order) -> str:
    """The only GPU that the plans will run on, "" if they run on all of an architecture.

    TensorRT builds for the GPU of this machine, whose name is CUDA's.
    """
    if order.backend == "tensorrt-rtx":
        return ""
    gpu, target = Cuda().gpu, order.targets[0]
    if gpu.capability != target.compute_capability:
        raise RequestError(
            f"TensorRT builds for the GPU that it runs on, {gpu.name} ({gpu.capability}); {target.name} has "
            f"compute capability {target.compute_capability}: build on such a machine"
        )
    return gpu.name


def _is_whole(engines: EngineSet, plan: PlanSpec) -> bool:
    try:
        verify_plan_file(engines, plan)
    except BackendError:
        return False
    return True


def _existing(folder: Path) -> EngineSet | None:
    path = folder / "manifest.json"
    return read_manifest(path) if path.is_file() else None


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command's arguments. Ends the program with a usage message for wrong ones."""
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
    add("--plugin", type=Path, metavar="LIB", help="libeditverse_plugin.so, for a bundle that needs it")
    add("--quality", type=Path, metavar="FILE", help="a quality report (JSON) to keep beside the plans")
    add(
        "--heldout-edits", type=int, metavar="N",
        help="edits of each task and kind that the rounding is scored on, 0 for none (default: 1 for a "
        "bundle with a quality report)",
    )  # fmt: skip
    add("--heldout-steps", type=int, default=8, metavar="N", help="solver steps of those (default: 8)")
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="(default: engines/ of the bundle)",
    )
    add("--dry-run", action="store_true", help="print what would be built, and build nothing")
    args = parser.parse_args(argv)
    if sum((bool(args.target), args.all, args.recipe is not None)) > 1:
        parser.error("--target, --all and --recipe exclude each other")
    if (args.heldout_edits or 0) < 0 or args.heldout_steps < 1:
        parser.error("--heldout-edits takes 0 or more, --heldout-steps 1 or more")
    return args


def _count_heldout(bundle: Bundle, asked: int | None) -> int:
    """One edit of each kind, if the bundle has a quality report; another bundle may not know these edits."""
    if asked is not None:
        return asked
    is_float32 = bundle.spec.capabilities.dtype == "float32"
    return int(is_float32 and "by_task" in bundle.spec.quality)


class _Interrupt:
    """Ctrl-C asks the builder to stop at its next step."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, *_: object) -> None:
        self.asked = True


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    interrupt = _Interrupt()
    try:
        bundle = load_bundle(args.bundle)
        check_source(bundle)
        orders = list_orders(args, bundle)
        if args.plugin is not None and not keeps_plugin(bundle, "transformer"):
            raise RequestError(
                f'bundle "{bundle.spec.name}" does not need a plugin; export it with the attention as a plugin, '
                "or leave --plugin out"
            )
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
        output = args.output or engines_folder(bundle)
        heldout = Heldout(_count_heldout(bundle, args.heldout_edits), args.heldout_steps)
        # disable=None: nothing where standard error is no terminal; what is built is said line by line.
        bar = tqdm(file=sys.stderr, disable=None, leave=False, unit="step")

        def say(line: str) -> None:
            tqdm.write(line)
            sys.stdout.flush()

        def show(phase: str, step: int, total: int) -> bool:
            bar.set_description(phase, refresh=False)
            bar.n, bar.total = step, total
            bar.refresh()
            return not interrupt.asked

        given = {} if quality is None else {"quality": quality}
        notes = [{**given, **score_order(bundle, order, heldout, output, builder, say)} for order in orders]
        # From here on Ctrl-C asks the builder to stop: it takes no exception.
        signal.signal(signal.SIGINT, interrupt)
        for order, noted in zip(orders, notes, strict=True):
            engines = build_engines(bundle, order, output, builder, notes=noted, report=say, progress=show)
            print(engines.folder)
        bar.close()
        if cache is not None and builder.timing_cache:
            cache.write_bytes(builder.timing_cache)
    except RequestCancelled as error:
        print(f"error: {error}", file=sys.stderr)
        return 130
    except (BackendError, EditVerseError, ValueError) as error:
        text = error.describe(FLAGS) if isinstance(error, EditVerseError) else str(error)
        print(f"error: {' '.join(text.split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
