"""Sound that is carried over, and sound that cannot be."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from media_samples import audio_packets, empty_file, encode, grey_frames, names, no_file, real_clip, text_file

from editverse_rt.errors import MediaError
from editverse_rt.media import open_media, probe, write_clip
from editverse_rt.media import sound as sound_module


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


def encode_sound(
    path: Path, codec: str, *, rate: int = 48_000, delay_s: float = 0.0, count: int = 25
) -> Path:
    """A video of `count` frames at 25 fps beside a tone."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        audio = container.add_stream(codec, rate=rate, layout="mono", options={"strict": "-2"})
        for number, picture in enumerate(grey_frames(min(count, 25)).repeat(-(-count // 25), axis=0)[:count]):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        size = audio.codec_context.frame_size or 1024
        form = audio.codec_context.format.name
        resampler = av.AudioResampler(format=form, layout="mono", rate=rate)
        wave = (8000 * np.sin(np.arange(rate * count // 25) * 0.13)).astype(np.int16)
        for start in range(0, len(wave) - size, size):
            block = av.AudioFrame.from_ndarray(wave[None, start : start + size], format="s16", layout="mono")
            block.sample_rate, block.time_base = rate, Fraction(1, rate)
            block.pts = start + round(delay_s * rate)
            for part in resampler.resample(block):
                container.mux(audio.encode(part))
        container.mux(audio.encode(None))
    return path


@pytest.mark.parametrize("codec", ["libopus", "flac", "ac3", "pcm_s16le", "libmp3lame", "alac", "aac"])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_sound_goes_along_or_is_left_out_with_a_notice(tmp_path: Path, codec: str, suffix: str) -> None:
    """Whatever the container thinks of the sound, the video is written."""
    path = encode_sound(tmp_path / "in.mkv", codec)
    report = write_clip(tmp_path / f"out{suffix}", grey_frames(25), 25.0, audio_from=path)
    assert probe(tmp_path / f"out{suffix}").num_frames in (25, None)
    has_audio = probe(tmp_path / f"out{suffix}").has_audio
    assert has_audio == (report.notices == ())
    if suffix == ".mkv":
        assert has_audio
    if has_audio:
        assert [d for d, _ in audio_packets(tmp_path / f"out{suffix}")] == [d for d, _ in audio_packets(path)]
    else:
        assert f"write {'.mp4' if codec == 'aac' else '.mkv'} to keep it" in report.notices[0]


def test_sound_in_memory_outlives_its_file_and_is_written_twice(tmp_path: Path) -> None:
    path = encode_sound(tmp_path / "in.mkv", "flac")
    before = audio_packets(path)
    with open_media(path) as file:
        sound = file.read_sound()
    path.unlink()
    assert sound is not None
    for name in ("one.mkv", "two.mkv"):
        assert write_clip(tmp_path / name, grey_frames(25), 25.0, audio_from=sound).notices == ()
        assert audio_packets(tmp_path / name) == before


def test_a_failed_writing_does_not_hold_up_the_next(tmp_path: Path) -> None:
    """The traceback of what failed is kept, and with it all that the failed writing had open."""
    with open_media(encode_sound(tmp_path / "in.mkv", "flac")) as file:
        sound = file.read_sound()

    def breaks_off() -> Iterator[np.ndarray]:
        yield from grey_frames(20)
        raise OSError(27, "File too large")

    with pytest.raises(MediaError, match="File too large") as caught:
        write_clip(tmp_path / "one.mkv", breaks_off(), 25.0, audio_from=sound)
    writer = threading.Thread(
        target=write_clip,
        args=(tmp_path / "two.mkv", grey_frames(25), 25.0),
        kwargs={"audio_from": sound},
        daemon=True,
    )
    writer.start()
    writer.join(30)
    assert not writer.is_alive()
    assert audio_packets(tmp_path / "two.mkv") == audio_packets(tmp_path / "in.mkv")
    assert caught.value.code == "media.unwritable"
    assert names(tmp_path) == ["in.mkv", "two.mkv"]


def test_one_sound_in_two_files_that_are_written_in_turns(tmp_path: Path) -> None:
    with open_media(encode_sound(tmp_path / "in.mkv", "flac")) as file:
        sound = file.read_sound()

    def writes_another(count: int) -> Iterator[np.ndarray]:
        for number, frame in enumerate(grey_frames(25)):
            if number == count:
                write_clip(tmp_path / "inner.mkv", grey_frames(25), 25.0, audio_from=sound)
            yield frame

    write_clip(tmp_path / "outer.mkv", writes_another(15), 25.0, audio_from=sound)
    for name in ("inner.mkv", "outer.mkv"):
        assert audio_packets(tmp_path / name) == audio_packets(tmp_path / "in.mkv")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_that_begins_later_stays_in_step(tmp_path: Path, suffix: str) -> None:
    path = encode_sound(tmp_path / "in.mkv", "ac3", delay_s=0.32)
    write_clip(tmp_path / f"out{suffix}", grey_frames(25), 25.0, audio_from=path)
    before, after = audio_packets(path), audio_packets(tmp_path / f"out{suffix}")
    assert after[3][1] == pytest.approx(before[3][1], abs=0.002)


def test_sound_without_end_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode_sound(tmp_path / "in.mkv", "flac")
    monkeypatch.setattr(sound_module, "MAX_SOUND_BYTES", 1000)
    with open_media(path) as file, pytest.raises(MediaError, match="more than 1000 bytes of audio") as caught:
        file.read_sound()
    assert caught.value.code == "media.sound"


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_whose_times_go_back_does_not_lose_the_video(tmp_path: Path, suffix: str) -> None:
    path = encode_sound(tmp_path / "in.mkv", "ac3")
    with open_media(path) as file:
        sound = file.read_sound()
    assert sound is not None
    sound._packets[5:8] = [(p, pts - 500, dts - 500, d, base) for p, pts, dts, d, base in sound._packets[5:8]]
    report = write_clip(tmp_path / f"out{suffix}", grey_frames(25), 25.0, audio_from=sound)
    assert "the rest of the source's audio was left out" in report.notices[0]
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        assert len(list(container.decode(video=0))) == 25
    assert 0 < len(audio_packets(tmp_path / f"out{suffix}")) < len(sound._packets)


def test_the_default_stream_of_sound(tmp_path: Path) -> None:
    one, two = encode_sound(tmp_path / "1.mkv", "flac"), encode_sound(tmp_path / "2.mkv", "ac3")
    with (
        av.open(str(one)) as first,
        av.open(str(two)) as second,
        av.open(str(tmp_path / "in.mkv"), "w") as target,
    ):
        pairs = [
            (first, first.streams.video[0]), (first, first.streams.audio[0]), (second, second.streams.audio[0]),
        ]  # fmt: skip
        copies = [target.add_stream_from_template(stream) for _, stream in pairs]
        for copy, is_default in zip(copies, (True, False, True), strict=True):
            copy.disposition = Disposition.default if is_default else Disposition(0)
        for (_, stream), copy in zip(pairs, copies, strict=True):
            stream.container.seek(0)
            for packet in stream.container.demux(stream):
                if packet.size:
                    packet.stream = copy
                    target.mux(packet)
    with open_media(tmp_path / "in.mkv") as file:
        sound = file.read_sound()
    assert sound is not None
    assert sound.codec_name == "ac3"
