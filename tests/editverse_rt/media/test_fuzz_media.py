"""A short run of the fuzzer, so that it keeps working; `make fuzz-media` runs long."""

from __future__ import annotations

from pathlib import Path

from fuzz_media import run


def test_altered_files_end_in_a_clip_or_a_media_error(tmp_path: Path) -> None:
    report = run(400, 1, tmp_path / "findings")
    assert report["findings"] == []
    assert report["kinds"] >= 25
    endings = report["endings"]
    assert isinstance(endings, dict)
    assert sum(endings.values()) == 400
    assert {"read", "damaged", "media.damaged", "media.undecodable"} <= set(endings)
