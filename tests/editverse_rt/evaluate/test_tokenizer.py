"""CLIP's tokens: a tiny vocabulary whose ids can be counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from editverse_rt.errors import BundleError
from editverse_rt.evaluate.tokenizer import ClipTokenizer

WORDS = ["c", "a", "t", "s", "'", "é", "c</w>", "a</w>", "t</w>", "s</w>", "é</w>", "ca", "cat</w>", "'s</w>"]
START, END = len(WORDS), len(WORDS) + 1
CAT, APOSTROPHE_S = WORDS.index("cat</w>"), WORDS.index("'s</w>")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    vocabulary = {word: i for i, word in enumerate([*WORDS, "<|startoftext|>", "<|endoftext|>"])}
    merges = [("c", "a"), ("ca", "t</w>"), ("'", "s</w>")]
    found = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    found.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    found.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"'s|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"), "removed", invert=True
    )
    found.post_processor = processors.RobertaProcessing(("<|endoftext|>", END), ("<|startoftext|>", START))
    found.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_texts_begin_and_end_and_shorter_ones_are_filled_with_the_end(file: Path) -> None:
    ids = ClipTokenizer(file, 77, "none").encode(["CAT cat", "cat's", ""])
    assert ids.tolist() == [
        [START, CAT, CAT, END],
        [START, CAT, APOSTROPHE_S, END],
        [START, END, END, END],
    ]
    assert ids.dtype == "int64"


def test_a_long_text_is_cut_and_ended(file: Path) -> None:
    ids = ClipTokenizer(file, 5, "none").encode(["cat " * 20])
    assert ids.tolist() == [[START, CAT, CAT, CAT, END]]


def test_repair_uncurls_quotes_and_unescapes_html_twice(file: Path) -> None:
    curly = "cat\N{RIGHT SINGLE QUOTATION MARK}s"
    fixed = ClipTokenizer(file, 32, "ftfy")
    plain = fixed.encode(["cat's"]).tolist()
    assert fixed.encode([curly]).tolist() == plain
    assert fixed.encode(["cat&amp;#39;s"]).tolist() == plain
    assert fixed.encode([" cat's \n"]).tolist() == plain
    assert ClipTokenizer(file, 32, "none").encode([curly]).tolist() != plain


def test_what_is_no_tokenizer_is_refused(tmp_path: Path, file: Path) -> None:
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(BundleError, match="is no tokenizer"):
        ClipTokenizer(tmp_path / "broken.json", 77, "none")
    other = Tokenizer(models.BPE({"a": 0}, []))
    other.save(str(tmp_path / "other.json"))
    with pytest.raises(BundleError, match="has no token"):
        ClipTokenizer(tmp_path / "other.json", 77, "none")
