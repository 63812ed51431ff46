"""Checkpoint folders in the diffusers layout: `model_index.json` says which family reads one.

`python -m reference.checkpoint random NAME OUT` makes one with random weights, to try an export. NAME is one
of EditVerse's sizes (nano, editverse-150m, editverse-2b) or of Wan's (wan-t2v-tiny, wan2.1-t2v-1.3b, ...).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python reference/checkpoint.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from reference.families.editverse import CONFIGS
from reference.families.editverse_checkpoint import (
    LIMITS,
    PAPER_SCHEDULE,
    EditVerseCheckpoint,
    load_editverse,
    make_random_editverse,
    save_checkpoint,
)
from reference.families.wan_checkpoint import WanCheckpoint, load_wan
from reference.families.wan_config import PIPELINES
from reference.families.wan_random import RANDOM, make_random_wan
from reference.lora import Lora
from reference.weights import read_json

__all__ = [
    "LIMITS",
    "PAPER_SCHEDULE",
    "RANDOM_NAMES",
    "AnyCheckpoint",
    "Checkpoint",
    "load_any_checkpoint",
    "load_checkpoint",
    "make_random_checkpoint",
    "save_checkpoint",
]

Checkpoint = EditVerseCheckpoint
AnyCheckpoint = EditVerseCheckpoint | WanCheckpoint
RANDOM_NAMES = (*CONFIGS, *RANDOM)


def load_any_checkpoint(
    folder: str | Path, *, dtype: torch.dtype | None = None, loras: Sequence[Lora] = ()
) -> AnyCheckpoint:
    """Read a checkpoint folder of any family, the modules in eval mode without gradients.

    dtype: that of the transformer and the text encoder, None for the one they were saved in. The VAE is
    always float32, since it decides on grey levels. loras: adapters to merge, of Wan's transformers only.
    Raises ValueError for a pipeline, a part, a field or a value that is not run, FileNotFoundError for a part
    that is not there.
    """
    path = Path(folder) / "model_index.json"
    class_name = read_json(path).get("_class_name")
    if class_name in PIPELINES:
        return load_wan(folder, dtype=dtype, loras=loras)
    if class_name != "EditVersePipeline":
        raise ValueError(
            f"{path}: _class_name is {class_name!r}; expected one of "
            f"{', '.join(('EditVersePipeline', *PIPELINES))}: take a checkpoint that this project runs"
        )
    if loras:
        raise ValueError(f"{path}: adapters are merged into Wan's transformers only; leave them out")
    return load_editverse(folder, dtype=dtype)


def load_checkpoint(folder: str | Path, *, dtype: torch.dtype | None = None) -> Checkpoint:
    """An EditVerse checkpoint, as `load_any_checkpoint` reads it. Raises ValueError for another family's."""
    checkpoint = load_any_checkpoint(folder, dtype=dtype)
    if not isinstance(checkpoint, EditVerseCheckpoint):
        raise ValueError(f"{folder} is a {checkpoint.pipeline}; expected an EditVersePipeline")
    return checkpoint


def make_random_checkpoint(config_name: str, folder: str | Path, **options: Any) -> Path:
    """A checkpoint with random weights: a name of `RANDOM_NAMES`, and that family's options."""
    make = make_random_wan if config_name in RANDOM else make_random_editverse
    return make(config_name, folder, **options)


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a checkpoint with random weights, to try an export.")
    commands = parser.add_subparsers(required=True)
    random = commands.add_parser("random", help="random weights of the given sizes")
    random.add_argument("config", choices=list(RANDOM_NAMES), metavar="NAME", help=", ".join(RANDOM_NAMES))
    random.add_argument("out", type=Path, metavar="OUT")
    random.add_argument("--dtype", choices=list(_DTYPES), default="fp32")
    random.add_argument("--blocks", type=int, help="only so many of a Wan transformer's blocks")
    random.add_argument(
        "--tokenizer", type=Path, help="a SentencePiece model; left out, a small one is trained"
    )
    random.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    options: dict[str, Any] = {} if args.blocks is None else {"blocks": args.blocks}
    if args.blocks is not None and (args.config in CONFIGS or args.blocks < 1):
        parser.error(f"--blocks {args.blocks}: give at least 1, and a name of Wan's")
    made = make_random_checkpoint(
        args.config,
        args.out,
        dtype=_DTYPES[args.dtype],
        tokenizer_file=args.tokenizer,
        seed=args.seed,
        **options,
    )
    print(made)


if __name__ == "__main__":
    main()
