"""`python -m export.export_onnx CHECKPOINT BUNDLE`: write a checkpoint as a bundle of ONNX graphs."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

if not __package__:  # run as a file: `python export/export_onnx.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import onnx
import onnx_ir as ir
import sentencepiece
import torch
from torch import nn
from tqdm import tqdm

from editverse_rt.bundle.manifest import file_specs, load_bundle, write_bundle_json
from editverse_rt.bundle.spec import FORMAT_VERSION, BundleSpec, GraphSpec, TokenizerSpec
from export import attention_nodes, lower
from export.blocks import round_blocks
from export.convolutions import unroll_convolutions
from export.costs import count_costs
from export.exact_constants import optimize_exactly
from export.families import family_export
from export.families.distilled import DISTILLED
from export.graphs import Graph, dynamic_shapes, example_inputs
from export.modulation import gather_modulation
from export.noise import build_noise_model
from export.rows import cut_rows_early
from export.weights import (
    MAX_INLINE_BYTES,
    count_weight_bytes,
    halve_exact_weights,
    move_weights_out,
    strip_traces,
)
from reference.checkpoint import load_any_checkpoint
from reference.lora import EXPERTS, Lora

__all__ = ["export_bundle", "export_graph", "export_module", "lora_from_text", "take_place"]

OPSET = 23
TOKENIZER_FILE = "tokenizer.model"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export_graph(graph: Graph, rope: lower.RopeConfig, lowering: lower.Lowering) -> ir.Model:
    """Trace one graph of the table; weights inside, names and axes as the table has them, traces removed."""
    if graph.module is None:
        return ir.from_proto(build_noise_model())
    model = _trace_named(graph.module().eval(), graph.spec)
    if lowering == "fused":
        # What ONNX Runtime's CPU kernels are fastest with, in standard operators.
        unroll_convolutions(model)
        gather_modulation(model)
    lower.lower_attention(model, rope, lowering)
    cut_rows_early(model)
    strip_traces(model, keep_shapes_of=attention_nodes.OP_TYPE)
    halve_exact_weights(model)
    return model


def export_module(module: nn.Module, spec: GraphSpec) -> ir.Model:
    """Trace a module without attention by an interface; weights inside, traces removed."""
    model = _trace_named(module.eval(), spec)
    strip_traces(model, keep_shapes_of=attention_nodes.OP_TYPE)
    return model


def _trace_named(module: nn.Module, spec: GraphSpec) -> ir.Model:
    """Trace a module, and give its inputs and outputs the axes of the table."""
    model = _trace(module, spec)
    for value, tensor in zip(
        [*model.graph.inputs, *model.graph.outputs], [*spec.inputs, *spec.outputs], strict=True
    ):
        value.shape = ir.Shape(tensor.shape)
    return model


def _trace(module: nn.Module, spec: GraphSpec) -> ir.Model:
    inputs = tuple(example_inputs(spec))
    shapes = dynamic_shapes(spec)
    # Caches, and what a masked encoder keeps, are taken as *rest: their shapes are in a tuple of their own.
    parameters = inspect.signature(module.forward).parameters.values()
    named = sum(parameter.kind is not inspect.Parameter.VAR_POSITIONAL for parameter in parameters)
    rest = tuple(shapes[named:])
    nested = (*shapes[:named], rest) if rest else tuple(shapes)
    with torch.no_grad(), attention_nodes.attention_as_nodes(module), _quiet():
        program = torch.onnx.export(
            module,
            inputs,
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            dynamic_shapes=nested,
            opset_version=OPSET,
            custom_translation_table=attention_nodes.translation_table(),
            dynamo=True,
            optimize=False,
            verbose=False,
        )
        traced = cast(torch.onnx.ONNXProgram, program)
        optimize_exactly(traced)
    return traced.model


class _quiet(warnings.catch_warnings):  # noqa: N801 - used as a function
    """Silences the exporter's warnings on names of axes and on absent packages, and what torch.export prints of an
    attempt that it follows with another; errors still raise, and what was printed before one is shown."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
        self._level = logging.getLogger("torch.onnx").level
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        self._printed = io.StringIO()
        self._redirect = contextlib.redirect_stderr(self._printed)
        self._redirect.__enter__()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._redirect.__exit__(kind, error, trace)
        if error is not None:
            sys.stderr.write(self._printed.getvalue())
        logging.getLogger("torch.onnx").setLevel(self._level)
        super().__exit__(kind, error, trace)


