"""Bundles on disk: the one home of the `bundle.json` format, and of the checks before a byte is used."""

from __future__ import annotations

import json
import mmap
import os
import re
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path, PurePosixPath

from editverse_rt.bundle.interface import check_interfaces
from editverse_rt.bundle.spec import (
    FORMAT_VERSION,
    BundleSpec,
    FileSpec,
    Geometry,
    GraphSpec,
    Schedule,
    TensorSpec,
    TokenizerSpec,
)
from editverse_rt.errors import BundleError
from editverse_rt.fields import EXPORT_AGAIN, Fields, read_json
from editverse_rt.files import hash_file

__all__ = [
    "BUNDLE_JSON",
    "Bundle",
    "file_specs",
    "json_from_spec",
    "load_bundle",
    "load_spec",
    "shipped_bundles",
    "spec_from_json",
    "tokenizer_file",
    "write_bundle_json",
]

BUNDLE_JSON = "bundle.json"
# Far above what any bundle states, and low enough that no host's sums of them can overflow.
_MAX_SIDE_PX = 16384
_MAX_COUNT = 1 << 24


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: where it is, and what it says."""

    root: Path
    spec: BundleSpec

    def graph_path(self, name: str) -> Path:
        """The ONNX file of one graph. Raises BundleError for a graph that the bundle does not have."""
        if name not in self.spec.graphs:
            known = ", ".join(self.spec.graphs)
            raise BundleError(
                f'bundle "{self.spec.name}" has no graph "{name}", only {known}',
                hint=EXPORT_AGAIN,
                code="bundle.graph_missing",
            )
        return self.root / self.spec.graphs[name].file

    def tokenizer_path(self) -> Path:
        return self.root / self.spec.tokenizer.file


def shipped_bundles() -> tuple[str, ...]:
    """Names of the bundles inside the installed package."""
    folder = resources.files("editverse_rt") / "bundles"
    if not folder.is_dir():
        return ()
    return tuple(sorted(entry.name for entry in folder.iterdir() if (entry / BUNDLE_JSON).is_file()))


def load_bundle(path_or_name: str | os.PathLike[str]) -> Bundle:
    """Open a bundle and verify it: format version, every field, every file's place, size and sha256.

    path_or_name: the name of a bundle that ships with the package ("nano"), or a folder. A shipped name
    wins over a folder of that name in the working directory; "./nano" is always the folder.
    Raises BundleError: nothing there, a field missing or of a wrong type, a newer format version, a path
    that leaves the bundle, a file missing, cut short or altered, a graph that refers to an unlisted file.
    """
    root, spec = _find_root(path_or_name), load_spec(path_or_name)
    for file in spec.files:
        _verify_file(root, file)
    _refuse_unlisted_weights(root, spec)
    return Bundle(root, spec)


def load_spec(path_or_name: str | os.PathLike[str]) -> BundleSpec:
    """What `bundle.json` says, without the files beside it. Raises BundleError as `load_bundle` does."""
    path = _find_root(path_or_name) / BUNDLE_JSON
    return spec_from_json(read_json(path), where=str(path))


def tokenizer_file(path_or_name: str | os.PathLike[str], spec: BundleSpec) -> Path:
    """The tokenizer of a bundle of which only bundle.json was read, verified by its hash."""
    root = _find_root(path_or_name)
    for file in spec.files:
        if file.path == spec.tokenizer.file:
            _verify_file(root, file)
    return root / spec.tokenizer.file


def file_specs(root: str | os.PathLike[str]) -> tuple[FileSpec, ...]:
    """Size and sha256 of every file under root but bundle.json, in the order of their paths."""
    folder = Path(root)
    paths = [(path, folder / path) for path in _list_files(folder)]
    return tuple(FileSpec(path, full.stat().st_size, hash_file(full)) for path, full in paths)


def write_bundle_json(root: str | os.PathLike[str], spec: BundleSpec) -> Path:
    """Write root/bundle.json, in one step, after checking that it can be read back as the same spec.

    Raises BundleError if the spec is not one that `load_bundle` would take.
    """
    path = Path(root) / BUNDLE_JSON
    text = json.dumps(json_from_spec(spec), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if spec_from_json(json.loads(text), where=str(path)) != spec:
        raise BundleError(
            f"{path}: the spec does not read back as it was written",
            hint="use only JSON types in it",
            code="bundle.unwritable",
        )
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
    return path


def json_from_spec(spec: BundleSpec) -> dict[str, object]:
    """The JSON object of a spec: plain dicts, lists, strings and numbers."""

    def tensors(specs: tuple[TensorSpec, ...]) -> list[object]:
        return [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in specs]

    return {
        "format_version": spec.format_version,
        "name": spec.name,
        "model": spec.model,
        "geometry": asdict(spec.geometry),
        "tokenizer": asdict(spec.tokenizer),
        "graphs": {
            name: {"file": graph.file, "inputs": tensors(graph.inputs), "outputs": tensors(graph.outputs)}
            for name, graph in spec.graphs.items()
        },
        "schedules": {
            name: {
                "kind": schedule.kind,
                "timesteps": list(schedule.timesteps),
                "coefficients": [list(row) for row in schedule.coefficients],
                "guidance_scale": list(schedule.guidance_scale),
            }
            for name, schedule in spec.schedules.items()
        },
        "default_schedule": spec.default_schedule,
        "files": [asdict(file) for file in spec.files],
        "made": spec.made,
        "quality": spec.quality,
    }


def spec_from_json(value: object, where: str = BUNDLE_JSON) -> BundleSpec:
    """Check the JSON value of a bundle.json field by field. `where` stands at the head of error messages.

    Raises BundleError that names the field, what was found and what was expected.
    """
    fields = Fields(value, where, "")
    version = fields.integer("format_version", 1)
    if version > FORMAT_VERSION:
        # Before any other field: a newer format may mean anything by them.
        raise BundleError(
            f"{where}: format_version is {version}, made by a newer version of editverse-rt",
            hint=f"this one reads up to {FORMAT_VERSION}; upgrade with: pip install -U editverse-rt",
            code="bundle.format",
        )
    geometry = _read_geometry(fields.child("geometry"))
    tokenizer_fields = fields.child("tokenizer")
    tokenizer = TokenizerSpec(
        file=tokenizer_fields.path("file"),
        eos_id=tokenizer_fields.integer("eos_id", 0),
        max_tokens=tokenizer_fields.integer("max_tokens", 2),
    )
    tokenizer_fields.finish()
    files = tuple(_read_file(entry) for entry in fields.children("files"))
    spec = BundleSpec(
        format_version=version,
        name=fields.string("name"),
        model=fields.mapping("model"),
        geometry=geometry,
        tokenizer=tokenizer,
        graphs={name: _read_graph(name, entry) for name, entry in fields.named_children("graphs")},
        schedules={name: _read_schedule(name, entry) for name, entry in fields.named_children("schedules")},
        default_schedule=fields.string("default_schedule"),
        files=files,
        made=fields.mapping("made"),
        quality=fields.mapping("quality"),
    )
    fields.finish()
    if spec.default_schedule not in spec.schedules:
        expected = f"one of {', '.join(spec.schedules) or 'none'}"
        fields.refuse("default_schedule", spec.default_schedule, expected)
    listed = [file.path for file in files]
    if len(set(listed)) != len(listed) or BUNDLE_JSON in listed:
        fields.refuse("files", listed, f"each file once, without {BUNDLE_JSON} itself")
    for field, path in [
        ("tokenizer.file", tokenizer.file),
        *((f"graphs.{name}.file", graph.file) for name, graph in spec.graphs.items()),
    ]:
        if path not in listed:
            fields.refuse(field, path, "a path that the list of files has, with its sha256")
    check_interfaces(spec, fields)
    return spec


def _read_geometry(fields: Fields) -> Geometry:
    geometry = Geometry(
        temporal_ratio=fields.integer("temporal_ratio", 1, _MAX_COUNT),
        spatial_ratio=fields.integer("spatial_ratio", 1, _MAX_SIDE_PX),
        patch_size=fields.integer("patch_size", 1, _MAX_SIDE_PX),
        patch_dim=fields.integer("patch_dim", 1, _MAX_COUNT),
        min_area_px=fields.integer("min_area_px", 1),
        max_area_px=fields.integer("max_area_px", 1),
        max_side_px=fields.integer("max_side_px", 1, _MAX_SIDE_PX),
        max_frames=fields.integer("max_frames", 1, _MAX_COUNT),
        default_height_px=fields.integer("default_height_px", 1),
        default_width_px=fields.integer("default_width_px", 1),
        default_frames=fields.integer("default_frames", 1),
        default_fps=fields.positive_number("default_fps"),
    )
    fields.finish()
    if geometry.min_area_px > geometry.max_area_px:
        fields.refuse("min_area_px", geometry.min_area_px, f"at most max_area_px = {geometry.max_area_px}")
    for field, side in (
        ("default_height_px", geometry.default_height_px),
        ("default_width_px", geometry.default_width_px),
    ):
        if side % geometry.size_multiple or side > geometry.max_side_px:
            expected = f"a multiple of {geometry.size_multiple} up to max_side_px = {geometry.max_side_px}"
            fields.refuse(field, side, expected)
    for field, frames in (("max_frames", geometry.max_frames), ("default_frames", geometry.default_frames)):
        if frames > geometry.max_frames or geometry.round_frames(frames) != frames:
            expected = f"1 + {geometry.temporal_ratio} * k, up to max_frames = {geometry.max_frames}"
            fields.refuse(field, frames, expected)
    return geometry


def _read_file(fields: Fields) -> FileSpec:
    file = FileSpec(fields.path("path"), fields.integer("num_bytes", 0), fields.string("sha256"))
    fields.finish()
    if not re.fullmatch(r"[0-9a-f]{64}", file.sha256):
        fields.refuse("sha256", file.sha256, "64 lower-case hexadecimal digits")
    return file


def _read_graph(name: str, fields: Fields) -> GraphSpec:
    graph = GraphSpec(
        name=name,
        file=fields.path("file"),
        inputs=tuple(_read_tensor(entry) for entry in fields.children("inputs")),
        outputs=tuple(_read_tensor(entry) for entry in fields.children("outputs")),
    )
    fields.finish()
    return graph


def _read_tensor(fields: Fields) -> TensorSpec:
    name, dtype, shape = fields.string("name"), fields.string("dtype"), fields.array("shape")
    fields.finish()
    axes: list[int | str] = []
    for axis in shape:
        if isinstance(axis, bool) or not isinstance(axis, (int, str)) or axis == "":
            fields.refuse("shape", shape, "a list of whole numbers and names of dynamic axes")
        axes.append(axis)
    return TensorSpec(name, dtype, tuple(axes))


def _read_schedule(name: str, fields: Fields) -> Schedule:
    kind = fields.string("kind")
    timesteps = fields.numbers("timesteps")
    rows = fields.number_rows("coefficients")
    guidance_scale = fields.numbers("guidance_scale")
    fields.finish()
    if kind not in ("euler", "multistep"):
        fields.refuse("kind", kind, '"euler" or "multistep"')
    ascending = list(timesteps) == sorted(set(timesteps))
    if not timesteps or not ascending or timesteps[0] < 0 or timesteps[-1] >= 1:
        fields.refuse("timesteps", list(timesteps), "times in [0, 1), each above the one before")
    if len(rows) != len(timesteps) or any(len(row) != 3 for row in rows):
        fields.refuse("coefficients", [list(row) for row in rows], f"{len(timesteps)} rows of 3 numbers")
    if len(guidance_scale) != len(timesteps) or any(scale < 0 for scale in guidance_scale):
        fields.refuse("guidance_scale", list(guidance_scale), f"{len(timesteps)} numbers of at least 0")
    return Schedule(
        name=name,
        timesteps=timesteps,
        coefficients=tuple((row[0], row[1], row[2]) for row in rows),
        guidance_scale=guidance_scale,
        kind="euler" if kind == "euler" else "multistep",
    )


def _find_root(path_or_name: str | os.PathLike[str]) -> Path:
    shipped = shipped_bundles()
    if isinstance(path_or_name, str) and path_or_name in shipped:
        entry = resources.files("editverse_rt") / "bundles" / path_or_name
        if not isinstance(entry, Path):
            raise BundleError(
                f'bundle "{path_or_name}" lies in an archive',
                expected="an installed folder",
                hint="install with pip",
                code="bundle.not_found",
            )
        return entry
    root = Path(path_or_name)
    if not (root / BUNDLE_JSON).is_file():
        found = f"no {BUNDLE_JSON} in it" if root.is_dir() else "no such folder"
        names = ", ".join(f'"{name}"' for name in shipped) or "none in this installation"
        raise BundleError(
            f'bundle "{root}": {found}',
            hint=f"give the folder of a bundle, or a name that ships: {names}",
            code="bundle.not_found",
        )
    return root


def _verify_file(root: Path, file: FileSpec) -> None:
    path = root / file.path
    if not path.resolve().is_relative_to(root.resolve()):
        raise BundleError(
            f"{path} is a link that leaves the bundle",
            hint="copy the file itself to that place",
            code="bundle.file_outside",
        )
    if not path.is_file():
        raise BundleError(
            f"{path} is missing",
            hint=f"bundle.json lists it; fetch or {EXPORT_AGAIN}",
            code="bundle.file_missing",
        )
    num_bytes = path.stat().st_size
    if num_bytes != file.num_bytes:
        raise BundleError(
            f"{path} has {num_bytes} bytes, expected {file.num_bytes}",
            hint=f"fetch or {EXPORT_AGAIN}",
            code="bundle.file_altered",
        )
    digest = hash_file(path)
    if digest != file.sha256:
        raise BundleError(
            f"{path} was altered: sha256 {digest}, expected {file.sha256}",
            hint=f"fetch or {EXPORT_AGAIN}",
            code="bundle.file_altered",
        )


def _refuse_unlisted_weights(root: Path, spec: BundleSpec) -> None:
    """A graph must not take weights from a file that was not verified.

    A graph names its external data by path inside the ONNX file; looking for the names of the unlisted
    files there needs no ONNX parser.
    """
    listed = {file.path for file in spec.files}
    unlisted = [path for path in _list_files(root) if path not in listed]
    for graph in spec.graphs.values() if unlisted else ():
        with (root / graph.file).open("rb") as stream:
            if not (root / graph.file).stat().st_size:
                continue
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                for path in unlisted:
                    if content.find(PurePosixPath(path).name.encode()) >= 0:
                        raise BundleError(
                            f"{root / path} is not in the list of files of bundle.json, but graph "
                            f'"{graph.name}" refers to it',
                            hint=EXPORT_AGAIN,
                            code="bundle.file_unlisted",
                        )


def _list_files(root: Path) -> list[str]:
    paths = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return sorted(path for path in paths if path != BUNDLE_JSON)
