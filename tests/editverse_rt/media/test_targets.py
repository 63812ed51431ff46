"""Names of results, and what is refused before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest
from media_samples import grey_frames, names

from editverse_rt.errors import MediaError
from editverse_rt.media import check_rate, check_target, is_pattern, probe, write_clip
from editverse_rt.media.targets import numbered


@pytest.mark.parametrize("name", ["x_%04d.png", "x_%04d.JPG", "x_%04d.webp"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_pattern_is_filled_in_for_one_frame_too(tmp_path: Path, name: str, count: int) -> None:
    assert write_clip(tmp_path / name, grey_frames(count), 25.0).num_frames == count
    assert names(tmp_path) == [name % number for number in range(1, count + 1)]
    for number in range(1, count + 1):
        assert probe(tmp_path / (name % number)).kind == "image"


@pytest.mark.parametrize(
    ("name", "fifth"),
    [
        ("out_%04d.png", "out_0005.png"),
        ("out_%d.png", "out_5.png"),
        ("%09d.png", "000000005.png"),
        ("100%_%02d.png", "100%_05.png"),
        ("%s%d.png", "%s5.png"),
        ("%-%d.png", "%-5.png"),
        ("a%d", "a5"),
        ("100%.png", None),
        ("50% done.png", None),
        ("50%done.png", None),
        ("%05done.png", None),
        ("%4d.png", None),
        ("%00d.png", None),
        ("%010d.png", None),
        ("%+d.png", None),
        ("%i.png", None),
        ("%d_%d.png", None),
        ("%D.png", None),
        ("%%d.png", "%5.png"),
    ],
)
def test_one_rule_says_what_a_pattern_is(name: str, fifth: str | None) -> None:
    assert is_pattern(name) == (fifth is not None)
    if fifth is not None:
        assert numbered(name, 5) == fifth


@pytest.mark.parametrize("name", ["100%.png", "50% done.png", "50%done.png", "%s.png", "%(a)s.png"])
def test_other_percent_signs_are_written_as_they_stand(tmp_path: Path, name: str) -> None:
    write_clip(tmp_path / name, grey_frames(1), 25.0)
    assert names(tmp_path) == [name]


@pytest.mark.parametrize(
    ("name", "fps", "found", "code"),
    [
        ("-", None, "no file name", "media.type"),
        (".mp4", None, "no file name", "media.type"),
        (".PNG", None, "no file name", "media.type"),
        ("..", None, "no file name", "media.type"),
        ("out.xyz", None, r"found \.xyz", "media.type"),
        ("folder.mp4", None, "is a folder", "media.place"),
        ("full", None, "folder that is not empty", "media.place"),
        ("file", None, "file without a type", "media.place"),
        ("none/out.mp4", None, "nothing can be written", "media.place"),
        ("out.gif", 50.5, "at most 50 in .gif", "media.rate"),
        ("out.mp4", 5000.0, "at most 1000 in .mp4", "media.rate"),
        ("ü" * 140 + ".mp4", None, "name of 284 bytes", "media.place"),
        ("a" * 246 + "_%d.png", None, "name of 257 bytes", "media.place"),
    ],
)
def test_what_cannot_be_written_is_refused_at_once(
    tmp_path: Path, name: str, fps: float | None, found: str, code: str
) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").touch()
    before = names(tmp_path)
    with pytest.raises(MediaError, match=found) as caught:
        check_target(tmp_path / name, fps=fps)
    assert caught.value.code == code
    assert names(tmp_path) == before


@pytest.mark.parametrize("name", ["out.mp4", "new", "out.gif", "out_%04d.png", "a" * 251 + ".mp4", ".hidden"])
def test_what_can_be_written_leaves_no_trace(tmp_path: Path, name: str) -> None:
    check_target(tmp_path / name, fps=50.0)
    assert names(tmp_path) == []
    write_clip(tmp_path / name, grey_frames(1), 25.0)


@pytest.mark.parametrize(
    "name", ["2026-01-01T10:00/out.mp4", "md5:x/out.webm", "10:00/out.png", "a:b/frames"]
)
def test_a_folder_whose_name_has_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """libav takes the first part of such a name for a protocol."""
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir()
    check_target(Path(name))
    write_clip(name, grey_frames(1), 25.0)
    assert Path(name).exists()
    if not Path(name).is_dir():
        assert probe(name).width_px == 64


@pytest.mark.parametrize("fps", [0.0009, 1000.5, float("inf"), float("nan")])
def test_the_rate_of_a_source_that_no_video_can_have(tmp_path: Path, fps: float) -> None:
    for suffix in (".mp4", ".gif"):
        with pytest.raises(
            MediaError, match=f"0.001 to 1000 in {suffix}; choose its rate with fps"
        ) as caught:
            check_rate(tmp_path / f"out{suffix}", fps)
        assert (caught.value.code, caught.value.field) == ("media.rate", "fps")
    for name in ("out.png", "new", "out_%d.jpg"):
        check_rate(tmp_path / name, fps)
    for known in (0.001, 25.0, 1000.0):
        check_rate(tmp_path / "out.gif", known)


def test_a_preview_is_a_picture(tmp_path: Path) -> None:
    check_target(tmp_path / "sheet.png", is_picture=True)
    for name in ("sheet.mp4", "sheet"):
        with pytest.raises(MediaError, match="not a type"):
            check_target(tmp_path / name, is_picture=True)
