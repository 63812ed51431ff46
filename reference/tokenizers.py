"""The SentencePiece model whose ids are those of a checkpoint's tokenizer folder.

A folder of diffusers may hold `spiece.model`, `tokenizer.json` (all that transformers 5 saves) or both. The
hosts of a bundle run SentencePiece alone, so this finds a model that agrees with `tokenizer.json` on
`PROBE_TEXTS`: the folder's own, the same without byte fallback (some tokenizers give `unk` where their
SentencePiece model gives bytes), or one made of the Unigram pieces of `tokenizer.json`.

diffusers cleans a prompt before it is tokenized: ftfy, where that is installed, HTML entities, white space.
SentencePiece's own rules make the last one no difference. The first two are left to the caller: a bundle
takes `&amp;` and curly quotes as they are written.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

__all__ = ["EOS_ID", "PROBE_TEXTS", "encode_prompt", "find_tokenizer_model"]

EOS_ID = 1
_CONTROL, _UNKNOWN, _UNUSED, _BYTE = 3, 2, 5, 6

PROBE_TEXTS: tuple[str, ...] = (
    "",
    "A cat walks on the grass, realistic style.",
    "Change the woman's red dress to a blue one; keep everything else (pose, light) as it is!",
    "  two  spaces,\na line break\tand a tab ",
    "4K, 16:9, 24 fps, f/2.8, 50 % darker - 3.5 m",
    "Ein Mädchen läuft über die Straße, während es schneit. Où est l'été ? ¿Qué pasó, señor?",
    "一只猫在草地上行走，写实风格。",
    "猫が草の上を歩いています。고양이가 풀밭을 걷는다.",
    "Кошка идёт по траве. القطة تمشي على العشب.",
    "Ｆｕｌｌ ｗｉｄｔｈ ﬁgures ①②",
    "🐱 ✨ a sticker",
    "don’t use “curly” quotes… – ever",
    "\u2603\u0f00\u16a0 \U0001f9d1\u200d\U0001f680",
)
"""What two tokenizers are compared on, besides the texts of the caller: the default negative prompts."""


def encode_prompt(tokenizer: Any, text: str, max_tokens: int = 512) -> list[int]:
    """Ids of a prompt, cut so that the end of sequence is the last of at most max_tokens."""
    return [*list(tokenizer.encode(text))[: max_tokens - 1], EOS_ID]


def find_tokenizer_model(folder: Path, texts: Iterable[str] = ()) -> bytes:
    """A serialized SentencePiece model that gives the folder's ids on `PROBE_TEXTS` and on texts.

    Without `tokenizer.json` the folder's `spiece.model` is what counts. Raises FileNotFoundError for a folder
    with neither, ValueError where no model agrees, naming a text.
    """
    own, fast = folder / "spiece.model", folder / "tokenizer.json"
    if not fast.is_file():
        if not own.is_file():
            raise FileNotFoundError(
                f"{folder} has neither spiece.model nor tokenizer.json; copy spiece.model there from the "
                "tokenizer that the text encoder was trained with (google/umt5-xxl for Wan)"
            )
        return own.read_bytes()
    expected = tokenizers.Tokenizer.from_file(str(fast))
    expected.no_truncation()
    expected.no_padding()
    probes = (*PROBE_TEXTS, *texts)
    wanted = [expected.encode(text).ids for text in probes]
    odd = ""
    for model in _candidates(own, fast):
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            odd = odd or f"SentencePiece refuses its pieces ({error})"
            continue
        pairs = zip(probes, wanted, strict=True)
        different = [text for text, ids in pairs if [*processor.encode(text), EOS_ID] != ids]
        if not different:
            return model
        odd = odd or f"SentencePiece gives other ids for {different[0]!r}"
    raise ValueError(
        f"{fast}: {odd or 'its model is not a Unigram with a table of characters'}; copy the spiece.model "
        "that the text encoder was trained with (google/umt5-xxl for Wan) there, and take tokenizer.json away"
    )


def _candidates(own: Path, fast: Path) -> Iterator[bytes]:
    if own.is_file():
        yield own.read_bytes()
        yield _without_byte_fallback(own.read_bytes())
    made = _model_from_pieces(json.loads(fast.read_text(encoding="utf-8")))
    if made is not None:
        yield made


def _new_model() -> Any:
    messages: Any = sentencepiece_model_pb2  # its classes are made when it is imported
    return messages.ModelProto()


def _without_byte_fallback(model: bytes) -> bytes:
    proto = _new_model()
    proto.ParseFromString(model)
    proto.trainer_spec.byte_fallback = False
    for piece in proto.pieces:
        if piece.type == _BYTE:
            piece.type = _UNUSED
    return bytes(proto.SerializeToString())


def _model_from_pieces(facts: dict[str, Any]) -> bytes | None:
    """A SentencePiece model of the pieces and scores of a `tokenizer.json`, None where it has none."""
    model, charsmap = facts.get("model") or {}, _characters_table(facts.get("normalizer"))
    if model.get("type") != "Unigram" or charsmap is None:
        return None
    special = {token["content"] for token in facts.get("added_tokens", []) if token.get("special")}
    unk_id, has_bytes = model.get("unk_id", 2), bool(model.get("byte_fallback"))
    proto = _new_model()
    proto.trainer_spec.model_type = 1  # Unigram
    proto.trainer_spec.byte_fallback = has_bytes
    proto.trainer_spec.unk_id, proto.trainer_spec.eos_id = unk_id, EOS_ID
    proto.trainer_spec.pad_id, proto.trainer_spec.bos_id = 0, -1
    proto.normalizer_spec.precompiled_charsmap = charsmap
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = True
    proto.normalizer_spec.escape_whitespaces = True
    for index, (text, score) in enumerate(model["vocab"]):
        piece = proto.pieces.add()
        piece.piece, piece.score = text, score
        if index == unk_id:
            piece.type = _UNKNOWN
        elif text in special:
            piece.type = _CONTROL
        elif len(text) == 6 and text.startswith("<0x"):
            piece.type = _BYTE if has_bytes else _UNUSED
    return bytes(proto.SerializeToString())


def _characters_table(normalizer: dict[str, Any] | None) -> bytes | None:
    """The compiled table of replaced characters, wherever it stands among a tokenizer's normalizers."""
    for part in (normalizer or {}).get("normalizers", [normalizer]):
        if part and part.get("type") == "Precompiled":
            return base64.b64decode(part["precompiled_charsmap"])
    return None
