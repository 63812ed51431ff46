"""What is refused of files and names of results: the same code, and the same words, as from the Python host."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cpp.tests import library as native
from editverse_rt.errors import MediaError
from editverse_rt.media import open_media
from editverse_rt.media.targets import check_target

LIBRARY = native.load_library()
NANO = native.ROOT / "editverse_rt" / "bundles" / "nano"
pytestmark = pytest.mark.skipif(LIBRARY.ev_has_media() == 0, reason="this build is without FFmpeg")


@pytest.fixture(scope="module")
def pipeline() -> Iterator[native.NativePipeline]:
    with native.NativePipeline(NANO) as opened:
        yield opened


def bomb(path: Path) -> Path:
    """The head of a PNG of 11000x11000."""
    body = b"IHDR" + struct.pack(">IIBBBBB", 11000, 11000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    )
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def silence(path: Path) -> Path:
    """A WAV file."""
    form = struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, 16)
    data = bytes(8000)
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path


FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no file": (lambda f: f / "none.mp4", "media.not_found"),
    "a folder": (lambda f: f, "media.not_a_file"),
    "an empty file": (lambda f: written(f / "a.mp4", b""), "media.empty"),
    "a text": (lambda f: written(f / "a.mp4", b"no video at all " * 40), "media.undecodable"),
    "a list": (lambda f: written(f / "a.mp4", b"#EXTM3U\n#EXTINF:1,\nb.ts\n"), "media.unsupported"),
    "a large picture": (lambda f: bomb(f / "a.png"), "media.too_large"),
    "only sound": (lambda f: silence(f / "a.wav"), "media.no_picture"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_refused_in_the_same_words(
    name: str, pipeline: native.NativePipeline, tmp_path: Path
) -> None:
    make, code = FILES[name]
    path = make(tmp_path)
    with pytest.raises(MediaError) as expected, open_media(path) as file:
        file.read_clip(num_frames=1, height_px=64, width_px=64)
    with pytest.raises(native.LibraryError) as found:
        pipeline.run("<video1> x", video1=path, num_inference_steps=1)
    assert found.value.name == "MediaError"
    wanted = expected.value.to_json()
    assert found.value.facts["code"] == wanted["code"] == code
    for part in ("found", "expected", "hint"):
        assert found.value.facts[part] == wanted[part]


def test_a_start_beyond_the_end_is_refused_in_the_same_words(pipeline: native.NativePipeline) -> None:
    sample = native.ROOT / "examples" / "sample.mp4"
    with pytest.raises(MediaError) as expected, open_media(sample) as file:
        file.read_clip(start_s=99.0, num_frames=1, height_px=64, width_px=64)
    with pytest.raises(native.LibraryError) as found:
        pipeline.run("<video1> x", video1=sample, start_s=99.0, num_inference_steps=1, length="cut")
    assert found.value.facts["code"] == "media.start"
    assert found.value.text == str(expected.value)


def check_by_library(path: str, fps: float | None) -> dict[str, Any] | None:
    """The error of ev_check_target as data, None where it has no objection."""
    rate = ctypes.c_double(native.DEFAULT if fps is None else fps)
    if LIBRARY.ev_check_target(ctypes.c_char_p(os.fsencode(path)), rate) == 0:
        return None
    facts: dict[str, Any] = json.loads(LIBRARY.ev_last_error_json())
    return facts


TARGETS = [
    ("out.mp4", None),
    ("out.MP4", 60.0),
    ("out.png", None),
    ("folder", None),
    ("empty", None),
    ("p_%04d.png", None),
    ("50%done.png", None),
    ("%d%d.png", None),
    ("a.b.webm", 1000.0),
    ("out.mp4", 1000.5),
    ("out.txt", None),
    ("-", None),
    (".mp4", None),
    ("..", None),
    ("full", None),
    ("taken.mp4", None),
    ("file", None),
    ("no/such/out.mp4", None),
    ("x" * 252 + ".mp4", None),
    ("x" * 251 + ".mp4", None),
    ("\u732b" * 84 + ".mp4", None),
    ("x" * 245 + "_%d.png", None),
    ("x" * 246 + "_%d.png", None),
]


@pytest.mark.parametrize(("name", "fps"), TARGETS)
def test_a_name_is_refused_in_the_same_words_and_before_any_work(
    name: str, fps: float | None, tmp_path: Path
) -> None:
    (tmp_path / "taken.mp4").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    path = f"{tmp_path}/{name}"
    expected = None
    try:
        check_target(Path(path), fps=fps)
    except MediaError as error:
        expected = error.to_json()
    found = check_by_library(path, fps)
    assert sorted(tmp_path.rglob("*")) == before
    assert (found is None) == (expected is None)
    if found is None or expected is None:
        return
    for part in ("code", "found", "hint"):
        assert found[part] == expected[part]
    # The Python host writes GIF as well.
    assert found["expected"] == expected["expected"].replace(".gif ", "")


def test_gif_is_refused_before_any_work(tmp_path: Path) -> None:
    found = check_by_library(str(tmp_path / "out.gif"), None)
    assert found is not None
    assert found["code"] == "media.type"
