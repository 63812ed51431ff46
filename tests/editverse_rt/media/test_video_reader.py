"""A few frames at a time give what `read_clip` gives at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from editverse_rt.errors import MediaError
from editverse_rt.media import clip_from_array, open_array_frames, open_media, write_clip

FRAMES = np.random.default_rng(0).integers(0, 256, (23, 32, 48, 3), np.uint8)
UNEVEN = (0.0, *np.cumsum(np.random.default_rng(1).uniform(0.02, 0.3, 23)))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    paths = {"even": folder / "even.mp4", "uneven": folder / "uneven.mkv"}
    write_clip(paths["even"], FRAMES, 25.0)
    write_clip(paths["uneven"], FRAMES, 25.0, times_s=UNEVEN)
    return paths


@pytest.mark.parametrize("kind", ["even", "uneven"])
@pytest.mark.parametrize(
    "options", [{}, {"fps": 10.0}, {"fps": 60.0}, {"start_s": 0.35}, {"start_s": 0.3, "fps": 12.5}]
)
@pytest.mark.parametrize("step", [1, 4, 30])
def test_the_frames_and_times_of_read_clip(
    files: dict[str, Path], kind: str, options: dict[str, float], step: int
) -> None:
    size = {"height_px": 16, "width_px": 24}
    with open_media(files[kind]) as file:
        whole = file.read_clip(num_frames=10_000, **options, **size)
        with file.open_frames(**options, **size) as reader:
            taken = []
            while part := reader.take(step):
                taken += part
            assert not reader.has_more()
            assert np.array_equal(np.stack(taken), whole.frames)
            assert tuple(reader.times_s) == whole.source_times_s
            assert reader.fps == whole.fps
            assert reader.notices == whole.notices
            assert reader.num_damaged == whole.num_damaged


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_an_array_in_any_steps(steps: list[int]) -> None:
    size = {"height_px": 16, "width_px": 32}
    reader = open_array_frames(FRAMES, 8.0, start_s=0.5, **size)
    taken = [picture for step in steps for picture in reader.take(step)]
    whole = clip_from_array(FRAMES, 8.0, start_s=0.5, num_frames=sum(steps), **size)
    assert np.array_equal(np.stack(taken), whole.frames)
    assert reader.end_s == whole.end_s


def test_moments_may_grow(files: dict[str, Path]) -> None:
    """Slots that are told while frames are taken give the frames of slots that were told before."""
    size = {"height_px": 16, "width_px": 24}
    moments = [0.0, 0.09, 0.13, 0.4, 0.41, 0.7]
    with open_media(files["even"]) as file:
        whole = file.read_clip(num_frames=6, fps=10.0, moments_s=moments, **size)
        told: list[float] = []
        with file.open_frames(fps=10.0, moments_s=told, **size) as reader:
            taken = []
            for first in range(0, 6, 2):
                told += moments[first : first + 2]
                taken += reader.take(2)
    assert np.array_equal(np.stack(taken), whole.frames)


def test_errors_of_the_decoder_are_ours(tmp_path: Path, files: dict[str, Path]) -> None:
    data = bytearray(files["even"].read_bytes())
    with open_media(files["even"]) as file:
        reader = file.open_frames(height_px=16, width_px=24)
        reader.close()
        reader.close()
    (tmp_path / "list.m3u8").write_bytes(b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n" + bytes(data[:10]))
    with pytest.raises(MediaError):
        open_media(tmp_path / "list.m3u8")
