"""Videos and images by their paths, and frames that have to be resized: the C library beside the Python host.

The two hosts have FFmpeg of different versions, whose decoders and scalers are asked for exact results; that
they agree byte by byte is what is tested.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cpp.tests import library as native
from editverse_rt import Pipeline
from editverse_rt.errors import EditVerseError
from editverse_rt.media import write_clip, write_image

ROOT = Path(__file__).parents[2]
HAS_MEDIA = native.load_library().ev_has_media() == 1


def clip(num_frames: int, height: int, width: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(num_frames)
    t, y, x = np.ogrid[:num_frames, :height, :width]
    disc = (y - height / 2) ** 2 + (x - width * (0.3 + 0.02 * t)) ** 2 < (height / 4) ** 2
    frames = np.stack([np.where(disc, 220, 2 * x + 0 * t), np.where(disc, 30, 3 * y), 80 + 0 * disc], axis=-1)
    return np.asarray(np.clip(frames + rng.normal(0, 6, frames.shape), 0, 255), dtype=np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_clip(folder / "odd.mp4", clip(12, 67, 101), 24.0)
    write_clip(folder / "large.webm", clip(20, 120, 200), 30.0)
    write_clip(folder / "palette.gif", clip(9, 48, 80), 10.0)
    write_image(folder / "picture.png", clip(1, 77, 99)[0])
    write_image(folder / "picture.jpg", clip(1, 200, 300)[0])
    (folder / "text.mp4").write_bytes(b"no video at all\n" * 50)
    (folder / "cut.mp4").write_bytes((folder / "odd.mp4").read_bytes()[:600])
    (folder / "empty.mp4").touch()
    return folder


REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "sample": ("<video1> Make it night", {"video1": "SAMPLE", "num_frames": 5}),
    "odd": ("<video1> Make it night", {"video1": "odd.mp4", "num_frames": 5}),
    "by time": ("<video1> Blur", {"video1": "odd.mp4", "num_frames": 5, "start_s": 0.1, "fps": 12.0}),
    "from the middle": ("<video1> Blur", {"video1": "large.webm", "num_frames": 5, "start_s": 0.3}),
    "palette": ("<video1> Blur", {"video1": "palette.gif", "num_frames": 5}),
    "png": ("<image1> Blur", {"image1": "picture.png"}),
    "jpeg": ("<image1> Blur", {"image1": "picture.jpg"}),
    "both": ("<video1> Insert <image1>", {"video1": "large.webm", "image1": "picture.jpg", "num_frames": 5}),
    "two rates": ("<video1> as <video2>", {"video1": "odd.mp4", "video2": "large.webm", "num_frames": 5}),
    "odd frames": ("<video1> Make it night", {"video1": clip(5, 67, 101)}),
    "large frames": ("<video1> Make it night", {"video1": clip(5, 167, 301)}),
}


def settings_of(files: Path, settings: dict[str, Any]) -> dict[str, Any]:
    def place(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return ROOT / "examples" / "sample.mp4" if value == "SAMPLE" else files / value

    return {"num_inference_steps": 1, **{name: place(value) for name, value in settings.items()}}


@pytest.mark.parametrize("name", REQUESTS)
def test_the_same_bytes(name: str, host: Pipeline, twin: Any, files: Path) -> None:
    prompt, settings = REQUESTS[name]
    settings = settings_of(files, settings)
    if not HAS_MEDIA:
        # A build without FFmpeg says so.
        with pytest.raises(native.LibraryError, match="FFmpeg") as refused:
            twin.run(prompt, **settings)
        assert refused.value.name == "MediaError"
        return
    expected = host(prompt, **settings)
    info, _ = twin.describe(prompt, **settings)
    frames, fps, notices = twin.run(prompt, **settings)
    assert np.array_equal(frames, expected.frames)
    assert fps == expected.fps
    assert notices == [line.removesuffix(" (--start, --frames, --fps)") for line in expected.notices]
    assert (info.result.height_px, info.result.width_px) == frames.shape[1:3]
    assert info.result.num_frames >= len(frames)


@pytest.mark.parametrize("name", ["missing.mp4", "text.mp4", "cut.mp4", "empty.mp4", "."])
def test_the_same_errors(name: str, host: Pipeline, twin: Any, files: Path) -> None:
    with pytest.raises(EditVerseError) as expected:
        host("<video1> x", video1=files / name)
    with pytest.raises(native.LibraryError) as found:
        twin.run("<video1> x", video1=files / name)
    assert found.value.name == type(expected.value).__name__ == "MediaError"
