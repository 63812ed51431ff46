"""What `bundle.json` says: to JSON, and from JSON with every field checked."""

from __future__ import annotations

import re
from dataclasses import asdict

from editverse_rt.bundle.interface import check_interfaces
from editverse_rt.bundle.schedule import Schedule, ScheduleTable
from editverse_rt.bundle.spec import (
    FORMAT_VERSION,
    BundleSpec,
    Capabilities,
    Costs,
    FileSpec,
    Geometry,
    GraphSpec,
    TensorSpec,
    TokenizerSpec,
)
from editverse_rt.errors import BundleError
from editverse_rt.fields import Fields

__all__ = ["BUNDLE_JSON", "json_from_spec", "spec_from_json"]

BUNDLE_JSON = "bundle.json"
# Far above what any bundle states, and low enough that no host's sums of them can overflow.
_MAX_SIDE_PX = 16384
_MAX_COUNT = 1 << 24
_CONDITIONING = ("none", "interleaved", "rows", "channels", "control")
COST_KINDS = ("flops", "moved", "held")
_OPTIONAL_COST_KINDS = ("weight_bytes",)
_UNCONDITIONAL = ("drop_text", "prompt")


def json_from_spec(spec: BundleSpec) -> dict[str, object]:
    """The JSON object of a spec: plain dicts, lists, strings and numbers."""

    def tensors(specs: tuple[TensorSpec, ...]) -> list[object]:
        return [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in specs]

    return {
        "format_version": spec.format_version,
        "name": spec.name,
        "family": spec.family,
        "conditioning": spec.conditioning,
        "unconditional": spec.unconditional,
        "default_negative_prompt": spec.default_negative_prompt,
        "capabilities": asdict(spec.capabilities),
        "model": spec.model,
        "geometry": asdict(spec.geometry),
        "tokenizer": asdict(spec.tokenizer),
        "graphs": {
            name: {"file": graph.file, "inputs": tensors(graph.inputs), "outputs": tensors(graph.outputs)}
            for name, graph in spec.graphs.items()
        },
        "schedules": {
            name: {
                "graph": schedule.graph,
                "guidance_scale": schedule.guidance_scale,
                "options": schedule.options,
                "table": {
                    "times": list(schedule.table.times),
                    "timesteps": list(schedule.table.timesteps),
                    "guidance": list(schedule.table.guidance),
                    "matrices": [[list(row) for row in matrix] for matrix in schedule.table.matrices],
                    "experts": list(schedule.table.experts),
                },
            }
            for name, schedule in spec.schedules.items()
        },
        "default_schedule": spec.default_schedule,
        "files": [asdict(file) for file in spec.files],
        "costs": spec.costs,
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
    if version < FORMAT_VERSION:
        raise BundleError(
            f"{where}: format_version is {version}, made by an older version of editverse-rt",
            expected=f"{FORMAT_VERSION}",
            hint="convert it with: python -m export.convert_bundle BUNDLE",
            code="bundle.format",
            field="format_version",
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
        family=fields.string("family"),
        conditioning=fields.choice("conditioning", _CONDITIONING),
        unconditional=fields.choice("unconditional", _UNCONDITIONAL),
        default_negative_prompt=fields.text("default_negative_prompt"),
        capabilities=_read_capabilities(fields.child("capabilities")),
        model=fields.mapping("model"),
        geometry=geometry,
        tokenizer=tokenizer,
        graphs={name: _read_graph(name, entry) for name, entry in fields.named_children("graphs")},
        schedules={name: _read_schedule(name, entry) for name, entry in fields.named_children("schedules")},
        default_schedule=fields.string("default_schedule"),
        files=files,
        costs=_read_costs(fields.child("costs")),
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
    if geometry.shared_frames and "keep_known" not in spec.graphs:
        fields.refuse("geometry.shared_frames", geometry.shared_frames, '0 without a graph "keep_known"')
    _check_schedules(spec, fields)
    return spec


def _check_schedules(spec: BundleSpec, fields: Fields) -> None:
    """Matrices of the solver's size, and graphs and transformers that are there."""
    (history,) = (t.shape[0] for t in spec.graphs["solver_step"].inputs if t.name == "history")
    states = 1 + int(history)
    for name, schedule in spec.schedules.items():
        where = f"schedules.{name}"
        graphs = [graph for graph in spec.graphs if graph.startswith("schedule_")]
        # A fixed table has neither a graph nor options to make another from.
        if schedule.graph not in graphs and (schedule.options or not schedule.is_fixed):
            fields.refuse(f"{where}.graph", schedule.graph, f"one of the graphs {', '.join(graphs)}")
        made = () if schedule.is_fixed else spec.graphs[schedule.graph].inputs
        inputs = {tensor.name for tensor in made}
        # The second guidance scale is the first unless the options say otherwise.
        allowed = inputs - {"num_steps", "first_step", "guidance_scale"}
        required = allowed - {"guidance_scale_2"}
        if not required <= set(schedule.options) <= allowed:
            fields.refuse(
                f"{where}.options",
                sorted(schedule.options),
                f"values of {', '.join(sorted(required))}",
            )
        experts = schedule.table.experts
        if any(experts) and "transformer_2" not in spec.graphs:
            expected = '0 for each step without a graph "transformer_2"'
            fields.refuse(f"{where}.table.experts", list(experts), expected)
        sizes = {(len(matrix), *{len(row) for row in matrix}) for matrix in schedule.table.matrices}
        if sizes != {(states, states + 1)}:
            expected = f"matrices of {states} rows of {states + 1} numbers, as the graph solver_step takes"
            fields.refuse(f"{where}.table.matrices", sorted(sizes), expected)


def _read_costs(fields: Fields) -> Costs:
    found: Costs = {}
    for graph, costs in fields.named_children_of():
        kinds = (*COST_KINDS, *(kind for kind in _OPTIONAL_COST_KINDS if kind in costs))
        polynomials = {kind: costs.child(kind) for kind in kinds}
        found[graph] = {kind: {term: p.number(term) for term in p} for kind, p in polynomials.items()}
    return found


def _read_capabilities(fields: Fields) -> Capabilities:
    emulates = fields.mapping("emulates")
    capabilities = Capabilities(
        generates=fields.boolean("generates"),
        edits=fields.boolean("edits"),
        negative_prompt=fields.boolean("negative_prompt"),
        strength=fields.boolean("strength"),
        attention=fields.choice("attention", ("inline", "fused", "plugin")),
        convolutions=fields.choice("convolutions", ("volumes", "frames")),
        dtype=fields.choice("dtype", ("float32", "bfloat16", "float16")),
        weights=fields.choice("weights", ("float", "int8")),
        emulates={part: str(precision) for part, precision in emulates.items()},
    )
    fields.finish()
    return capabilities


def _read_geometry(fields: Fields) -> Geometry:
    geometry = Geometry(
        temporal_ratio=fields.integer("temporal_ratio", 1, _MAX_COUNT),
        spatial_ratio=fields.integer("spatial_ratio", 1, _MAX_SIDE_PX),
        patch_size=fields.integer("patch_size", 1, _MAX_SIDE_PX),
        patch_dim=fields.integer("patch_dim", 1, _MAX_COUNT),
        clean_dim=fields.integer("clean_dim", 1, _MAX_COUNT),
        min_area_px=fields.integer("min_area_px", 1),
        max_area_px=fields.integer("max_area_px", 1),
        max_side_px=fields.integer("max_side_px", 1, _MAX_SIDE_PX),
        max_frames=fields.integer("max_frames", 1, _MAX_COUNT),
        default_height_px=fields.integer("default_height_px", 1),
        default_width_px=fields.integer("default_width_px", 1),
        default_frames=fields.integer("default_frames", 1),
        default_fps=fields.positive_number("default_fps"),
        shared_frames=fields.integer("shared_frames", 0, _MAX_COUNT),
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
    area_px = geometry.default_height_px * geometry.default_width_px
    # The default is a size like any other, so that there is at least one.
    if not geometry.min_area_px <= area_px <= geometry.max_area_px:
        expected = (
            f"with default_width_px = {geometry.default_width_px} an area from min_area_px = {geometry.min_area_px} "
            f"to max_area_px = {geometry.max_area_px}"
        )
        fields.refuse("default_height_px", geometry.default_height_px, expected)
    for field, frames in (("max_frames", geometry.max_frames), ("default_frames", geometry.default_frames)):
        if frames > geometry.max_frames or geometry.round_frames(frames) != frames:
            expected = f"1 + {geometry.temporal_ratio} * k, up to max_frames = {geometry.max_frames}"
            fields.refuse(field, frames, expected)
    shared = geometry.shared_frames
    if shared and (shared >= geometry.max_frames or geometry.round_frames(shared) != shared):
        expected = f"0, or 1 + {geometry.temporal_ratio} * k below max_frames = {geometry.max_frames}"
        fields.refuse("shared_frames", shared, expected)
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
    options = fields.child("options")
    schedule = Schedule(
        name=name,
        graph=fields.text("graph"),
        guidance_scale=fields.number("guidance_scale", 0.0),
        table=_read_table(fields.child("table")),
        options={option: options.number(option) for option in options},
    )
    fields.finish()
    return schedule


def _read_table(fields: Fields) -> ScheduleTable:
    times, timesteps = fields.numbers("times"), fields.numbers("timesteps")
    guidance = fields.numbers("guidance")
    matrices = fields.matrices("matrices")
    experts = tuple(fields.numbers("experts"))
    fields.finish()
    if not timesteps or any(not 0 <= t < 1 for t in timesteps) or list(timesteps) != sorted(timesteps):
        fields.refuse("timesteps", list(timesteps), "times in [0, 1), none below the one before")
    for field, found in (
        ("times", times),
        ("matrices", matrices),
        ("guidance", guidance),
        ("experts", experts),
    ):
        if len(found) != len(timesteps):
            fields.refuse(field, f"{len(found)} entries", f"{len(timesteps)}, one for each of the timesteps")
    if any(scale < 0 for scale in guidance):
        fields.refuse("guidance", list(guidance), "numbers of at least 0")
    if any(index not in (0, 1) for index in experts):
        fields.refuse("experts", list(experts), "0 or 1 for each step")
    return ScheduleTable(times, timesteps, guidance, matrices, tuple(map(int, experts)))
