from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from editverse_rt.errors import MediaError
from editverse_rt.media.lossless import read_lossless, write_lossless


@pytest.mark.parametrize("shape", [(1, 16, 16, 3), (7, 48, 80, 3), (3, 33, 17, 3)])
def test_every_byte_comes_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    write_lossless(tmp_path / "a.mkv", frames)
    assert np.array_equal(np.stack(list(read_lossless(tmp_path / "a.mkv"))), frames)


def test_the_same_frames_give_the_same_file(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    for name in ("a.mkv", "b.mkv"):
        write_lossless(tmp_path / name, frames)
    assert (tmp_path / "a.mkv").read_bytes() == (tmp_path / "b.mkv").read_bytes()


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.mkv").write_bytes(b"nothing of the kind")
    with pytest.raises(MediaError, match="it is damaged; run again"):
        list(read_lossless(tmp_path / "a.mkv"))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_file_without_its_end_is_an_error(tmp_path: Path, share: float) -> None:
    """libav reads it as far as it goes, without an error."""
    frames = np.random.default_rng(0).integers(0, 256, (7, 48, 80, 3), np.uint8)
    write_lossless(tmp_path / "a.mkv", frames)
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data[: int(share * len(data))])
    with pytest.raises(MediaError, match=r"holds [0-6] of its 7 frames; it is damaged; run again"):
        list(read_lossless(tmp_path / "a.mkv"))


def test_a_folder_whose_name_has_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("2026-01-01T10:00", "a.mkv")
    path.parent.mkdir()
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    write_lossless(path, frames)
    assert np.array_equal(np.stack(list(read_lossless(path))), frames)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="found no folder"):
        write_lossless(tmp_path / "no" / "a.mkv", np.zeros((1, 16, 16, 3), np.uint8))
