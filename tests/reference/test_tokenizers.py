"""SentencePiece models against the tokenizers of transformers, for every kind of folder."""

from __future__ import annotations

import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from reference.families.wan_checkpoint import NEGATIVE_PROMPT
from reference.random_weights import random_sentences, train_tokenizer
from reference.tokenizers import EOS_ID, PROBE_TEXTS, encode_prompt, find_tokenizer_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trained model with byte fallback alone, and as transformers saves it: as tokenizer.json alone."""
    root = tmp_path_factory.mktemp("tokenizers")
    own, fast, both = root / "own", root / "fast", root / "both"
    own.mkdir()
    train_tokenizer([*random_sentences(), *PROBE_TEXTS[:6]], own / "spiece.model", 420)
    (own / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 0}')
    AutoTokenizer.from_pretrained(own).save_pretrained(fast)
    shutil.copytree(fast, both)
    shutil.copyfile(own / "spiece.model", both / "spiece.model")
    return {"own": own, "fast": fast, "both": both}


def processor_of(folder: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=find_tokenizer_model(folder, [NEGATIVE_PROMPT]))


@lru_cache
def loaded(folder: Path) -> tuple[Any, sentencepiece.SentencePieceProcessor]:
    return AutoTokenizer.from_pretrained(folder), processor_of(folder)


def test_a_folder_with_a_model_alone_keeps_it(folders: dict[str, Path]) -> None:
    assert find_tokenizer_model(folders["own"]) == (folders["own"] / "spiece.model").read_bytes()


@pytest.mark.parametrize("kind", ["fast", "both"])
def test_ids_are_those_of_tokenizer_json(folders: dict[str, Path], kind: str) -> None:
    """transformers gives unk where the SentencePiece model gives bytes; the model found gives unk as well."""
    expected, found = AutoTokenizer.from_pretrained(folders[kind]), processor_of(folders[kind])
    own = sentencepiece.SentencePieceProcessor(model_file=str(folders["own"] / "spiece.model"))
    text = "🐱 ✨ a sticker"
    assert own.encode(text) != found.encode(text)
    for probe in (*PROBE_TEXTS, NEGATIVE_PROMPT):
        assert [*found.encode(probe), EOS_ID] == expected(probe).input_ids
    assert found.vocab_size() == own.vocab_size()
    ids = range(own.vocab_size())
    assert [found.id_to_piece(i) for i in ids] == [own.id_to_piece(i) for i in ids]


@settings(max_examples=80, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cn", "Co"]), max_size=40))
def test_any_text_has_the_ids_of_tokenizer_json(folders: dict[str, Path], text: str) -> None:
    expected, found = loaded(folders["fast"])
    assert [*found.encode(text), EOS_ID] == expected(text).input_ids


def test_a_prompt_is_cut_as_diffusers_cuts_it(folders: dict[str, Path]) -> None:
    expected, found = AutoTokenizer.from_pretrained(folders["fast"]), processor_of(folders["fast"])
    text = "Turn the red circle green. " * 40
    for limit in (1, 2, 17, 512):
        ids = expected(text, truncation=True, max_length=limit, add_special_tokens=True).input_ids
        assert encode_prompt(found, text, limit) == ids


def test_what_diffusers_cleans_and_this_does_not(folders: dict[str, Path]) -> None:
    """White space is the same either way; HTML entities, and what ftfy repairs, are not."""
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    found = processor_of(folders["own"])
    for text in PROBE_TEXTS:
        if "’" not in text:
            assert found.encode(text) == found.encode(prompt_clean(text)), text
    for text in ("black &amp; white", "don’t"):
        assert found.encode(text) != found.encode(prompt_clean(text)), text


def test_folders_that_cannot_be_followed_say_what_to_copy(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither spiece\.model nor tokenizer\.json; copy spiece"):
        find_tokenizer_model(tmp_path)
    facts = json.loads((folders["fast"] / "tokenizer.json").read_text("utf-8"))
    facts["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(facts), "utf-8")
    with pytest.raises(ValueError, match=r"gives other ids for .*; copy the spiece\.model"):
        find_tokenizer_model(tmp_path)
    words = {"type": "WordLevel", "vocab": {"<unk>": 2, "a": 3}, "unk_token": "<unk>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**facts, "model": words}), "utf-8")
    with pytest.raises(ValueError, match="is not a Unigram"):
        find_tokenizer_model(tmp_path)
