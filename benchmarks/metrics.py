"""`python -m benchmarks.metrics`: metric models of their real sizes, as graphs and in PyTorch.

The weights are random, since time and memory do not depend on them. Each contender does the whole work, from
frames of 848x480 to features, in a process of its own, in turns:
  editverse-rt   `MetricModels`: the graph that resizes, the crop, the model's graph
  transformers   Pillow and transformers, frames in batches, both features in one pass; ViCLIP, which transformers
                 does not have, is PyTorch with the same tower
  published      as the published scripts do it: one frame a call, CLIP's two features by two models
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, cast

if not __package__:  # run as a file: `python benchmarks/metrics.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from numpy.typing import NDArray

from benchmarks import memory
from benchmarks.clock import Sample, take_turns, time_call
from benchmarks.report import write_report
from benchmarks.results import FOLDER, write_results
from editverse_rt.evaluate.features import BATCH_FRAMES, MetricModels
from editverse_rt.evaluate.frames import choose_clip_frames
from editverse_rt.media.frames import Frames

__all__ = ["CONTENDERS", "WORKS", "measure_work"]

OURS, TRANSFORMERS, PUBLISHED = "editverse-rt", "transformers", "published"
CONTENDERS = {
    "clip": (OURS, TRANSFORMERS, PUBLISHED),
    "dino": (OURS, TRANSFORMERS),
    "viclip": (OURS, TRANSFORMERS),
}
WORKS = tuple(CONTENDERS)
NUM_FRAMES = 8
HEIGHT_PX, WIDTH_PX = 480, 848
# The published sizes; "small" is for a test of this file.
CLIP_L = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
DINO_B = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "image_size": 518,
}
VICLIP_L = {
    "width": 1024,
    "num_blocks": 24,
    "text_width": 768,
    "text_blocks": 12,
    "output_dim": 768,
    "side_px": 224,
}


def write_models(work: str, folder: Path, *, is_small: bool) -> None:
    """folder/source with random weights in the published layout, folder/graphs exported from it."""
    from export.metrics.__main__ import export_metrics
    from export.metrics.random_models import write_random_clip, write_random_dino, write_random_viclip

    vision = {} if is_small else {**CLIP_L, "image_size": 224}
    if work == "clip":
        # Texts are not measured; a small tower of them leaves the memory to what is.
        dim = 32 if is_small else 768
        source = write_random_clip(folder / "source", seed=0, vision=vision, output_dim=dim)
        export_metrics(folder / "graphs", clip=source, is_random=True)
    elif work == "dino":
        side = 28 if is_small else 224
        config = {} if is_small else cast("dict[str, Any]", DINO_B)
        source = write_random_dino(folder / "source", seed=0, config=config, side_px=side)
        export_metrics(folder / "graphs", dino=source, is_random=True)
    else:
        source = write_random_viclip(folder / "source.pth", seed=0, **({} if is_small else VICLIP_L))
        tokenizer = write_random_clip(folder / "tokenizer", seed=0)
        export_metrics(folder / "graphs", viclip=source, viclip_tokenizer=tokenizer, is_random=True)


def make_frames(num_frames: int) -> Frames:
    """Noise that is smooth enough to be a picture, the same on every machine."""
    coarse = np.random.default_rng(0).integers(0, 256, (num_frames, 30, 53, 3), dtype=np.uint8)
    return coarse.repeat(16, 1).repeat(16, 2)[:, :HEIGHT_PX, :WIDTH_PX]


# --- one contender, in a process of its own ---


def prepare(work: str, contender: str, folder: Path, threads: int) -> Callable[[Frames], NDArray[Any]]:
    """Load a contender's model; what it gives does the whole work: frames to features [rows, D]."""
    if contender == OURS:
        models = MetricModels.open(folder / "graphs", "ort-cpu", num_threads=threads).__enter__()
        if work == "viclip":
            return lambda frames: models.clip_features("viclip", frames)[None]
        feature = "projected" if work == "clip" else "pooled"
        return lambda frames: models.image_features(work, frames)[feature]
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    if work == "viclip":
        return _prepare_viclip(folder)
    return _prepare_transformers(work, contender, folder / "source")


def _prepare_transformers(work: str, contender: str, source: Path) -> Callable[[Frames], NDArray[Any]]:
    import torch
    import transformers
    from PIL import Image

    hub: Any = transformers
    processors = {"clip": "CLIPImageProcessorPil", "dino": "BitImageProcessorPil"}
    processor = getattr(hub, processors[work]).from_pretrained(source)
    if work == "dino":
        models = [hub.Dinov2Model.from_pretrained(source)]
        calls = [lambda pixels: models[0](pixels).pooler_output]
    elif contender == TRANSFORMERS:
        models = [hub.CLIPVisionModelWithProjection.from_pretrained(source)]
        calls = [lambda pixels: models[0](pixels).image_embeds]
    else:
        models = [hub.CLIPVisionModel.from_pretrained(source), hub.CLIPModel.from_pretrained(source)]
        calls = [
            lambda pixels: models[0](pixels).pooler_output,
            lambda pixels: models[1].visual_projection(models[1].vision_model(pixels).pooler_output),
        ]
    batch = 1 if contender == PUBLISHED else BATCH_FRAMES

    def run(frames: Frames) -> NDArray[Any]:
        found: list[Any] = []
        call: Any
        for call in calls:
            found = []
            for start in range(0, len(frames), batch):
                pictures = [Image.fromarray(frame) for frame in frames[start : start + batch]]
                found.append(call(processor(pictures, return_tensors="pt")["pixel_values"]))
        return np.asarray(torch.cat(found))

    return run