def export_bundle(
    checkpoint_folder: str | Path,
    bundle_folder: str | Path,
    *,
    lowering: lower.Lowering = "fused",
    name: str | None = None,
    dtype: torch.dtype = torch.float32,
    loras: Sequence[Lora] = (),
    schedule_from: str | None = None,
    text_encoder_bits: int | None = None,
    quality: dict[str, object] | None = None,
    progress: bool = False,
) -> Path:
    """Write the bundle of a checkpoint; it appears in one step, and takes the place of a bundle of that name.

    dtype: what the transformer and the text encoder compute in; graph inputs and outputs stay float32.
    loras: adapters that are merged before the export, of Wan's transformers only; the bundle lists them. Of a
    checkpoint with two transformers each names the one that takes it.
    schedule_from: the name of a step-distilled adapter's schedule, which becomes the default.
    text_encoder_bits: 8 stores the text encoder's matrices in that many bits (`export.blocks`).
    Raises FileExistsError when bundle_folder holds something that is not a bundle, ValueError for bits beside a dtype
    of 16 bits.
    """
    target = Path(bundle_folder).absolute()
    if target.exists() and any(target.iterdir()) and not (target / "bundle.json").is_file():
        raise FileExistsError(
            f"{bundle_folder} is there and is not a bundle; give another path, or remove it"
        )
    if text_encoder_bits is not None and dtype != torch.float32:
        raise ValueError(
            f"text_encoder_bits is {text_encoder_bits} and dtype {str(dtype).removeprefix('torch.')}; expected one of "
            "them: only float32 matrices are stored in fewer bits"
        )
    checkpoint = load_any_checkpoint(checkpoint_folder, dtype=dtype, loras=loras)
    family = family_export(checkpoint)
    graphs = family.graphs()
    schedules, default_schedule = family.schedules()
    if schedule_from is not None:
        schedules[schedule_from] = family.fixed_schedule(schedule_from)
        default_schedule = schedule_from
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _write_graphs(graphs, family.rope, lowering, partial, progress, text_encoder_bits)
        shutil.copyfile(family.tokenizer_file, partial / TOKENIZER_FILE)
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(family.tokenizer_file))
        spec = BundleSpec(
            format_version=FORMAT_VERSION,
            name=name or target.name,
            family=family.family,
            conditioning=family.conditioning,
            unconditional=family.unconditional,
            default_negative_prompt=family.default_negative_prompt,
            capabilities=family.capabilities(lowering, dtype),
            model=json.loads(json.dumps(family.model_facts())),
            geometry=family.geometry,
            tokenizer=TokenizerSpec(TOKENIZER_FILE, tokenizer.eos_id(), family.max_text_tokens),
            graphs={graph_name: graph.spec for graph_name, graph in graphs.items()},
            schedules=schedules,
            default_schedule=default_schedule,
            files=file_specs(partial),
            costs=count_costs(partial, {name: graph.spec for name, graph in graphs.items()}),
            made={
                **_made_facts(),
                **family.provenance(),
                **({} if text_encoder_bits is None else {"text_encoder_bits": text_encoder_bits}),
            },
            quality=quality or {},
        )
        write_bundle_json(partial, spec)
        take_place(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _write_graphs(
    graphs: dict[str, Graph],
    rope: lower.RopeConfig,
    lowering: lower.Lowering,
    folder: Path,
    progress: bool,
    text_encoder_bits: int | None,
) -> None:
    by_weights: dict[str, list[Graph]] = {}
    for graph in graphs.values():
        by_weights.setdefault(graph.weights, []).append(graph)
    with tqdm(total=len(graphs), desc="graphs", unit="graph", disable=not progress) as bar:
        for weights, group in by_weights.items():
            models = []
            for graph in group:
                bar.set_postfix_str(graph.spec.name)
                models.append(export_graph(graph, rope, lowering))
                if text_encoder_bits is not None and graph.spec.name == "text_encoder":
                    round_blocks(models[-1])
                bar.update()
            if len(group) > 1 or count_weight_bytes(models) > MAX_INLINE_BYTES:
                move_weights_out(models, folder / weights)
            for graph, model in zip(group, models, strict=True):
                ir.save(model, folder / graph.spec.file)
                onnx.checker.check_model(folder / graph.spec.file)


def take_place(partial: Path, target: Path) -> None:
    """Rename partial to target; what target was stays until the moment of the change."""
    os.chmod(partial, 0o755)
    if not target.exists():
        os.rename(partial, target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    os.rename(target, aside / target.name)
    os.rename(partial, target)
    shutil.rmtree(aside)


def _made_facts() -> dict[str, object]:
    packages = ("torch", "onnx", "onnxscript", "diffusers", "transformers")
    made: dict[str, object] = {
        "by": "export.export_onnx",
        "opset": OPSET,
        "versions": {package: version(package) for package in packages},
    }
    if "SOURCE_DATE_EPOCH" in os.environ:
        seconds = int(os.environ["SOURCE_DATE_EPOCH"])
        made["date"] = datetime.fromtimestamp(seconds, tz=timezone.utc).isoformat()
    return made


def lora_from_text(text: str) -> Lora:
    """The adapter of FILE[:SCALE][@high|@low]. Raises ValueError for a strength that is not finite.

    A colon before no number and an @ before no expert belong to the file's name, as in `C:/a@b.safetensors`.
    """
    rest, _, name = text.rpartition("@")
    expert = EXPERTS.index(name) if rest and name in EXPERTS else None
    given = text if expert is None else rest
    file, _, number = given.rpartition(":")
    try:
        scale = float(number)
    except ValueError:
        file = ""
    return Lora(Path(file), scale, expert) if file else Lora(Path(given), expert=expert)


def _read_quality(path: Path) -> dict[str, object]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); give a report of export.quality") from None
    if not isinstance(report, dict):
        raise ValueError(f"{path} holds no object; give a report of export.quality")
    return report


def _notes_on_adapters(made: Mapping[str, Any]) -> list[str]:
    """A line for each adapter: what it changed, and what of it has no place in the transformer."""
    notes = []
    for lora in made.get("loras", []):
        expert = "" if lora["expert"] is None else f" of the transformer for {EXPERTS[lora['expert']]} noise"
        notes.append(f"{lora['file']}: merged into {lora['num_layers']} layers{expert} at {lora['scale']:g}")
        if lora["alpha_from"] is None:
            notes.append(
                f"{lora['file']}: no alpha is stored with it; that of each layer was taken as its rank"
            )
        if lora["dropped"]:
            names = ", ".join(lora["dropped"][:5])
            notes.append(f"{lora['file']}: {len(lora['dropped'])} values were dropped: {names}")
    return notes


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m export.export_onnx",
        description="Write a checkpoint as a bundle of ONNX graphs.",
        epilog="example: python -m export.export_onnx checkpoints/nano bundles/nano --attention fused",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--attention",
        choices=lower.lowerings,
        default="fused",
        help="what stands for the RopeAttention node (default: fused, ONNX Runtime's fastest on a CPU)",
    )
    parser.add_argument("--name", help="the bundle's name (default: that of its folder)")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="what the graphs compute in")
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:SCALE][@high|@low]",
        help="merge an adapter at a strength, 1 if left out; several are merged one after the other. @high or @low: "
        "into which transformer of a checkpoint with two, the one for high noise or the one for low",
    )
    parser.add_argument(
        "--schedule-from",
        metavar="NAME",
        help=f"the fixed schedule of a step-distilled adapter, made the default: {', '.join(DISTILLED)}",
    )
    parser.add_argument(
        "--text-encoder-bits",
        type=int,
        choices=[8],
        help="store the text encoder's matrices in 8 bits, for ONNX Runtime on a CPU with little memory",
    )
    parser.add_argument(
        "--quality", type=Path, metavar="FILE", help="a quality report (JSON) to put in the bundle"
    )
    args = parser.parse_args()
    try:
        quality = None if args.quality is None else _read_quality(args.quality)
        made = export_bundle(
            args.checkpoint,
            args.bundle,
            lowering=args.attention,
            name=args.name,
            dtype=DTYPES[args.dtype],
            loras=[lora_from_text(text) for text in args.lora],
            schedule_from=args.schedule_from,
            text_encoder_bits=args.text_encoder_bits,
            quality=quality,
            progress=True,
        )
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    for note in _notes_on_adapters(load_bundle(made).spec.made):
        print(note, file=sys.stderr)
    print(args.bundle)


if __name__ == "__main__":
    main()
