"""Names of results, and what is refused before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest
from media_samples import grey_frames, names

from editverse_rt.media import probe, write_clip


@pytest.mark.parametrize("name", ["x_%04d.png", "x_%04d.JPG", "x_%04d.webp"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_pattern_is_filled_in_for_one_frame_too(tmp_path: Path, name: str, count: int) -> None:
    assert write_clip(tmp_path / name, grey_frames(count), 25.0).num_frames == count
    assert names(tmp_path) == [name % number for number in range(1, count + 1)]
    for number in range(1, count + 1):
        assert probe(tmp_path / (name % number)).kind == "image"


def test_a_percent_sign_alone_is_no_pattern(tmp_path: Path) -> None:
    write_clip(tmp_path / "100%.png", grey_frames(1), 25.0)
    assert names(tmp_path) == ["100%.png"]
