"""The tokenizer of a bundle. The only file that imports sentencepiece."""

from __future__ import annotations

import os
from collections.abc import Sequence

from sentencepiece import SentencePieceProcessor

from editverse_rt.errors import BundleError, RequestError

__all__ = ["Tokenizer"]


class Tokenizer:
    """Turns the text segments of a request into token ids (paper section 3.1).

    path: a SentencePiece model. eos_id: the id that ends every encoded instruction. max_tokens: the most
    ids of one request, the end included. Raises BundleError if the file is no SentencePiece model, or has
    no such id.
    """

    def __init__(self, path: str | os.PathLike[str], eos_id: int, max_tokens: int) -> None:
        try:
            self._processor = SentencePieceProcessor(model_file=os.fspath(path))
        except (OSError, RuntimeError) as error:
            raise BundleError(
                f"{path} is not a SentencePiece model",
                hint="export the bundle again",
                code="bundle.tokenizer",
            ) from error
        num_pieces = self._processor.get_piece_size()
        if not 0 <= eos_id < num_pieces:
            raise BundleError(
                f"tokenizer.eos_id is {eos_id}, but {path} has ids 0 to {num_pieces - 1}",
                hint="export the bundle again",
                code="bundle.field",
            )
        self._eos_id = eos_id
        self._max_tokens = max_tokens

    def encode_segments(self, segments: Sequence[str]) -> list[list[int]]:
        """Token ids of each segment, tokenized on its own, and a last list with the end-of-sequence id.

        Raises RequestError if all lists together exceed the bundle's max_tokens.
        """
        ids = [[int(i) for i in self._processor.encode(segment, out_type=int)] for segment in segments]
        ids.append([self._eos_id])
        num_tokens = sum(len(segment) for segment in ids)
        if num_tokens > self._max_tokens:
            raise RequestError(
                f"the instruction has {num_tokens} tokens, the end included",
                hint=f"this bundle takes up to {self._max_tokens}; shorten it",
                code="request.prompt_length",
            )
        return ids
