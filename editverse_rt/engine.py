"""Plans on disk: the manifest beside them, which may run here, its profile, the sizes of its buffers.

    BUNDLE/engines/<targets>/<backend>-<version>/manifest.json, <graph>-<precision>.plan, verified.json

Nothing here needs a GPU: what does is in `backends/trt_runner.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from editverse_rt.bundle import Bundle
from editverse_rt.errors import BackendError, BundleError
from editverse_rt.fields import EXPORT_AGAIN, LARGEST, Fields, read_json
from editverse_rt.files import hash_file
from editverse_rt.spec import GraphSpec, TensorSpec

__all__ = [
    "BUILD_AGAIN",
    "ENGINES_FOLDER",
    "HOST_GRAPHS",
    "EngineSet",
    "PlanSpec",
    "ShapeProfile",
    "build_command",
    "choose_plans",
    "choose_profile",
    "choose_weight_budget",
    "count_bytes",
    "find_engines",
    "is_verified",
    "output_shapes",
    "read_manifest",
    "refuse_options",
    "source_digest",
    "verify_plan_file",
    "write_manifest",
    "write_stamp",
]

ENGINES_FOLDER = "engines"
MANIFEST = "manifest.json"
STAMP = "verified.json"
FORMAT_VERSION = 1
BUILD_AGAIN = "build the engines again"
HOST_GRAPHS = frozenset({"noise"})
"""Graphs without plans, which run on the CPU: noise needs 64-bit shifts, and is drawn once a request."""
_ITEM_BYTES = {"float32": 4, "int64": 8, "uint8": 1}
Shape = tuple[int, ...]


@dataclass(frozen=True)
class ShapeProfile:
    """One optimization profile: of each dynamic input the least, the tuned and the largest shape."""

    name: str
    shapes: dict[str, tuple[Shape, Shape, Shape]]

    def find_misfits(self, shapes: Mapping[str, Shape]) -> list[str]:
        """Those inputs of the profile whose shapes here are outside of it, by rank or by size."""
        return [
            name
            for name, (low, _, high) in self.shapes.items()
            if not len(low) == len(shapes[name]) == len(high)
            or not all(a <= b <= c for a, b, c in zip(low, shapes[name], high, strict=True))
        ]

    @property
    def num_largest(self) -> int:
        """Values of all inputs at their largest: profiles are tried from the smallest."""
        return sum(math.prod(high) for _, _, high in self.shapes.values())


@dataclass(frozen=True)
class PlanSpec:
    """One plan: the graph it is of, how it was built, and its file.

    source_sha256: of the bundle's files that it was built from. key: of everything that decides its bytes, so
    that a second build can be left out. facts: what else the builder noted.
    """

    graph: str
    precision: str
    file: str
    num_bytes: int
    sha256: str
    source_sha256: str
    key: str
    profiles: tuple[ShapeProfile, ...]
    facts: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class EngineSet:
    """The plans of one folder, all built by one version of one backend for the same GPUs.

    compute_capabilities: "8.9" ... gpu: the name of the only GPU that the plans run on, "" if they run on all
    of those capabilities. notes: measured errors, the quality report.
    """

    folder: Path
    backend: str
    backend_version: str
    compute_capabilities: tuple[str, ...]
    gpu: str
    plans: tuple[PlanSpec, ...]
    notes: dict[str, object] = field(default_factory=dict)


def source_digest(bundle: Bundle, graph: str) -> str:
    """One sha256 over the bundle's files that hold a graph and its weights, from the hashes it lists."""
    file = bundle.spec.graphs[graph].file
    folder = Path(file).parent
    parts = [
        f"{entry.path} {entry.sha256}"
        for entry in bundle.spec.files
        if entry.path == file
        or (
            entry.path.endswith(".weights")
            and Path(entry.path).parent == folder
            and graph.startswith(Path(entry.path).stem)
        )
    ]
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()


def write_manifest(engines: EngineSet) -> Path:
    """Write the folder's manifest in one step."""
    value = {
        "format_version": FORMAT_VERSION,
        "backend": engines.backend,
        "backend_version": engines.backend_version,
        "compute_capabilities": list(engines.compute_capabilities),
        "gpu": engines.gpu,
        "plans": [asdict(plan) for plan in engines.plans],
        "notes": engines.notes,
    }
    return _write_json(engines.folder / MANIFEST, value)


def read_manifest(path: Path) -> EngineSet:
    """Read and check one manifest. Raises BackendError that names the field, and tells to build again."""
    value = read_json(path, error=BackendError, fix=BUILD_AGAIN)
    fields = Fields(value, str(path), "", error=BackendError, fix=BUILD_AGAIN)
    version = fields.integer("format_version", 1)
    if version != FORMAT_VERSION:
        fields.refuse("format_version", version, str(FORMAT_VERSION))
    return EngineSet(
        folder=path.parent,
        backend=fields.string("backend"),
        backend_version=fields.string("backend_version"),
        compute_capabilities=tuple(str(c) for c in fields.array("compute_capabilities")),
        gpu=fields.text("gpu"),
        plans=tuple(_read_plan(entry) for entry in fields.children("plans")),
        notes=fields.mapping("notes"),
    )


