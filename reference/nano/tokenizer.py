"""Train nano's SentencePiece model on the instructions of its world.

python -m reference.nano.tokenizer OUT.model
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from pathlib import Path

if not __package__:  # run as a file: `python reference/nano/tokenizer.py`
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import sentencepiece

from reference.nano.curate import VIDEO_ONLY
from reference.nano.tasks import TASKS, draw_sample
from reference.nano.world import Canvas

VOCABULARY = 640
TAG = re.compile(r"<(?:video|image)\d+>")


def instructions(count: int) -> list[str]:
    """Text segments of random requests, tags taken out."""
    rng = np.random.default_rng(11)
    lines = []
    for index in range(count):
        task = TASKS[index % len(TASKS)]
        sample = draw_sample(rng, task, Canvas(5 if index % 2 or task in VIDEO_ONLY else 1, 16, 16))
        lines += [part.strip() for part in TAG.split(sample.prompt) if part.strip()]
    return lines


def train_tokenizer(path: Path, lines: list[str], vocabulary: int = VOCABULARY) -> None:
    """Write a BPE model with T5's special ids: pad 0, end of sequence 1, unknown 2; bytes as fallback."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, vocab_size=vocabulary, model_type="bpe",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, byte_fallback=True, character_coverage=1.0,
        hard_vocab_limit=False, minloglevel=2, num_threads=1,
    )  # fmt: skip
    path.write_bytes(out.getvalue())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m reference.nano.tokenizer", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT.model")
    train_tokenizer(parser.parse_args().out, instructions(8000))
