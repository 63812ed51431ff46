"""`python -m export.compare BUNDLE CHECKPOINT`: hold a bundle to the PyTorch reference, stage by stage.

Each graph gets what the reference's stage before it gave, so that an error is seen where it is made. The
shapes are none that the export was traced with. Last, a whole edit runs through both.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python export/compare.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from editverse_rt import stages
from editverse_rt.backends import Runner, select_backend
from editverse_rt.bundle.manifest import Bundle, load_bundle, write_bundle_json
from editverse_rt.errors import EditVerseError
from editverse_rt.files import hash_file
from editverse_rt.pipeline import Pipeline
from editverse_rt.request.layout import Grid
from export.compare_wan import compare_wan_graphs, compare_wan_request
from export.export_onnx import lora_from_text
from export.graphs import Transformer
from export.measurements import (
    Measure,
    Measurement,
    compare_keep_known,
    format_table,
    make_clip,
    measure_against,
    report_parity,
)
from export.schedules import HISTORY_ROWS
from reference.checkpoint import AnyCheckpoint, Checkpoint, load_any_checkpoint
from reference.families.wan_checkpoint import WanCheckpoint
from reference.lora import EXPERTS, Lora
from reference.noise import draw_noise
from reference.sampler import edit
from reference.sequence import interleave
from reference.text_encoder import Tokenizer
from reference.vae import decode_clip, encode_clip

__all__ = [
    "CASES",
    "Case",
    "check_loras",
    "compare_edit",
    "compare_graphs",
    "write_report",
]

Array = NDArray[Any]
Segment = int | tuple[int, int, int]
"""Of a laid-out sequence: a number of tokens, or a clip in latent units."""


@dataclass(frozen=True)
class Case:
    """A request to compare with: text, and clips as (frames in latent units, rows, columns), in order."""

    name: str
    segments: tuple[str | tuple[int, int, int], ...]
    target: tuple[int, int, int]

    @property
    def clips(self) -> list[tuple[int, int, int]]:
        """The clips among the segments, each (frames in latent units, rows, columns)."""
        return [segment for segment in self.segments if not isinstance(segment, str)]


CASES = (
    Case("image", ((1, 4, 4), "Turn the red circle blue."), (1, 4, 4)),
    Case("video", ((3, 4, 5), "Remove the green square."), (3, 4, 5)),
    Case("two videos", ((2, 4, 4), "Fill what is white in", (2, 4, 4), "with grass."), (2, 4, 4)),
    Case("image + video", ("Put the star of", (1, 5, 4), "into", (2, 5, 4), "on the left."), (2, 5, 4)),
    Case("text only", ("A yellow triangle moves over grey noise.",), (4, 3, 6)),
)

EDIT_PROMPT = "<video1> Turn the background blue."


def compare_graphs(
    bundle: Bundle, checkpoint: Checkpoint, runner: Runner, cases: Sequence[Case] = CASES
) -> Iterator[Measurement]:
    """Run every graph of the bundle and its PyTorch twin on the same inputs, case by case.

    Raises BackendError for a graph that does not run, ValueError for a bundle whose graphs compute in a dtype
    that has no tolerances or give other shapes than PyTorch.
    """
    measure = measure_against(bundle)
    for number, case in enumerate(cases):
        yield from _compare_case(bundle, checkpoint, runner, case, number, measure)


@torch.no_grad()
def _compare_case(
    bundle: Bundle,
    checkpoint: Checkpoint,
    runner: Runner,
    case: Case,
    seed: int,
    measure: Measure,
) -> Iterator[Measurement]:
    """Every graph on one case; each stage takes what PyTorch gave in the stage before, so errors do not add up."""
    tokenizer = Tokenizer(checkpoint.tokenizer_file)
    pieces = [tokenizer.ids(segment) for segment in case.segments if isinstance(segment, str)]
    ids = torch.tensor([i for piece in [*pieces, [bundle.spec.tokenizer.eos_id]] for i in piece])
    text = checkpoint.text_encoder(input_ids=ids[None]).last_hidden_state[0].float()
    found = np.asarray(runner.run("text_encoder", {"ids": ids.numpy()})["text"])
    yield measure("text_encoder", case.name, found, text.numpy())

    clean = yield from _compare_encoder(bundle, checkpoint, runner, case, seed, measure)

    t, h, w = case.target
    noise = draw_noise(seed, t * h * w, bundle.spec.geometry.patch_dim)
    shape = np.array(noise.shape, np.int64)
    found = np.asarray(runner.run("noise", {"seed": np.array(seed, np.int64), "shape": shape})["noise"])
    yield measure("noise", case.name, found, noise.numpy())

    counts = iter(pieces)
    segments: list[Segment] = [len(next(counts)) if isinstance(s, str) else s for s in case.segments]
    branches: dict[str, tuple[Tensor, list[Segment]]] = {
        "transformer": (text, [*segments, 1]),
        "transformer, unconditional": (text[:0], [s for s in segments if not isinstance(s, int)]),
    }
    velocities = yield from _compare_transformer(
        bundle, checkpoint, runner, case, seed, measure, branches, clean, noise
    )
    yield _compare_solver(runner, case, noise.numpy(), velocities, seed, measure)
    yield compare_keep_known(measure, case.name, _call_of(runner), velocities[0], noise.numpy())
    yield from _compare_decoder(bundle, checkpoint, runner, case, measure, noise)


def _compare_encoder(
    bundle: Bundle, checkpoint: Checkpoint, runner: Runner, case: Case, seed: int, measure: Measure
) -> Generator[Measurement, None, Tensor]:
    """The VAE's encoder on the case's clips. Returns their patches as PyTorch has them, float32 [Lc, P]."""
    geometry = bundle.spec.geometry
    side, P = geometry.size_multiple, geometry.patch_dim
    clean = [torch.zeros((0, P))]
    for index, (t, h, w) in enumerate(case.clips):
        frames = make_clip(geometry.temporal_ratio * (t - 1) + 1, h * side, w * side, seed=10 * seed + index)
        expected = encode_clip(checkpoint.vae, torch.from_numpy(frames), checkpoint.patch_size)
        found = stages.encode_clip(_call_of(runner), geometry, frames).reshape(t, h, w, P)
        yield measure("vae_encoder_first", case.name, found[:1], expected[:1].numpy())
        if t > 1:
            yield measure("vae_encoder_next", case.name, found[1:], expected[1:].numpy())
        clean.append(expected.reshape(-1, P))
    return torch.cat(clean)


def _compare_transformer(
    bundle: Bundle,
    checkpoint: Checkpoint,
    runner: Runner,
    case: Case,
    seed: int,
    measure: Measure,
    branches: Mapping[str, tuple[Tensor, list[Segment]]],
    clean: Tensor,
    noise: Tensor,
) -> Generator[Measurement, None, list[Array]]:
    """The transformer on each branch (text rows, segments). Returns PyTorch's velocities, float32 [Lg, P] each."""
    timestep = torch.tensor(0.02 + 0.96 * seed / len(CASES))
    names = [tensor.name for tensor in bundle.spec.graphs["transformer"].inputs]
    velocities = []
    for graph, (rows, items) in branches.items():
        sequence = interleave(items, case.target)
        inputs = (rows, clean, noise, sequence.layout, sequence.positions, timestep)
        velocities.append(Transformer(checkpoint.transformer)(*inputs).numpy())
        feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        found = np.asarray(runner.run("transformer", feed)["velocity"])
        yield measure(graph, case.name, found, velocities[-1])
    return velocities