def find_engines(bundle: Bundle) -> list[EngineSet]:
    """All plans that lie in the bundle's folder. Raises BackendError for a manifest that cannot be read."""
    return [read_manifest(path) for path in sorted((bundle.root / ENGINES_FOLDER).glob(f"*/*/{MANIFEST}"))]


def choose_plans(
    bundle: Bundle, graphs: tuple[str, ...], backend: str, version: str, capability: str, gpu: str
) -> tuple[EngineSet, dict[str, PlanSpec]]:
    """The plans of all graphs for this GPU, from the first folder that has them, verified ones first.

    Raises BackendError that says why none may run here and which command builds one that may: none built,
    built for another GPU, by another version of the backend, or from another state of the bundle.
    """
    command = build_command(bundle, backend, capability)
    reasons: list[str] = []
    fitting: list[tuple[EngineSet, dict[str, PlanSpec]]] = []
    for engines in find_engines(bundle):
        if engines.backend != backend:
            continue
        where = engines.folder.relative_to(bundle.root).as_posix()
        if capability not in engines.compute_capabilities or engines.gpu not in ("", gpu):
            built_for = engines.gpu or ", ".join(engines.compute_capabilities)
            reasons.append(f"{where} is for {built_for}, this GPU is {gpu} ({capability})")
        elif engines.backend_version != version:
            reasons.append(f"{where} is of {backend} {engines.backend_version}, here is {version}")
        else:
            # Of one graph's plans in several precisions, the last was built last.
            chosen = {plan.graph: plan for plan in engines.plans if plan.graph in graphs}
            missing = [g for g in graphs if g not in chosen]
            stale = [g for g in graphs if g in chosen and chosen[g].source_sha256 != source_digest(bundle, g)]
            if stale:
                reasons.append(f"{where} was built from another state of {', '.join(stale)}")
            elif missing:
                reasons.append(f"{where} lacks {', '.join(missing)}")
            else:
                fitting.append((engines, chosen))
    if fitting:
        return min(fitting, key=lambda found: not is_verified(found[0], gpu))
    why = "; ".join(reasons) or f'bundle "{bundle.spec.name}" has no plan of {backend}'
    raise BackendError(f"{why}; build it with: {command}")


def build_command(bundle: Bundle, backend: str, capability: str) -> str:
    """The command that builds a bundle's plans for a GPU."""
    target = f"sm_{capability.replace('.', '')}"
    return f"python -m export.build_engine {bundle.root} --backend {backend} --target {target}"


def verify_plan_file(engines: EngineSet, plan: PlanSpec) -> Path:
    """The plan's file, of the size and hash that the manifest says. Raises BackendError."""
    path = engines.folder / plan.file
    if not path.is_file():
        raise BackendError(f"{path} is missing; {BUILD_AGAIN}")
    if hash_file(path) != plan.sha256:
        raise BackendError(f"{path} was altered: its sha256 is not the manifest's; {BUILD_AGAIN}")
    return path


def choose_profile(plan: PlanSpec, shapes: Mapping[str, Shape]) -> int:
    """The number of the smallest profile that holds the shapes of these inputs.

    Raises BackendError with what the profiles reach, and the option that reaches further; and for a plan
    without profiles, or with one of an input that is not given.
    """
    if not plan.profiles:
        raise BackendError(f'the plan of graph "{plan.graph}" has no profile; {BUILD_AGAIN}')
    for profile in plan.profiles:
        for name in profile.shapes:
            if name not in shapes:
                raise BackendError(
                    f'the plan of graph "{plan.graph}" has a profile of "{name}", which the graph does not '
                    f"take; {BUILD_AGAIN}"
                )
    order = sorted(range(len(plan.profiles)), key=lambda index: plan.profiles[index].num_largest)
    for index in order:
        misfits = plan.profiles[index].find_misfits(shapes)
        if not misfits:
            return index
    largest = plan.profiles[order[-1]].shapes
    found = ", ".join(f"{name} {list(shapes[name])}" for name in misfits)
    reach = ", ".join(f"{name} {list(largest[name][0])} to {list(largest[name][2])}" for name in misfits)
    raise BackendError(
        f'graph "{plan.graph}" was asked for {found}, its plan reaches {reach}; ask for less, or build with '
        "a larger --max-tokens or --maxShapes"
    )


def refuse_options(plans: Mapping[str, PlanSpec], *, has_plugin: bool, has_budget: bool) -> str | None:
    """Why plans and a caller's options do not go together, and what to do; None if they do."""
    with_plugin = [plan.graph for plan in plans.values() if plan.facts.get("plugin")]
    if with_plugin and not has_plugin:
        return (
            f"its plan of {', '.join(with_plugin)} was built with the RopeAttention plugin; give --plugin "
            "build/plugin/libeditverse_plugin.so, or build the engines again without it"
        )
    if has_plugin and not with_plugin:
        return "none of its plans was built with a plugin; leave --plugin out"
    if has_budget and not any(plan.facts.get("weight_streaming") for plan in plans.values()):
        return "its plans hold all weights on the GPU; build the engines again with --weight-streaming"
    return None


