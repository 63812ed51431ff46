"""CLIP's byte-pair encoding: the only file that imports `tokenizers` and `ftfy`.

The published scores were tokenized by these two libraries, so ids are equal by construction; an encoder of
our own would have to follow their Unicode tables.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from editverse_rt.errors import BackendError, BundleError

__all__ = ["ClipTokenizer"]

_END = "<|endoftext|>"
_INSTALL = "install it with: pip install 'editverse-rt[evaluate]'"
_EXPORT_AGAIN = "export the metric models again"


class ClipTokenizer:
    """Texts to ids that begin with the start token and end with the end token.

    max_tokens: of a text with both; a longer one is cut and ended. repair: see `TextPreprocessing`.
    Raises BundleError for a file that is no tokenizer, BackendError where a library is missing.
    """

    def __init__(self, path: Path, max_tokens: int, repair: str) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise BackendError(
                "the package tokenizers is not installed", hint=_INSTALL, code="backend.package_missing"
            ) from error
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(path))
        except Exception as error:
            raise BundleError(
                f"{path} is no tokenizer ({error})", hint=_EXPORT_AGAIN, code="bundle.tokenizer"
            ) from error
        end = self._tokenizer.token_to_id(_END)
        if end is None:
            raise BundleError(
                f"{path} has no token {_END}",
                expected="a CLIP tokenizer",
                hint=_EXPORT_AGAIN,
                code="bundle.tokenizer",
            )
        self._end = int(end)
        self._tokenizer.enable_truncation(max_tokens)
        self._tokenizer.no_padding()
        self._repairs = repair == "ftfy"

    def encode(self, texts: list[str]) -> NDArray[np.int64]:
        """ids int64 [N, L], L the longest text's; shorter ones are filled up with the end token.

        What stands behind a text's first end token changes nothing: the models attend to what came before.
        """
        rows = [self._tokenizer.encode(_repair(text) if self._repairs else text).ids for text in texts]
        ids = np.full((len(rows), max(map(len, rows), default=0)), self._end, np.int64)
        for row, found in zip(ids, rows, strict=True):
            row[: len(found)] = found
        return ids


def _repair(text: str) -> str:
    """Mend broken Unicode and curly quotes, unescape HTML twice, as CLIP's first tokenizer does."""
    try:
        import ftfy
    except ImportError as error:
        raise BackendError(
            "the package ftfy is not installed", hint=_INSTALL, code="backend.package_missing"
        ) from error
    fixed: str = ftfy.fix_text(text)
    return html.unescape(html.unescape(fixed)).strip()
