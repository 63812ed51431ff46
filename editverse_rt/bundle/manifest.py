"""Bundles on disk: the one home of the `bundle.json` format, and of the checks before a byte is used."""

from __future__ import annotations

import json
import mmap
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath

from editverse_rt.bundle.description import BUNDLE_JSON, json_from_spec, spec_from_json
from editverse_rt.bundle.spec import BundleSpec, FileSpec
from editverse_rt.errors import BundleError
from editverse_rt.fields import EXPORT_AGAIN, read_json
from editverse_rt.files import hash_file

__all__ = [
    "Bundle",
    "file_specs",
    "load_bundle",
    "load_spec",
    "shipped_bundles",
    "tokenizer_file",
    "write_bundle_json",
]


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
