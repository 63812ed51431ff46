"""Metric models on disk: the one home of the `evaluation.json` format, and of the checks before their use.

A folder holds `evaluation.json`, ONNX graphs with their weights, and tokenizers. `export.metrics` writes it.
Each model has the graphs that its metrics need; a folder may hold any subset of the models.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, cast

from editverse_rt.bundle.manifest import file_specs
from editverse_rt.bundle.spec import FileSpec, GraphSpec, TensorSpec
from editverse_rt.errors import BundleError
from editverse_rt.fields import Fields, read_json
from editverse_rt.files import hash_file, write_json

__all__ = [
    "EVALUATION_JSON",
    "RESIZE_GRAPH",
    "ImagePreprocessing",
    "MetricModel",
    "MetricsBundle",
    "MetricsSpec",
    "TextPreprocessing",
    "load_metrics_bundle",
    "write_metrics_json",
]

EVALUATION_JSON = "evaluation.json"
RESIZE_GRAPH = "resize_bicubic"
"""frames uint8 [N, H, W, 3], size int64 [2] -> frames uint8 [N, h, w, 3], as Pillow's bicubic filter."""
_FORMAT_VERSION = 1
_FIX = "export the metric models again with python -m export.metrics"
Crop = Literal["floor", "round"]
Repair = Literal["none", "ftfy"]


@dataclass(frozen=True)
class ImagePreprocessing:
    """How a frame becomes a model's square picture.

    resize_px: of the shorter side, bicubic. crop_px: side of the square cut from the middle. crop: how half a
    pixel of its place is rounded: "floor" as transformers, "round" to even as torchvision. num_frames: of one
    call of a model of clips, None for a model of pictures. mean, std: inside the graph, named for the record.
    """

    graph: str
    resize_px: int
    crop_px: int
    crop: Crop
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_frames: int | None = None


@dataclass(frozen=True)
class TextPreprocessing:
    """How a text becomes ids.

    repair: "ftfy" mends a text by that library and unescapes HTML twice before; "none" does not.
    """

    graph: str
    tokenizer: str
    max_tokens: int
    repair: Repair


@dataclass(frozen=True)
class MetricModel:
    """One model: what it is, and how its inputs are made.

    id, revision, licence: of the published weights; revision None where it is not known. source_sha256: of
    the file of weights that was exported. logit_scale: the factor of its cosines, exp(logit_scale) of the
    checkpoint.
    """

    id: str
    revision: str | None
    licence: str
    source_sha256: str | None
    image: ImagePreprocessing
    text: TextPreprocessing | None = None
    logit_scale: float | None = None


@dataclass(frozen=True)
class MetricsSpec:
    """Everything `evaluation.json` says, checked. is_random: the weights are random, scores mean nothing."""

    name: str
    is_random: bool
    models: Mapping[str, MetricModel]
    graphs: Mapping[str, GraphSpec]
    files: tuple[FileSpec, ...]
    made: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class MetricsBundle:
    """A verified folder of metric models: where it is, and what it says."""

    root: Path
    spec: MetricsSpec

    def graph_path(self, name: str) -> Path:
        """The ONNX file of one graph. Raises BundleError for a graph that is not there."""
        if name not in self.spec.graphs:
            known = ", ".join(self.spec.graphs)
            raise BundleError(
                f'metric models "{self.spec.name}" have no graph "{name}"',
                expected=f"one of {known}",
                hint=_FIX,
                code="bundle.graph_missing",
            )
        return self.root / self.spec.graphs[name].file

    def model(self, name: str) -> MetricModel:
        """One model. Raises BundleError that names the models there are."""
        if name not in self.spec.models:
            known = ", ".join(self.spec.models)
            raise BundleError(
                f'metric models "{self.spec.name}" have no "{name}"',
                expected=f"one of {known}",
                hint=f"export it with python -m export.metrics --{name}, or leave its metrics out",
                code="bundle.metric_model",
            )
        return self.spec.models[name]


def load_metrics_bundle(folder: str | os.PathLike[str]) -> MetricsBundle:
    """Read and verify a folder of metric models: every field, every file's size and sha256.

    Raises BundleError: nothing there, a field missing or of a wrong type, a newer format, a file missing or
    altered, a graph or a tokenizer that the list of files does not name.
    """
    root = Path(folder)
    path = root / EVALUATION_JSON
    if not path.is_file():
        raise BundleError(
            f"{root}: found no {EVALUATION_JSON}",
            expected="a folder that export.metrics wrote",
            code="bundle.not_found",
        )
    spec = _spec_from_json(read_json(path, fix=_FIX), str(path))
    for file in spec.files:
        _verify(root, file)
    return MetricsBundle(root.resolve(), spec)


def write_metrics_json(
    root: str | os.PathLike[str],
    *,
    name: str,
    is_random: bool,
    models: Mapping[str, MetricModel],
    graphs: Mapping[str, GraphSpec],
    made: Mapping[str, object],
) -> MetricsSpec:
    """Hash every file under root and write root/evaluation.json; returns what it says, read back."""
    folder = Path(root)
    files = [file for file in file_specs(folder) if file.path != EVALUATION_JSON]
    value = {
        "format_version": _FORMAT_VERSION,
        "name": name,
        "weights": "random" if is_random else "published",
        "models": {key: _without_nulls(asdict(model)) for key, model in models.items()},
        "graphs": {
            key: {
                "file": graph.file,
                "inputs": [asdict(tensor) for tensor in graph.inputs],
                "outputs": [asdict(tensor) for tensor in graph.outputs],
            }
            for key, graph in graphs.items()
        },
        "files": [asdict(file) for file in files],
        "made": dict(made),
    }
    path = write_json(folder / EVALUATION_JSON, value)
    return _spec_from_json(read_json(path, fix=_FIX), str(path))


