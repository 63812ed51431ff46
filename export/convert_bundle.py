"""`python -m export.convert_bundle BUNDLE`: a bundle of format 1 becomes one of format 2, in its own folder.

The converted bundle is written beside the old one and takes its place when it is whole, so a bundle that cannot be
converted stays as it was. Weights and graphs keep their bytes. `solver_step` is written anew, as a matrix over the
solver's state, `keep_known` and the `schedule_...` graphs are added, and `bundle.json` says what format 2 says.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python export/convert_bundle.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import onnx_ir as ir
from torch import nn

from editverse_rt.bundle.description import BUNDLE_JSON, spec_from_json
from editverse_rt.bundle.interface import interfaces_of, tensor_from_line
from editverse_rt.bundle.manifest import file_specs, write_bundle_json
from editverse_rt.bundle.schedule import Schedule, ScheduleTable
from editverse_rt.bundle.spec import BundleSpec, Capabilities, GraphSpec, TensorSpec
from editverse_rt.errors import EditVerseError
from editverse_rt.fields import read_json
from export.costs import count_costs
from export.export_onnx import export_module, take_place
from export.graphs import KeepKnown, SolverStep
from export.schedules import HISTORY_ROWS, ScheduleGraph, ScheduleSettings

__all__ = ["convert_bundle", "main"]


def convert_bundle(folder: Path) -> BundleSpec:
    """Convert a bundle of format 1 to one of format 2, which takes its place; one of format 2 is left as it is.

    Raises BundleError for a bundle.json that cannot be read, ValueError for one that is no object, is of another
    format, or has a schedule that format 2 cannot hold; KeyError for one that lacks a field.
    """
    value: Any = read_json(folder / BUNDLE_JSON)
    if not isinstance(value, dict):
        raise ValueError(f"{folder / BUNDLE_JSON}: {type(value).__name__} is found; expected an object")
    if value.get("format_version") == 2:
        return spec_from_json(value, where=str(folder / BUNDLE_JSON))
    if value.get("format_version") != 1:
        raise ValueError(f"{folder}: format_version is {value.get('format_version')}; expected 1")
    target = folder.absolute()
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        shutil.copytree(target, partial, symlinks=True, dirs_exist_ok=True)
        spec = _convert(value, partial)
        take_place(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return spec


def _convert(value: dict[str, Any], folder: Path) -> BundleSpec:
    """Write what is new in format 2 into a folder that holds the files of format 1."""
    made = value["made"]
    labels = {name: row["recipe"] for name, row in value["quality"].get("schedules", {}).items()}
    for row in value["quality"].get("schedules", {}).values():
        row["settings"] = row.pop("recipe")
    schedules = {
        name: _schedule_from_rows(name, rows, labels.get(name)) for name, rows in value["schedules"].items()
    }
    graphs = _graphs_of(value, {schedule.graph for schedule in schedules.values()})
    for name, graph in graphs.items():
        if _is_new(name):
            ir.save(export_module(_new_module(name), graph), folder / graph.file)
    can = Capabilities(
        attention=made.pop("attention", "inline"),
        convolutions=made.pop("convolutions", "volumes"),
        dtype=made.pop("dtype", "float32"),
        weights=made.pop("weights", "float"),
        emulates=made.pop("emulates", {}),
    )
    converted = {
        **value,
        "format_version": 2,
        "family": "editverse",
        "conditioning": "interleaved",
        "unconditional": "drop_text",
        "default_negative_prompt": "",
        "capabilities": asdict(can),
        "geometry": {**value["geometry"], "clean_dim": value["geometry"]["patch_dim"], "shared_frames": 1},
        "graphs": {name: _graph_json(graph) for name, graph in graphs.items()},
        "schedules": {
            name: {
                "graph": schedule.graph,
                "guidance_scale": schedule.guidance_scale,
                "options": schedule.options,
                "table": asdict(schedule.table),
            }
            for name, schedule in schedules.items()
        },
        "costs": count_costs(folder, graphs),
        "files": [asdict(file) for file in file_specs(folder) if not file.path.startswith("engines/")],
    }
    spec = spec_from_json(json.loads(json.dumps(converted)), where=str(folder / BUNDLE_JSON))
    write_bundle_json(folder, spec)
    return spec


def _schedule_from_rows(name: str, rows: dict[str, Any], label: str | None) -> Schedule:
    """A table of format 1, whose rows weigh the last three velocities, as matrices of the same numbers."""
    guidance = rows["guidance_scale"]
    guided = [scale for scale in guidance if scale != 1] or [1.0]
    if label is not None:
        try:
            settings = ScheduleSettings.from_label(label, guided[0])
        except ValueError as error:
            raise ValueError(
                f"schedule {name!r} was built as {label!r}, which format 2 cannot hold ({error}); take it out of "
                f'"schedules" and "quality.schedules" of bundle.json, or export the checkpoint again'
            ) from error
    else:
        settings = ScheduleSettings("euler" if rows["kind"] == "euler" else "ab2", len(guidance))
        settings = replace(settings, guidance_scale=guided[0])
    times = tuple(rows["timesteps"])
    matrices = tuple(
        ((1.0, c1, c2, c0), (0.0, 0.0, 0.0, 1.0), (0.0, 1.0, 0.0, 0.0)) for c0, c1, c2 in rows["coefficients"]
    )
    return Schedule(
        name=name,
        graph=f"schedule_{settings.solver}",
        guidance_scale=guided[0],
        table=ScheduleTable(times, times, tuple(guidance), matrices, (0,) * len(guidance)),
        options={
            "shift": settings.shift,
            "guided_from": settings.guided_from,
            "guided_until": settings.guided_until,
        },
    )


def _is_new(name: str) -> bool:
    """Whether a graph is written anew: format 1 has none of that name and interface."""
    return name in ("solver_step", "keep_known") or name.startswith("schedule_")


def _new_module(name: str) -> nn.Module:
    if name == "solver_step":
        return SolverStep(HISTORY_ROWS)
    if name == "keep_known":
        return KeepKnown()
    solver: Any = name.removeprefix("schedule_")
    return ScheduleGraph(solver)


def _graphs_of(value: dict[str, Any], schedules: set[str]) -> dict[str, GraphSpec]:
    """The graphs of the bundle by the table of format 2; what is not new keeps its inputs and outputs."""
    sizes = {
        "P": value["geometry"]["patch_dim"],
        "K": HISTORY_ROWS,
        "S": HISTORY_ROWS + 1,
        "S1": HISTORY_ROWS + 2,
    }
    graphs: dict[str, GraphSpec] = {}
    for name, interface in interfaces_of("editverse", "interleaved", tuple(sorted(schedules))).items():
        if _is_new(name):
            inputs, outputs = (
                tuple(tensor_from_line(line, sizes) for line in lines)
                for lines in (interface.inputs, interface.outputs)
            )
            graphs[name] = GraphSpec(name, f"{name}.onnx", inputs, outputs)
        else:
            graphs[name] = _graph_from_json(name, value["graphs"][name])
    return graphs


def _graph_json(graph: GraphSpec) -> dict[str, Any]:
    facts = asdict(graph)
    del facts["name"]
    return facts


def _graph_from_json(name: str, value: dict[str, Any]) -> GraphSpec:
    inputs, outputs = (
        tuple(TensorSpec(t["name"], t["dtype"], tuple(t["shape"])) for t in value[side])
        for side in ("inputs", "outputs")
    )
    return GraphSpec(name, value["file"], inputs, outputs)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export.convert_bundle",
        description="Convert a bundle of format 1 to format 2, in its own folder.",
    )
    parser.add_argument(
        "bundle", type=Path, metavar="BUNDLE", help="its folder; keep a copy if you need format 1"
    )
    args = parser.parse_args(argv)
    try:
        spec = convert_bundle(args.bundle)
    except (EditVerseError, OSError, ValueError, KeyError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{args.bundle}: format {spec.format_version}, family {spec.family}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