def _prepare_viclip(folder: Path) -> Callable[[Frames], NDArray[Any]]:
    import torch
    from PIL import Image

    from export.metrics.models import load_viclip

    loaded = load_viclip(folder / "source.pth", folder / "tokenizer")
    tower, side = loaded.image.eval(), loaded.facts.image.crop_px

    def run(frames: Frames) -> NDArray[Any]:
        squares = []
        for index in choose_clip_frames(len(frames)):
            picture = Image.fromarray(frames[index])
            width = side * picture.width // picture.height
            left = round((width - side) / 2)
            resized = picture.resize((width, side), Image.Resampling.BICUBIC)
            squares.append(np.asarray(resized.crop((left, 0, left + side, side))))
        (projected,) = tower(torch.from_numpy(np.stack(squares))[None])
        return np.asarray(projected)

    return run


def _serve(work: str, contender: str, folder: Path, threads: int, num_frames: int) -> None:
    """Answer a line of JSON for each line: time, the process's peak, and where the features are."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is not an answer
    frames = make_frames(num_frames)
    call = prepare(work, contender, folder, threads)
    for _ in sys.stdin:
        sample, features = time_call(lambda: call(frames))
        np.save(folder / f"{contender}.npy", features)
        print(json.dumps({**asdict(sample), "peak_bytes": memory.peak_bytes()}), file=answers, flush=True)


class _Contender:
    """The other end of `_serve`."""

    def __init__(self, work: str, name: str, folder: Path, threads: int, num_frames: int) -> None:
        self.peak_bytes = 0
        command = [sys.executable, "-m", "benchmarks.metrics", "--serve", work, name, str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [*command, "--threads", str(threads), "--frames", str(num_frames)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __enter__(self) -> _Contender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def run(self) -> Sample:
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the process has no pipes; expected both")
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended; expected an answer, see its output")
        answer = json.loads(line)
        self.peak_bytes = answer.pop("peak_bytes")
        return Sample(**answer)


def measure_work(
    work: str, threads: int, repeats: int, num_frames: int = NUM_FRAMES, *, is_small: bool = False
) -> list[dict[str, Any]]:
    """Rows, one a contender: time, frames a second, peak memory, and the largest difference from ours."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        # In a process of its own, whose memory goes.
        small = ["--small"] if is_small else []
        subprocess.run(
            [sys.executable, "-m", "benchmarks.metrics", "--make", work, name, *small],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        names = CONTENDERS[work]
        contenders = {
            key: stack.enter_context(_Contender(work, key, folder, threads, num_frames)) for key in names
        }
        taken = take_turns({key: one.run for key, one in contenders.items()}, repeats=repeats)
        features = {key: _unit(np.load(folder / f"{key}.npy")) for key in names}
        return [
            {
                "work": work,
                "contender": key,
                **taken[key].to_json(),
                "frames_per_s": num_frames / taken[key].median_of("wall_s"),
                "frames_per_cpu_s": num_frames / taken[key].median_of("cpu_s"),
                "peak_bytes": contenders[key].peak_bytes,
                "error": float(np.abs(features[key] - features[OURS]).max()),
            }
            for key in names
        ]


def _unit(rows: NDArray[Any]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = rows.astype(np.float64) / np.linalg.norm(rows, axis=-1, keepdims=True)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.metrics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=WORKS, default=WORKS, help="models (default: all)")
    add("--threads", type=int, default=1, help="(default: 1)")
    add("--repeats", type=int, default=3, help="timed turns (default: 3)")
    add("--frames", type=int, default=NUM_FRAMES, help="(default: 8; ViCLIP sees 8 of any number)")
    add("--small", action="store_true", help="small models, to try this command")
    add("--out", type=Path, default=FOLDER / "metrics.json")
    add("--serve", nargs=3, help=argparse.SUPPRESS)
    add("--make", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.serve is not None:
        work, contender, folder = args.serve
        _serve(work, contender, Path(folder), args.threads, args.frames)
        return 0
    if args.make is not None:
        write_models(args.make[0], Path(args.make[1]), is_small=args.small)
        return 0
    rows: list[dict[str, Any]] = []
    facts = {
        "threads": args.threads,
        "frames": args.frames,
        "size": f"{WIDTH_PX}x{HEIGHT_PX}",
        "small": args.small,
    }
    text = ""
    for work in args.only:
        rows += measure_work(work, args.threads, args.repeats, args.frames, is_small=args.small)
        # After each model, so that what was measured is not lost with the rest.
        text = write_report(write_results(args.out, "metrics", rows, facts, arguments), args.out)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
