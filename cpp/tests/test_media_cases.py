"""Files that are easily read wrongly: the C library beside the Python host, pixel by pixel and notice by notice.

Both are asked at the level of files, without a bundle: the program `read_clip` prints what the C library read. That
the Python host is right is for tests/editverse_rt/media to say. What this library does not read (HEIF pictures of
several parts, animated WebP) it refuses, with advice.
"""

from __future__ import annotations

import os
import struct
import subprocess
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from cpp.tests import library as native
from editverse_rt.errors import MediaError
from editverse_rt.media import open_media

ROOT = Path(__file__).parents[2]
PROGRAM = Path(os.environ.get("EDITVERSE_NATIVE_BUILD", ROOT / "build" / "native")) / "tests" / "read_clip"
pytestmark = pytest.mark.skipif(
    native.load_library().ev_has_media() == 0,
    reason="this library was built without FFmpeg and reads no files",
)

Frames = NDArray[np.uint8]


def pictures(count: int = 9, height: int = 48, width: int = 80) -> Frames:
    t, y, x, c = np.ogrid[:count, :height, :width, :3]
    return np.asarray((x * 3 * (c == 0) + y * 5 * (c == 1) + (t * 20 + x) * (c == 2)) % 256, np.uint8)


def encode(path: Path, frames: Frames, codec: str, pixel_format: str, **tags: Any) -> Path:
    """Write a video. tags: attributes of the stream's encoder; times_ms: of the frames; options: of the encoder."""
    times_ms, options = tags.pop("times_ms", None), tags.pop("options", {})
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixel_format
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for k, picture in enumerate(frames):
            frame: Any = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(format=pixel_format)
            frame.pts = k if times_ms is None else times_ms[k]
            frame.time_base = Fraction(1, 10 if times_ms is None else 1000)
            for name, value in tags.items():
                if name.startswith("color"):
                    setattr(frame, name, value)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


P3 = (0.5151, 0.2412, -0.0011, 0.2919, 0.6922, 0.0419, 0.1571, 0.0666, 0.7841)
ADOBE = (0.6097, 0.3111, 0.0195, 0.2053, 0.6257, 0.0609, 0.1492, 0.0632, 0.7446)


def icc(colorants: tuple[float, ...]) -> bytes:
    """An ICC profile of RGB with nothing but its primaries (ICC.1:2010, sections 7 and 10.27)."""
    tags = b"".join(
        struct.pack(">4sII", name, 168 + 20 * k, 20) for k, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))
    )
    values = [
        struct.pack(">4s4x3i", b"XYZ ", *(round(v * 65536) for v in colorants[k : k + 3])) for k in (0, 3, 6)
    ]
    head = struct.pack(">I12x4s4s12x4s", 228, b"RGB ", b"XYZ ", b"acsp").ljust(128, b"\0")
    return head + struct.pack(">I", 3) + tags + b"".join(values)


