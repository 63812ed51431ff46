from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editverse_rt.errors import BundleError, RequestError
from editverse_rt.request.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory, tokenizer_bytes: bytes) -> Path:
    path = tmp_path_factory.mktemp("text") / "tokenizer.model"
    path.write_bytes(tokenizer_bytes)
    return path


def test_each_segment_is_tokenized_on_its_own_and_one_end_stands_last(model_path: Path) -> None:
    tokenizer = Tokenizer(model_path, 1, 100)
    together = tokenizer.encode_segments(["Turn the circle", "green"])
    assert together[0] == tokenizer.encode_segments(["Turn the circle"])[0]
    assert together[1] == tokenizer.encode_segments(["green"])[0]
    assert together[2] == [1]
    assert len(together) == 3
    assert all(1 not in segment for segment in together[:2])


def test_no_segments_leave_the_end(model_path: Path) -> None:
    assert Tokenizer(model_path, 1, 100).encode_segments([]) == [[1]]


def test_the_limit_counts_the_end(model_path: Path) -> None:
    num_tokens = len(Tokenizer(model_path, 1, 100).encode_segments(["Turn the circle green"])[0])
    assert Tokenizer(model_path, 1, num_tokens + 1).encode_segments(["Turn the circle green"])
    with pytest.raises(
        RequestError, match=rf"has {num_tokens + 1} tokens.* takes up to {num_tokens}; shorten"
    ):
        Tokenizer(model_path, 1, num_tokens).encode_segments(["Turn the circle green"])


def test_what_is_no_sentencepiece_model(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"not a model")
    with pytest.raises(BundleError, match=r"tokenizer\.model is not a SentencePiece model"):
        Tokenizer(path, 1, 100)
    with pytest.raises(BundleError, match="is not a SentencePiece model"):
        Tokenizer(tmp_path / "absent.model", 1, 100)


def test_an_end_that_the_model_does_not_have(model_path: Path) -> None:
    with pytest.raises(BundleError, match=r"eos_id is 32000, but .* has ids 0 to "):
        Tokenizer(model_path, 32000, 100)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(max_size=40), max_size=4))
def test_any_text_becomes_ids_of_the_model(model_path: Path, segments: list[str]) -> None:
    ids = Tokenizer(model_path, 1, 10_000).encode_segments(segments)
    assert len(ids) == len(segments) + 1
    assert all(isinstance(i, int) and 0 <= i < 1000 for segment in ids for i in segment)
