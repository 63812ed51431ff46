"""Reading of clips: sizes, starts, arrays, real files, bad input."""

from __future__ import annotations

import ctypes
import gc
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from media_samples import corners, empty_file, encode, grey_frames, no_file, numbers, real_clip, text_file

from editverse_rt.errors import MediaError
from editverse_rt.media import (
    IMAGE_SUFFIXES,
    clip_from_array,
    probe,
    read_clip,
    write_clip,
    write_image,
)


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


def a_folder(folder: Path) -> Path:
    return folder


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


class MallocInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc 2.33 and newer; uordblks: bytes that are in use."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
        )
    ]  # fmt: skip


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="only glibc says how much of the heap is in use",
)
def test_looking_at_many_files_keeps_no_memory(tmp_path: Path) -> None:
    """A packet that PyAV's demuxer does not free is 150 bytes."""
    path = encode(tmp_path / "in.mkv", grey_frames(2))
    info = ctypes.CDLL(None).mallinfo2
    info.restype = MallocInfo
    for _ in range(50):
        probe(path)
    gc.collect()
    before = info().uordblks
    for _ in range(300):
        probe(path)
    gc.collect()
    assert info().uordblks - before < 300 * 50