def _compare_decoder(
    bundle: Bundle, checkpoint: Checkpoint, runner: Runner, case: Case, measure: Measure, noise: Tensor
) -> Iterator[Measurement]:
    """The VAE's decoder on noise as wide as latents are."""
    t, h, w = case.target
    patches = (0.7 * noise).reshape(t, h, w, -1)
    decoded = decode_clip(checkpoint.vae, patches, checkpoint.patch_size).numpy()
    found = stages.decode_patches(_call_of(runner), Grid(t, h, w), patches.flatten(0, 2).numpy())
    yield measure("vae_decoder_first", case.name, found[:1], decoded[:1])
    if t > 1:
        yield measure("vae_decoder_next", case.name, found[1:], decoded[1:])


def _call_of(runner: Runner) -> Callable[..., Mapping[str, Any]]:
    """A runner as stages call it: graph, then inputs by name."""
    return lambda graph, **inputs: runner.run(graph, inputs)


def _compare_solver(
    runner: Runner,
    case: Case,
    sample: Array,
    velocities: list[Array],
    seed: int,
    measure: Measure,
) -> Measurement:
    cond, uncond = velocities
    rng = np.random.default_rng(seed)
    history = rng.normal(size=(HISTORY_ROWS, *sample.shape)).astype(np.float32)
    matrix = rng.normal(size=(HISTORY_ROWS + 1, HISTORY_ROWS + 2)).astype(np.float32)
    guidance = np.array(5.0, np.float32)
    outputs = runner.run(
        "solver_step",
        {
            "sample": sample, "history": history, "velocity_cond": cond, "velocity_uncond": uncond,
            "guidance": guidance, "matrix": matrix,
        },
    )  # fmt: skip
    velocity = uncond.astype(np.float64) + 5.0 * (cond.astype(np.float64) - uncond)
    state = np.concatenate([sample[None], history, velocity[None]])
    expected = np.tensordot(matrix.astype(np.float64), state, 1)
    found = np.concatenate([outputs["sample_next"][None], outputs["history_next"]])
    return measure("solver_step", case.name, found, expected)


