"""Sound that is carried over, and sound that cannot be."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
from media_samples import audio_packets, empty_file, encode, grey_frames, names, no_file, real_clip, text_file

from editverse_rt.errors import MediaError
from editverse_rt.media import probe, write_clip


@pytest.mark.parametrize("made_by", [text_file, no_file, empty_file])
@pytest.mark.parametrize("name", ["out.mp4", "out.png"])
def test_audio_from_a_bad_file_is_refused(tmp_path: Path, made_by, name: str) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(MediaError, match=r"audio cannot be read|no such file|empty"):
        write_clip(tmp_path / "out" / name, grey_frames(1), 25.0, audio_from=made_by(tmp_path))
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize("source", ["generated.mp4", "generated.mkv", "bigbuckbunny.mp4"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_audio_is_carried_over_bit_for_bit(tmp_path: Path, source: str, suffix: str) -> None:
    if source.startswith("generated"):
        path = encode(tmp_path / source, grey_frames(25), sine_s=1.0)
    else:
        path = real_clip(source)
    num_frames = probe(path).num_frames or 25
    report = write_clip(
        tmp_path / f"out{suffix}", grey_frames(1).repeat(num_frames, axis=0), 25.0, audio_from=path
    )
    assert report.notices == ()
    before, after = audio_packets(path), audio_packets(tmp_path / f"out{suffix}")
    assert [data for data, _ in after] == [data for data, _ in before]
    shift = after[5][1] - before[5][1]
    assert abs(shift) < 0.07  # containers differ in how they note the encoder's delay
    assert [t for _, t in after] == pytest.approx([t + shift for _, t in before], abs=0.0015)
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        decoded = sum(frame.samples for frame in container.decode(audio=0))
    assert decoded > 0


@pytest.mark.parametrize("name", ["out.webm", "out.gif", "out.png"])
def test_audio_that_finds_no_room_is_said(tmp_path: Path, name: str) -> None:
    path = encode(tmp_path / "in.mp4", grey_frames(5), sine_s=0.2)
    report = write_clip(tmp_path / name, grey_frames(1), 25.0, audio_from=path)
    assert "audio" in report.notices[0]
    assert ".mp4" in report.notices[0]
    silent = encode(tmp_path / "silent.mp4", grey_frames(5))
    assert write_clip(tmp_path / name, grey_frames(1), 25.0, audio_from=silent).notices == ()
