"""Checkpoint folders in the diffusers layout: `model_index.json` says which family reads one.

`python -m reference.checkpoint random nano|editverse-150m|editverse-2b OUT` makes one with random weights,
to try an export.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

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
from reference.weights import read_json

__all__ = [
    "LIMITS",
    "PAPER_SCHEDULE",
    "Checkpoint",
    "load_checkpoint",
    "make_random_checkpoint",
    "save_checkpoint",
]

Checkpoint = EditVerseCheckpoint
make_random_checkpoint = make_random_editverse


def load_checkpoint(folder: str | Path, *, dtype: torch.dtype | None = None) -> Checkpoint:
    """Read a checkpoint folder, the modules in eval mode without gradients.

    dtype: that of the transformer and the text encoder, None for the one they were saved in. The VAE is
    always float32, since it decides on grey levels.
    Raises ValueError for a pipeline or a part of a class that no family reads, FileNotFoundError for a part
    that is not there.
    """
    class_name = read_json(Path(folder) / "model_index.json").get("_class_name")
    if class_name != "EditVersePipeline":
        raise ValueError(
            f"{Path(folder) / 'model_index.json'}: _class_name is {class_name!r}; expected "
            "EditVersePipeline: take a checkpoint of a family that this project runs"
        )
    return load_editverse(folder, dtype=dtype)


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a checkpoint with random weights, to try an export.")
    commands = parser.add_subparsers(required=True)
    random = commands.add_parser("random", help="random weights of the given sizes")
    random.add_argument("config", choices=list(CONFIGS))
    random.add_argument("out", type=Path, metavar="OUT")
    random.add_argument("--dtype", choices=list(_DTYPES), default="fp32")
    random.add_argument(
        "--tokenizer", type=Path, help="a SentencePiece model; left out, a small one is trained"
    )
    random.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    made = make_random_checkpoint(
        args.config, args.out, dtype=_DTYPES[args.dtype], tokenizer_file=args.tokenizer, seed=args.seed
    )
    print(made)


if __name__ == "__main__":
    main()