def compare_edit(
    folder: str | Path,
    checkpoint: Checkpoint,
    *,
    backend: str = "ort-cpu",
    seed: int = 11,
    progress: bool = False,
) -> Measurement:
    """One whole edit of a video through the runtime and through the reference's loop, from the same frames.

    Both take the schedule's own steps and guidance. `relative` is the share of pixels, channels counted one
    by one, that differ by more than `grey_levels`.
    """
    steps, guidance = int(checkpoint.scheduler["num_inference_steps"]), checkpoint.scheduler["guidance_scale"]
    with (
        Pipeline.open(folder, backend) as pipeline,
        tqdm(total=2 * steps, desc="whole edit", unit="step", disable=not progress) as bar,
    ):
        geometry, measure = pipeline.bundle.spec.geometry, measure_against(pipeline.bundle)
        num_frames = geometry.round_frames(min(geometry.max_frames, 2 * geometry.temporal_ratio + 1))
        clip = make_clip(num_frames, geometry.default_height_px, geometry.default_width_px, seed)
        result = pipeline(
            EDIT_PROMPT, seed=seed, video1=clip, callback_on_step_end=lambda *_: bar.update() or True
        )
        expected = edit(
            checkpoint,
            EDIT_PROMPT,
            # The frames as the runtime used them, should it have resized or cut the clip.
            {"video1": result.sources[0]},
            result.frames.shape[:3],
            num_inference_steps=steps,
            guidance_scale=guidance,
            seed=seed,
            on_step=lambda _: bar.update(),
        )
    return measure(f"whole edit, {steps} steps", "video", result.frames, expected)


def check_loras(bundle: Bundle, loras: Sequence[Lora]) -> None:
    """Hold adapters to those that the bundle was exported with: the file by its hash, the strength, the expert.

    Raises ValueError that says what to give instead, OSError for a file that cannot be read.
    """
    recorded: Any = bundle.spec.made.get("loras", [])
    known = [(merged["file"], merged["sha256"], merged["scale"], merged["expert"]) for merged in recorded]
    given = [(lora.path.name, hash_file(lora.path), lora.scale, lora.expert) for lora in loras]
    # A file may have another name by now; of two adapters the order does not matter.
    if Counter(adapter[1:] for adapter in known) == Counter(adapter[1:] for adapter in given):
        return

    def describe(adapters: Sequence[tuple[str, str, float, int | None]]) -> str:
        names = (
            f"{file}:{scale:g}{'' if expert is None else f'@{EXPERTS[expert]}'} (sha256 {sha256[:12]})"
            for file, sha256, scale, expert in adapters
        )
        return ", ".join(names) or "none"

    advice = "give each with --lora FILE[:SCALE][@high|@low]" if known else "leave --lora out"
    raise ValueError(
        f"the adapters given are {describe(given)}; expected those that bundle "
        f'"{bundle.spec.name}" was exported with, {describe(known)}: {advice}'
    )