def _verify(root: Path, file: FileSpec) -> None:
    path = root / file.path
    if not path.is_file():
        raise BundleError(
            f"{path}: no such file",
            expected="the file that evaluation.json lists",
            hint=f"fetch it, or {_FIX}",
            code="bundle.file_missing",
        )
    found = path.stat().st_size
    if found != file.num_bytes:
        raise BundleError(
            f"{path}: found {found} bytes",
            expected=f"{file.num_bytes}",
            hint=f"fetch it again, or {_FIX}",
            code="bundle.file_altered",
        )
    if hash_file(path) != file.sha256:
        raise BundleError(
            f"{path}: its sha256 differs",
            expected="that of evaluation.json",
            hint=f"fetch it again, or {_FIX}",
            code="bundle.file_altered",
        )


def _spec_from_json(value: object, where: str) -> MetricsSpec:
    fields = Fields(value, where, "", fix=_FIX)
    version = fields.integer("format_version", 1)
    if version > _FORMAT_VERSION:
        raise BundleError(
            f"{where}: format_version is {version}",
            expected=f"{_FORMAT_VERSION} at most",
            hint="upgrade with: pip install -U editverse-rt",
            code="bundle.format",
        )
    files = tuple(
        FileSpec(entry.path("path"), entry.integer("num_bytes", 0), entry.string("sha256"))
        for entry in fields.children("files")
    )
    spec = MetricsSpec(
        name=fields.string("name"),
        is_random=_read_choice(fields, "weights", ("published", "random")) == "random",
        models={name: _read_model(entry) for name, entry in fields.named_children("models")},
        graphs={name: _read_graph(name, entry) for name, entry in fields.named_children("graphs")},
        files=files,
        made=fields.mapping("made"),
    )
    fields.finish()
    _check_references(spec, fields)
    return spec


def _check_references(spec: MetricsSpec, fields: Fields) -> None:
    """Refuse graphs and files that are named and not there: nothing unverified is ever opened."""
    listed = {file.path for file in spec.files}
    unlisted = sorted({graph.file for graph in spec.graphs.values()} - listed)
    if unlisted:
        fields.refuse("graphs", unlisted, "files of the list of files")
    wanted = {RESIZE_GRAPH} | {model.image.graph for model in spec.models.values()}
    for model in spec.models.values():
        if model.text is not None:
            wanted.add(model.text.graph)
            if model.text.tokenizer not in listed:
                fields.refuse("models", model.text.tokenizer, "a tokenizer of the list of files")
    missing = sorted(wanted - set(spec.graphs))
    if missing:
        fields.refuse("graphs", sorted(spec.graphs), f"also {', '.join(missing)}")


def _read_model(fields: Fields) -> MetricModel:
    image = fields.child("image")
    text = fields.child("text") if "text" in fields else None
    model = MetricModel(
        id=fields.string("id"),
        revision=fields.string("revision") if "revision" in fields else None,
        licence=fields.string("licence"),
        source_sha256=fields.string("source_sha256") if "source_sha256" in fields else None,
        image=ImagePreprocessing(
            graph=image.string("graph"),
            resize_px=image.integer("resize_px", 1, 4096),
            crop_px=image.integer("crop_px", 1, 4096),
            crop=cast(Crop, _read_choice(image, "crop", ("floor", "round"))),
            mean=image.numbers("mean"),
            std=image.numbers("std"),
            num_frames=image.integer("num_frames", 1, 4096) if "num_frames" in image else None,
        ),
        text=None
        if text is None
        else TextPreprocessing(
            graph=text.string("graph"),
            tokenizer=text.path("tokenizer"),
            max_tokens=text.integer("max_tokens", 3, 4096),
            repair=cast(Repair, _read_choice(text, "repair", ("none", "ftfy"))),
        ),
        logit_scale=fields.positive_number("logit_scale") if "logit_scale" in fields else None,
    )
    if model.image.crop_px > model.image.resize_px:
        image.refuse("crop_px", model.image.crop_px, f"at most resize_px, {model.image.resize_px}")
    for part in (image, text, fields):
        if part is not None:
            part.finish()
    return model


def _read_graph(name: str, fields: Fields) -> GraphSpec:
    def tensors(field_name: str) -> tuple[TensorSpec, ...]:
        found = []
        for entry in fields.children(field_name):
            shape = entry.array("shape")
            if not all(isinstance(axis, (int, str)) for axis in shape):
                entry.refuse("shape", shape, "numbers and names of axes")
            axes = tuple(cast("int | str", axis) for axis in shape)
            found.append(TensorSpec(entry.string("name"), entry.string("dtype"), axes))
            entry.finish()
        return tuple(found)

    spec = GraphSpec(name, fields.path("file"), tensors("inputs"), tensors("outputs"))
    fields.finish()
    return spec


def _read_choice(fields: Fields, name: str, choices: tuple[str, str]) -> str:
    found = fields.string(name)
    if found not in choices:
        fields.refuse(name, found, " or ".join(choices))
    return found


def _without_nulls(value: object) -> object:
    """A JSON value whose objects leave out the fields that are None."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value