def png(
    path: Path, width: int, height: int, orientation: int = 0, profile: tuple[float, ...] | None = None
) -> Path:
    """A PNG of one colour, as small as zlib makes it: black of one bit a pixel, or with a profile red."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    row = bytes((width + 7) // 8) if profile is None else bytes((200, 60, 20)) * width
    rows = (b"\0" + row) * height
    depth, kind = (1, 0) if profile is None else (8, 2)
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">HHI", orientation, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
        + (chunk(b"eXIf", exif) if orientation else b"")
        + (b"" if profile is None else chunk(b"iCCP", b"name\0\0" + zlib.compress(icc(profile))))
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )
    return path


def jpeg(path: Path, orientation: int = 1) -> Path:
    frame = encode(path.with_suffix(".mjpeg"), pictures(1), "mjpeg", "yuvj420p").read_bytes()
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + struct.pack("<HHI", orientation, 0, 0)
    path.write_bytes(frame[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + frame[2:])
    return path


def cut(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def patterned(folder: Path) -> Path:
    encode(folder / "shot001.png", pictures(1)[:, ::-1].copy(), "png", "rgb24")
    other = encode(folder / "x.png", pictures(1), "png", "rgb24")
    return other.rename(folder / "shot%03d.png")


def percent(folder: Path) -> Path:
    return encode(folder / "x.png", pictures(1), "png", "rgb24").rename(folder / "50% done.png")


def turned_tiff(folder: Path) -> Path:
    """A TIFF with an orientation, and with a tag that nobody reads and that lies behind the end of the file."""
    path = encode(folder / "a.tiff", pictures(1), "tiff", "rgb24")
    data = path.read_bytes()
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    entries = [data[at + 2 + 12 * k : at + 14 + 12 * k] for k in range(count)]
    entries += [struct.pack("<HHII", 0x0112, 3, 1, 6), struct.pack("<HHII", 50_000, 4, 1000, 10**6)]
    entries.sort(key=lambda entry: int.from_bytes(entry[:2], "little"))
    head = data[:4] + struct.pack("<I", len(data)) + data[8:]
    path.write_bytes(head + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4))
    return path


LATE_MS = [10_000 + 100 * k for k in range(9)]
UNEVEN_MS = [0, 40, 80, 500, 540, 1500, 1540, 1580, 2000]
READ: dict[str, Callable[[Path], Path]] = {
    "a pattern in a name": patterned,
    "a percent sign in a name": percent,
    "another suffix": lambda f: encode(f / "x.mp4", pictures(), "libx264", "yuv420p").rename(f / "x.png"),
    "uneven times": lambda f: encode(f / "a.mp4", pictures(), "libx264", "yuv420p", times_ms=UNEVEN_MS),
    "uneven webm": lambda f: encode(f / "a.webm", pictures(), "libvpx-vp9", "yuv420p", times_ms=UNEVEN_MS),
    "an elementary stream": lambda f: encode(f / "a.h264", pictures(), "libx264", "yuv420p"),
    "a program stream": lambda f: encode(f / "a.mpg", pictures(), "mpeg2video", "yuv420p", framerate=25),
    "avi with B frames": lambda f: encode(f / "a.avi", pictures(), "libx264", "yuv420p", options={"bf": "2"}),
    "grey of limited range": lambda f: encode(f / "a.mkv", pictures(), "libx264", "gray", color_range=1),
    "grey of a range that is not said": lambda f: encode(f / "a.mkv", pictures(), "libx264", "gray"),
    "grey of 10 bits": lambda f: encode(f / "a.mkv", pictures(), "libx264", "gray10le", color_range=1),
    "a P3 profile": lambda f: png(f / "a.png", 40, 16, profile=P3),
    "another profile": lambda f: png(f / "a.png", 40, 16, profile=ADOBE),
    "full range": lambda f: encode(f / "a.mkv", pictures(), "libx264", "yuv420p", color_range=2),
    "PQ": lambda f: encode(
        f / "a.mkv", pictures(), "libx264", "yuv420p10le", color_trc=16, color_primaries=9
    ),
    "HLG": lambda f: encode(
        f / "a.mkv", pictures(), "libx264", "yuv420p10le", color_trc=18, color_primaries=9
    ),
    "P3": lambda f: encode(f / "a.mkv", pictures(), "libx264", "yuv420p", color_primaries=12),
    "interlaced": lambda f: encode(
        f / "a.mp4",
        pictures(),
        "libx264",
        "yuv420p",
        options={"flags": "+ildct+ilme", "x264-params": "tff=1"},
    ),
    "a JPEG cut short": lambda f: cut(jpeg(f / "a.jpg"), 0.6),
    "a video cut short": lambda f: cut(encode(f / "a.mkv", pictures(40), "libx264", "yuv420p"), 0.5),
    "a Matroska that begins late": lambda f: encode(
        f / "a.mkv", pictures(), "libx264", "yuv420p", times_ms=LATE_MS
    ),
    "transparency": lambda f: encode(f / "a.mkv", pictures(), "ffv1", "yuva420p"),
    "transparency from 720 lines on": lambda f: encode(
        f / "a.mkv", pictures(5, 720, 960), "ffv1", "yuva420p"
    ),
    "an animated GIF": lambda f: encode(f / "a.gif", pictures(), "gif", "rgb8"),
    **{
        f"JPEG orientation {turn}": lambda f, turn=turn: jpeg(f / "a.jpg", turn)  # type: ignore[misc]
        for turn in range(1, 9)
    },
    "PNG orientation": lambda f: png(f / "a.png", 40, 16, 6),
    "TIFF": lambda f: encode(f / "a.tiff", pictures(1), "tiff", "rgb24"),
    "TIFF orientation": turned_tiff,
    "BMP": lambda f: encode(f / "a.bmp", pictures(1), "bmp", "bgr24"),
}
SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"height_px": 32, "width_px": 64, "start_s": 0.35, "num_frames": 4},
    {"height_px": 32, "width_px": 64, "fps": 7.0, "num_frames": 7},
]


def run(path: Path, sampling: dict[str, Any]) -> subprocess.CompletedProcess[bytes]:
    names = ("num_frames", "height_px", "width_px", "start_s", "fps")
    settings = {"num_frames": 64, **sampling}
    command = [str(PROGRAM), str(path), *(str(settings.get(name, 0)) for name in names)]
    return subprocess.run(command, capture_output=True, timeout=60)


@pytest.mark.parametrize("name", READ)
def test_both_hosts_read_the_same(tmp_path: Path, name: str) -> None:
    path = READ[name](tmp_path)
    for sampling in SAMPLINGS:
        done = run(path, sampling)
        assert done.returncode == 0, done.stdout[-300:]
        head, _, data = done.stdout.partition(b"\n\n")
        about, taken, *notices = head.decode().split("\n")
        with open_media(path) as media:
            info = media.info
            size = {"height_px": info.height_px, "width_px": info.width_px}
            clip = media.read_clip(**{"num_frames": 64, **size, **sampling})
        assert about.split()[:3] == [info.kind, str(info.width_px), str(info.height_px)]
        assert float(about.split()[3]) == (info.fps or 0)
        count, fps, covers, damaged = taken.split()
        assert (int(count), float(fps)) == (len(clip.frames), clip.fps)
        assert (bool(int(covers)), int(damaged)) == (clip.covers_source, clip.num_damaged)
        assert tuple(notices) == clip.notices
        found = np.frombuffer(data, np.uint8).reshape(clip.frames.shape)
        assert np.abs(found.astype(int) - clip.frames).max() == 0


def large_jpeg(folder: Path) -> Path:
    data = jpeg(folder / "a.jpg").read_bytes()
    at = data.index(b"\xff\xc0") + 5
    (folder / "a.jpg").write_bytes(data[:at] + struct.pack(">HH", 12000, 12000) + data[at + 4 :])
    return folder / "a.jpg"


def text(path: Path, words: str) -> Path:
    path.write_text(words, "utf-8")
    return path


def other_file(folder: Path) -> str:
    return encode(folder / "other.ts", pictures(), "libx264", "yuv420p").name


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a PNG bomb": (lambda f: png(f / "a.png", 11000, 11000), "found frames of 11000x11000"),
    "a PNG that is very wide": (lambda f: png(f / "a.png", 2**27, 1), "found frames of"),
    "a JPEG bomb": (large_jpeg, "found frames of 12000x12000"),
    "a playlist": (
        lambda f: text(f / "a.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other_file(f)}\n"),
        "list of other files",
    ),
    "a playlist of another name": (
        lambda f: text(f / "a.mp4", f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other_file(f)}\n"),
        "list of other files",
    ),
    "a list for FFmpeg": (
        lambda f: text(f / "a.mp4", f"ffconcat version 1.0\nfile {other_file(f)}\n"),
        "list of other files",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_both_hosts_refuse_before_they_decode(tmp_path: Path, name: str) -> None:
    make, words = REFUSED[name]
    path = make(tmp_path)
    with pytest.raises(MediaError) as refused:
        open_media(path)
    done = run(path, {})
    assert done.returncode == 1
    assert words in done.stdout.decode()
    assert done.stdout.decode().strip() == str(refused.value)


def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    """121 million pixels in a file of some kilobytes; with 200 MB of address space more than the program has."""
    path = png(tmp_path / "a.png", 11000, 11000)
    limited = [
        "bash",
        "-c",
        'ulimit -v 700000; exec "$@"',
        "-",
        str(PROGRAM),
        str(path),
        *["1", "0", "0", "0", "0"],
    ]
    done = subprocess.run(limited, capture_output=True, timeout=60)
    assert b"found frames of 11000x11000" in done.stdout


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        (b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\x0f\0\0\x0f\0\0", "convert it to GIF or MP4"),
        (
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic\0\0\0\x18meta\0\0\0\0irot\0\0\0\0",
            "convert it to PNG or JPEG",
        ),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), "convert it to PNG or JPEG"),
    ],
)
def test_what_is_not_read_here_is_refused_with_advice(tmp_path: Path, data: bytes, advice: str) -> None:
    (tmp_path / "a.webp").write_bytes(data)
    done = run(tmp_path / "a.webp", {})
    assert done.returncode == 1
    assert advice in done.stdout.decode()