def write_report(bundle: Bundle, measurements: Sequence[Measurement], backend: str) -> None:
    """Put the measurements into the bundle, as `quality.parity` of its bundle.json."""
    quality = {**bundle.spec.quality, "parity": report_parity(measurements, backend)}
    write_bundle_json(bundle.root, replace(bundle.spec, quality=quality))


def _compare_graphs_of(bundle: Bundle, checkpoint: AnyCheckpoint, runner: Runner) -> list[Measurement]:
    if isinstance(checkpoint, WanCheckpoint):
        return list(compare_wan_graphs(bundle, checkpoint, runner))
    return list(compare_graphs(bundle, checkpoint, runner))


def _compare_whole(bundle: Bundle, checkpoint: AnyCheckpoint, args: argparse.Namespace) -> list[Measurement]:
    if isinstance(checkpoint, WanCheckpoint):
        return compare_wan_request(bundle.root, checkpoint, backend=args.backend, num_threads=args.threads)
    return [compare_edit(args.bundle, checkpoint, backend=args.backend, progress=True)]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m export.compare",
        description="Hold a bundle to the PyTorch reference, graph by graph and in a whole edit.",
        epilog="example: python -m export.compare bundles/nano checkpoints/nano",
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="its folder, or the name of one that ships")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:SCALE][@high|@low]",
        help="an adapter that the bundle was exported with, as it was given there",
    )
    parser.add_argument("--backend", default="ort-cpu", help="what runs the bundle (default: ort-cpu)")
    parser.add_argument("--threads", type=int, help="threads of the backend (default: one a core)")
    parser.add_argument("--skip-edit", action="store_true", help="compare the graphs alone")
    parser.add_argument("--write", action="store_true", help="write the report into the bundle, for `info`")
    args = parser.parse_args()
    try:
        bundle = load_bundle(args.bundle)
        loras = [lora_from_text(text) for text in args.lora]
        check_loras(bundle, loras)
        checkpoint = load_any_checkpoint(args.checkpoint, dtype=torch.float32, loras=loras)
        if isinstance(checkpoint, WanCheckpoint) != (bundle.spec.family == "wan"):
            raise ValueError(f"{args.bundle} is of the family {bundle.spec.family}, {args.checkpoint} is not")
        backend = select_backend(args.backend, bundle).backend
        with backend.open_runner(bundle, args.threads) as runner:
            measurements = _compare_graphs_of(bundle, checkpoint, runner)
        print(format_table(measurements))
        print(
            "In a cell: largest absolute / relative error; of frames: grey levels / share further than one."
        )
        measured = {measurement.graph for measurement in measurements}
        if left := [name for name in bundle.spec.graphs if name not in measured]:
            # Their outputs are the numbers of a table, which no case above has an influence on.
            print(f"Not measured here: {', '.join(left)}; see tests/export/test_schedule_graphs.py.")
        if bundle.spec.capabilities.weights == "int8":
            print("The whole edit is not held to the reference in int8: see python -m benchmarks.frontier.")
        elif not args.skip_edit:
            whole = _compare_whole(bundle, checkpoint, args)
            measurements += whole
            levels = whole[-1].grey_levels
            print(
                f"{whole[-1].graph} of {whole[-1].shape}: {1 - whole[-1].relative:.4%} of pixels within "
                f"{'one grey level' if levels == 1 else f'{levels} grey levels'} "
                f"(at least {1 - whole[-1].tolerance:.1%}), largest difference {whole[-1].max_abs:.0f}"
            )
        if args.write:
            write_report(bundle, measurements, args.backend)
    except (EditVerseError, OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    broken = [m for m in measurements if not m.passed]
    if broken:
        names = ", ".join(f"{m.graph} ({m.case})" for m in broken)
        parser.exit(1, f"beyond the tolerance: {names}\n")


if __name__ == "__main__":
    main()
