"""What checkpoints with random weights are made of: seeded values, and a tokenizer trained on the spot."""

from __future__ import annotations

import itertools
from pathlib import Path

import sentencepiece
import torch
from torch import nn

__all__ = ["fill_randomly", "random_sentences", "train_tokenizer"]


def train_tokenizer(sentences: list[str], path: str | Path, vocab_size: int) -> Path:
    """Train a SentencePiece unigram model with Flan-T5's ids (pad 0, eos 1, unk 2) and byte fallback."""
    with Path(path).open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=file,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            byte_fallback=True,
            num_threads=1,
            minloglevel=2,
        )
    return Path(path)


def random_sentences() -> list[str]:
    """A few hundred sentences in the manner of instructions: enough to train a tokenizer on."""
    verbs = ("Remove", "Add", "Find", "Blur", "Make larger", "Turn blue", "Turn green", "Replace")
    colours = ("red", "green", "blue", "yellow", "white", "grey")
    things = ("circle", "square", "boat", "person", "background", "star")
    places = ("on the left.", "in the middle.", "of the video.")
    table = itertools.product(verbs, colours, things, places)
    return [f"{verb} the {colour} {thing} {place}" for verb, colour, thing, place in table]


@torch.no_grad()
def fill_randomly(module: nn.Module, seed: int) -> None:
    """Seeded values for every parameter: matrices keep the size of what passes, vectors are near 1."""
    generator = torch.Generator().manual_seed(seed)
    for weight in module.parameters():
        values = torch.randn(weight.shape, generator=generator)
        if weight.ndim > 1 and weight[0].numel() > 1:
            weight.copy_(values * weight[0].numel() ** -0.5)
        else:
            weight.copy_(1.0 + 0.1 * values)
