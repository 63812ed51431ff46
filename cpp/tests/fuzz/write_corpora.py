"""Writes the seed corpora beside this file: bundle.json texts from the test vectors, and requests.

python cpp/tests/fuzz/write_corpora.py
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import struct
from pathlib import Path

FOLDER = Path(__file__).parent
VECTORS = FOLDER.parents[2] / "tests" / "vectors"


def write_corpus(name: str, inputs: list[bytes]) -> None:
    folder = FOLDER / name
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for content in inputs:
        (folder / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)


def bundle_inputs() -> list[bytes]:
    spec = importlib.util.spec_from_file_location("write_bundle_vectors", VECTORS / "write_bundle_vectors.py")
    assert spec is not None
    assert spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    vectors = json.loads((VECTORS / "bundles.json").read_text("utf-8"))
    texts = [writer.apply_edits(vectors["base"], case["edits"]) for case in vectors["cases"][::9]]
    hostile = [
        "",
        "{",
        "[]",
        '{"format_version": 1e999}',
        "[" * 300,
        '{"a": 1, "a": 2}',
        '{"format_version": NaN}',
    ]
    return [json.dumps(json.loads(text), separators=(",", ":")).encode() for text in texts] + [
        text.encode() for text in hostile
    ]


def text(value: bytes) -> bytes:
    return bytes([len(value)]) + value


def clip(name: bytes, flags: int, num_frames: int, width: int, height: int, rest: bytes = b"") -> bytes:
    return text(name) + struct.pack("<HBBB", flags, num_frames, width, height) + rest


def request_inputs() -> list[bytes]:
    """In the order in which fuzz_request.cpp takes them: flags, fields, schedule, inputs, prompt."""

    def head(num_inputs: int, fields: int = 0) -> bytes:
        return struct.pack("<H", num_inputs << 14 | fields)

    video = clip(b"video1", 0, 9, 80, 48)
    return [
        head(0) + text(b"A red circle"),
        head(1) + video + text(b"<video1> Make it night"),
        head(2) + video + clip(b"image1", 0, 1, 64, 64) + text(b"<video1> Insert <image1> here"),
        head(1) + clip(b"video1", 0b100000, 9, 80, 48, struct.pack("<H", 300)) + text(b"<video1> x"),
        head(1)
        + clip(b"video1", 0b11000, 3, 8, 8, struct.pack("<QQ", 2**63, 2**64 - 1))
        + text(b"<video1> x"),
        head(0, 0b1) + struct.pack("<i", 7) + text(b"seven steps"),
        head(0, 0b10) + struct.pack("<d", float("nan")) + text(b"x"),
        head(0, 0b1000) + struct.pack("<ii", 80, 48) + text(b"x"),
        head(0, 0b110000) + struct.pack("<id", 5, 24.0) + text(b"x"),
        head(0, 0b100000000) + text(b"paper") + text(b"x"),
        head(0, 0b1000000000) + text(b"blurred") + text(b"x"),
        head(0) + text("<V\u0130DEO1> \u3000\u732b".encode()),
        head(0) + text(b"\xff\xfe<video1"),
    ]


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()  # takes --help and nothing else
    write_corpus("corpus_bundle", bundle_inputs())
    write_corpus("corpus_request", request_inputs())
