"""Plans on disk: the manifest beside them, and the hashes that hold them to it.

BUNDLE/engines/<targets>/<backend>-<version>/manifest.json, <graph>-<precision>.plan, verified.json
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from editverse_rt.bundle.manifest import Bundle
from editverse_rt.engines.shapes import Shape
from editverse_rt.errors import BackendError
from editverse_rt.fields import LARGEST, Fields, read_json
from editverse_rt.files import hash_file, write_json

__all__ = [
    "BUILD_AGAIN",
    "ENGINES_FOLDER",
    "EngineSet",
    "PlanSpec",
    "ShapeProfile",
    "engines_folder",
    "find_engines",
    "read_manifest",
    "source_digest",
    "verify_plan_file",
    "write_manifest",
]

ENGINES_FOLDER = "engines"
MANIFEST = "manifest.json"
FORMAT_VERSION = 1
BUILD_AGAIN = "build the engines again"


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
    return write_json(engines.folder / MANIFEST, value)


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


def engines_folder(bundle: Bundle) -> Path:
    """Where a bundle's plans lie: in its folder, but for one that ships, in a checkout's `engines/`.

    A checkout is told by its folders: CHECKOUT/editverse_rt/bundles/NAME beside CHECKOUT/engines.
    """
    shipped, package = bundle.root.parent, bundle.root.parent.parent
    recipes = package.parent / ENGINES_FOLDER
    if (package.name, shipped.name) == ("editverse_rt", "bundles") and recipes.is_dir():
        return recipes / bundle.root.name
    return bundle.root / ENGINES_FOLDER


def find_engines(bundle: Bundle) -> list[EngineSet]:
    """All plans of a bundle. Raises BackendError for a manifest that cannot be read."""
    return [read_manifest(path) for path in sorted(engines_folder(bundle).glob(f"*/*/{MANIFEST}"))]


def verify_plan_file(engines: EngineSet, plan: PlanSpec) -> Path:
    """The plan's file, of the size and hash that the manifest says. Raises BackendError."""
    path = engines.folder / plan.file
    if not path.is_file():
        raise BackendError(f"{path} is missing", hint=BUILD_AGAIN, code="backend.engine_damaged")
    if hash_file(path) != plan.sha256:
        raise BackendError(
            f"{path} was altered: its sha256 is not the manifest's",
            hint=BUILD_AGAIN,
            code="backend.engine_damaged",
        )
    return path


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
