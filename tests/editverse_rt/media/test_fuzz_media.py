"""A short run of the fuzzer, so that it keeps working; `make fuzz-media` runs long."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz_media import make_corpus, run

from editverse_rt.errors import MediaError
from editverse_rt.media import probe


def test_every_file_is_read_before_it_is_altered(tmp_path: Path) -> None:
    *videos_and_pictures, playlist = sorted(make_corpus(tmp_path), key=lambda path: path.suffix == ".m3u8")
    for path in videos_and_pictures:
        assert probe(path).width_px > 0
    with pytest.raises(MediaError, match="list of other files"):
        probe(playlist)


def test_altered_files_end_in_a_clip_or_a_media_error(tmp_path: Path) -> None:
    report = run(400, 1, tmp_path / "findings")
    assert report["findings"] == []
    assert report["kinds"] >= 25
    endings = report["endings"]
    assert isinstance(endings, dict)
    assert sum(endings.values()) == 400
    assert {"read", "damaged", "media.damaged", "media.undecodable"} <= set(endings)
