"""`python -m export.metrics OUT --clip DIR ...`: write metric models as graphs that run without PyTorch."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

if not __package__:  # run as a file: `python export/metrics/__main__.py`
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from editverse_rt.evaluate.bundle import EVALUATION_JSON, MetricModel, write_metrics_json
from export.metrics.graphs import OPSET, write_model_graphs, write_resize_graph
from export.metrics.models import LoadedModel, load_clip, load_dino, load_viclip
from export.metrics.random_models import write_random_models

__all__ = ["export_metrics", "main"]

RANDOM = "random weights, for tests"


def export_metrics(
    out: Path,
    *,
    clip: Path | None = None,
    pickscore: Path | None = None,
    pickscore_processor: Path | None = None,
    dino: Path | None = None,
    viclip: Path | None = None,
    viclip_tokenizer: Path | None = None,
    is_random: bool = False,
) -> Path:
    """Write the given models into out, which appears in one step and takes the place of an earlier export.

    Each is a folder in the transformers layout, viclip a checkpoint; pickscore_processor and viclip_tokenizer
    (CLIP's, by default that of `clip`) hold what their weights come without. is_random: say so of all.
    Raises ValueError where no model or no tokenizer is given or one cannot be read, FileNotFoundError,
    FileExistsError where out is something else.
    """
    out = out.absolute()
    if out.exists() and any(out.iterdir()) and not (out / EVALUATION_JSON).is_file():
        raise FileExistsError(f"{out} is there and holds no metric models; give another path, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        models: dict[str, MetricModel] = {}
        specs = [write_resize_graph(partial)]
        with _quiet():
            for name, model in _load_models(
                clip, pickscore, pickscore_processor, dino, viclip, viclip_tokenizer
            ):
                if model.tokenizer is not None and model.facts.text is not None:
                    model.tokenizer(partial / model.facts.text.tokenizer)
                specs.extend(write_model_graphs(model, partial))
                models[name] = replace(model.facts, id=RANDOM, licence="none") if is_random else model.facts
        if not models:
            raise ValueError("no model was given; give --clip, --pickscore, --dino or --viclip")
        write_metrics_json(
            partial,
            name=out.name,
            is_random=is_random,
            models=models,
            graphs={spec.name: spec for spec in specs},
            made={
                "by": "export.metrics",
                "opset": OPSET,
                # Sums may differ in the last bits with the number of threads; scores do not show it.
                "threads": "all",
                "versions": {name: version(name) for name in ("torch", "onnx", "transformers", "tokenizers")},
            },
        )
        os.chmod(partial, 0o755)
        shutil.rmtree(out, ignore_errors=True)
        os.rename(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _load_models(
    clip: Path | None,
    pickscore: Path | None,
    pickscore_processor: Path | None,
    dino: Path | None,
    viclip: Path | None,
    viclip_tokenizer: Path | None,
) -> Iterator[tuple[str, LoadedModel]]:
    """Name and model of each that is given, one after another, so that the weights of one are held at a time."""
    if clip is not None:
        yield "clip", load_clip("clip", clip)
    if pickscore is not None:
        yield "pickscore", load_clip("pickscore", pickscore, pickscore_processor)
    if dino is not None:
        yield "dino", load_dino(dino)
    if viclip is not None:
        tokenizer = viclip_tokenizer or clip
        if tokenizer is None:
            raise ValueError("ViCLIP's tokenizer is CLIP's; give --clip or --viclip-tokenizer")
        yield "viclip", load_viclip(viclip, tokenizer)


class _quiet(warnings.catch_warnings):  # noqa: N801 - used as a function
    """Silences what the libraries say of absent packages and of small vocabularies; errors still raise."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
        for name in ("torch.onnx", "transformers"):
            logging.getLogger(name).setLevel(logging.ERROR)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export.metrics",
        description="Write metric models as graphs that run without PyTorch.",
        epilog="example: python -m export.metrics metrics --clip clip-vit-large-patch14 --dino dinov2-base",
    )
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="the folder to write")
    add("--clip", type=Path, metavar="DIR", help="CLIP ViT-L/14 in the transformers layout")
    add("--pickscore", type=Path, metavar="DIR", help="PickScore, likewise")
    add(
        "--pickscore-processor", type=Path, metavar="DIR", help="its preprocessing and tokenizer, where apart"
    )
    add("--dino", type=Path, metavar="DIR", help="DINOv2 base, likewise")
    add("--viclip", type=Path, metavar="FILE", help="ViCLIP's checkpoint")
    add("--viclip-tokenizer", type=Path, metavar="DIR", help="CLIP's tokenizer (default: that of --clip)")
    add(
        "--random-small", action="store_true", help="small models of random weights, for tests, and no others"
    )
    args = parser.parse_args(arguments)
    given = {name: value for name, value in vars(args).items() if name not in ("out", "random_small")}
    if args.random_small and any(given.values()):
        parser.error("--random-small makes all models; leave the others out")
    try:
        if args.random_small:
            with tempfile.TemporaryDirectory() as folder, _quiet():
                export_metrics(args.out, **write_random_models(Path(folder)), is_random=True)
        else:
            export_metrics(args.out, **given)
    except (FileNotFoundError, FileExistsError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