def choose_weight_budget(asked_bytes: int | None, streamable_bytes: int, automatic_bytes: int) -> int:
    """How much of a plan's weights lies on the GPU: what the caller asked for, or TensorRT's own choice."""
    return min(automatic_bytes if asked_bytes is None else asked_bytes, streamable_bytes)


def output_shapes(graph: GraphSpec, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Shapes of a graph's outputs from those of its inputs, by the names of their axes.

    Raises BackendError for inputs that are missing, or contradict each other or the graph table.
    """
    sizes: dict[str, int] = {}
    for tensor in graph.inputs:
        shape = shapes.get(tensor.name)
        if shape is None or not _fits_axes(tensor, shape, sizes):
            found = "is missing" if shape is None else f"has shape {list(shape)}"
            raise BackendError(
                f'graph "{graph.name}": {tensor.name} {found}, expected {list(tensor.shape)}'
                f"{f' with {sizes}' if sizes else ''}; give inputs as the bundle's graph table has them"
            )
    results: dict[str, Shape] = {}
    for tensor in graph.outputs:
        axes = [_split_axis(axis) for axis in tensor.shape]
        for _, name in axes:
            if name and name not in sizes:
                raise BackendError(
                    f'graph "{graph.name}": no input has the axis {name} of {tensor.name}; {EXPORT_AGAIN}'
                )
        results[tensor.name] = tuple(factor * sizes[name] if name else factor for factor, name in axes)
    return results


def count_bytes(tensor: TensorSpec, shape: Shape) -> int:
    """Bytes of a tensor of the graph table at a shape; at least one, because a buffer needs an address."""
    return max(1, math.prod(shape) * _ITEM_BYTES[tensor.dtype])


def write_stamp(engines: EngineSet, gpu: str, quality: Mapping[str, object]) -> Path:
    """Note that these plans were verified on a GPU, with the quality report that says so."""
    plans = {plan.file: plan.sha256 for plan in engines.plans}
    return _write_json(engines.folder / STAMP, {"gpu": gpu, "plans": plans, "quality": dict(quality)})


def is_verified(engines: EngineSet, gpu: str) -> bool:
    """Whether a stamp says that just these plans were verified on that GPU."""
    plans = {plan.file: plan.sha256 for plan in engines.plans}
    try:
        stamp = read_json(engines.folder / STAMP, error=BackendError, fix=BUILD_AGAIN)
    except BackendError:
        return False
    return isinstance(stamp, dict) and stamp.get("gpu") == gpu and stamp.get("plans") == plans


def _fits_axes(tensor: TensorSpec, shape: Shape, sizes: dict[str, int]) -> bool:
    """Whether a shape has the axes of a tensor; sizes takes those of the axes that are named first here."""
    if len(shape) != len(tensor.shape):
        return False
    for axis, size in zip(tensor.shape, shape, strict=True):
        factor, name = _split_axis(axis)
        if not name and size != factor:
            return False
        if name and (size % factor or sizes.setdefault(name, size // factor) != size // factor):
            return False
    return True


def _split_axis(axis: int | str) -> tuple[int, str]:
    """`16*h` -> (16, `h`); `Lt` -> (1, `Lt`); 64 -> (64, ``). Raises BundleError for another factor."""
    if isinstance(axis, int):
        return axis, ""
    factor, star, name = axis.rpartition("*")
    if not star:
        return 1, name
    if not re.fullmatch("[0-9]{1,9}", factor) or int(factor) == 0:
        raise BundleError(f'a graph has the axis "{axis}"; expected a name, or 16*name; {EXPORT_AGAIN}')
    return int(factor), name


def _read_plan(fields: Fields) -> PlanSpec:
    plan = PlanSpec(
        graph=fields.string("graph"),
        precision=fields.string("precision"),
        file=fields.path("file"),
        num_bytes=fields.integer("num_bytes", 1),
        sha256=fields.string("sha256"),
        source_sha256=fields.string("source_sha256"),
        key=fields.string("key"),
        profiles=tuple(_read_profile(entry) for entry in fields.children("profiles")),
        facts=fields.mapping("facts"),
    )
    fields.finish()
    if re.search("[/\\\\]", plan.file):
        fields.refuse("file", plan.file, "the name of a file beside the manifest")
    return plan


def _read_profile(fields: Fields) -> ShapeProfile:
    shapes: dict[str, tuple[Shape, Shape, Shape]] = {}
    for name, value in fields.mapping("shapes").items():
        rows = value if isinstance(value, list) else []
        good = len(rows) == 3 and all(
            isinstance(row, list) and all(type(x) is int and 0 <= x <= LARGEST for x in row) for row in rows
        )
        if not good or not len(rows[0]) == len(rows[1]) == len(rows[2]):
            fields.refuse("shapes", value, "three shapes of the same rank: least, tuned, largest")
        shapes[name] = (tuple(rows[0]), tuple(rows[1]), tuple(rows[2]))
    return ShapeProfile(fields.string("name"), shapes)


def _write_json(path: Path, value: object) -> Path:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
    return path
