"""Text to rows: SentencePiece ids per segment, one end-of-sequence id, one pass of a T5 encoder.

Paper section 3.1 names Flan-T5-XXL; any `T5EncoderModel` checkpoint loads as it is. Segments are tokenized
one by one and encoded together, so that a word sees the whole instruction (ours).
"""

from __future__ import annotations

from pathlib import Path

import sentencepiece
import torch
from torch import Tensor
from transformers import T5Config, T5EncoderModel

EOS_ID = 1

NANO_TEXT_CONFIG = {
    "vocab_size": 640,
    "d_model": 128,
    "d_kv": 32,
    "d_ff": 256,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
    "relative_attention_num_buckets": 16,
    "relative_attention_max_distance": 64,
    "is_encoder_decoder": False,
    "use_cache": False,
}


def make_nano_text_encoder() -> T5EncoderModel:
    """An untrained T5 encoder of nano's size."""
    return T5EncoderModel(T5Config(**NANO_TEXT_CONFIG))


class Tokenizer:
    """SentencePiece ids of text segments."""

    def __init__(self, path: Path | str) -> None:
        self.processor = sentencepiece.SentencePieceProcessor(model_file=str(path))

    def ids(self, segment: str) -> list[int]:
        """Ids of one segment, without an end-of-sequence id."""
        return list(self.processor.encode(segment))


@torch.no_grad()
def encode_segments(encoder: T5EncoderModel, tokenizer: Tokenizer, segments: list[str]) -> list[Tensor]:
    """Rows of each segment [n, d_model], and last the row of the end-of-sequence id [1, d_model]."""
    pieces = [tokenizer.ids(segment) for segment in segments] + [[EOS_ID]]
    ids = torch.tensor([[i for piece in pieces for i in piece]])
    rows = encoder(input_ids=ids).last_hidden_state[0]
    return list(rows.split([len(piece) for piece in pieces]))
