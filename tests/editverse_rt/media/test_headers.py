"""What the first bytes of a file say, against files written by FFmpeg's encoders."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from media_samples import encode, exif_jpeg, grey_frames, patchwork, worst

from editverse_rt.errors import MediaError
from editverse_rt.media import decoding, headers, probe, read_clip, write_clip, write_image
from editverse_rt.media.headers import examine, is_list, is_picture_type
from editverse_rt.media.libav import MAX_SOURCE_AREA_PX


def written(folder: Path, suffix: str) -> bytes:
    path = folder / f"in{suffix}"
    if suffix in (".bmp", ".tif"):
        encode(path, patchwork()[None], codec={".bmp": "bmp", ".tif": "tiff"}[suffix], pixel_format="bgr24"
               if suffix == ".bmp" else "rgb24")  # fmt: skip
    elif suffix == ".gif":
        write_clip(path, patchwork()[None], 10.0)
    else:
        write_image(path, patchwork())
    return path.read_bytes()


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        (".png", "png"),
        (".jpg", "jpeg"),
        (".webp", "webp"),
        (".gif", "gif"),
        (".bmp", "bmp"),
        (".tif", "tiff"),
    ],
)
def test_type_size_and_end_of_pictures(tmp_path: Path, suffix: str, kind: str) -> None:
    data = written(tmp_path, suffix)
    header = examine(data)
    assert is_picture_type(data[:256])
    assert (header.kind, header.width_px, header.height_px) == (kind, 160, 96)
    assert (header.is_cut, header.is_animated, header.orientation) == (False, False, 1)
    assert examine(data[: len(data) // 2]).is_cut


def test_animations_are_no_pictures(tmp_path: Path) -> None:
    write_clip(tmp_path / "in.gif", grey_frames(3), 10.0)
    encode(tmp_path / "in.apng", grey_frames(3), codec="apng", pixel_format="rgb24", rate=10)
    for name in ("in.gif", "in.apng"):
        header = examine((tmp_path / name).read_bytes())
        assert header.is_animated
        assert not header.is_picture


def tiff_block(orientation: int, order: str = "<") -> bytes:
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_orientation_in_every_format_that_has_it(tmp_path: Path, orientation: int, order: str) -> None:
    exif = tiff_block(orientation, order)
    png = written(tmp_path, ".png")
    assert examine(png[:33] + png_chunk(b"eXIf", exif) + png[33:]).orientation == orientation
    webp = written(tmp_path, ".webp")
    chunk = b"EXIF" + struct.pack("<I", len(exif)) + exif
    body = webp[12:] + chunk
    assert examine(b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body).orientation == orientation
    jpeg = exif_jpeg(tmp_path / "in.jpg", patchwork(), orientation, "little" if order == "<" else "big")
    assert examine(jpeg.read_bytes()).orientation == orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_by_its_own_tag(tmp_path: Path, orientation: int) -> None:
    pixels = patchwork().tobytes()
    entries = [
        (0x100, 4, 1, 160), (0x101, 4, 1, 96), (0x102, 3, 1, 8), (0x103, 3, 1, 1), (0x106, 3, 1, 2),
        (0x111, 4, 1, 8), (0x112, 3, 1, orientation), (0x115, 3, 1, 3), (0x116, 4, 1, 96),
        (0x117, 4, 1, len(pixels)),
    ]  # fmt: skip
    directory = (
        struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *e) for e in entries) + bytes(4)
    )
    (tmp_path / "in.tif").write_bytes(b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory)
    turned = [
        lambda a: a, lambda a: a[:, ::-1], lambda a: a[::-1, ::-1], lambda a: a[::-1],
        lambda a: a.swapaxes(0, 1), lambda a: np.rot90(a, -1), lambda a: a[::-1, ::-1].swapaxes(0, 1),
        lambda a: np.rot90(a),
    ][orientation - 1]  # fmt: skip
    expected = turned(patchwork())
    info = probe(tmp_path / "in.tif")
    assert (info.height_px, info.width_px) == expected.shape[:2]
    clip = read_clip(tmp_path / "in.tif", num_frames=1, height_px=info.height_px, width_px=info.width_px)
    assert (clip.frames[0] == expected).all()


def long_directory(tags: Iterable[int]) -> bytes:
    """A TIFF of nothing but a directory: entries of 65,536 long values each, which all lie in the same place."""
    codes = list(tags)
    begin = 10 + 12 * len(codes)
    entries = b"".join(struct.pack("<HHII", code, 4, 1 << 16, begin) for code in codes)
    return struct.pack("<4sIH", b"II*\0", 8, len(codes)) + entries + b"\1" * (4 << 16)


@pytest.mark.parametrize("tags", [range(0x8000, 0x8100), [0x0111] * 256], ids=["others", "again"])
def test_a_long_directory_takes_no_memory(monkeypatch: pytest.MonkeyPatch, tags: Iterable[int]) -> None:
    """Values of tags that are not read are not kept, and those of a tag that comes again are read once."""
    data = long_directory(tags)
    png = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">II5x", 80, 48)) + png_chunk(b"eXIf", data)
    num_values = 0

    def unpack_from(form: str, data: bytes, offset: int = 0) -> tuple[Any, ...]:
        nonlocal num_values
        values = struct.unpack_from(form, data, offset)
        num_values += len(values)
        return values

    monkeypatch.setattr(headers, "struct", SimpleNamespace(unpack_from=unpack_from, error=struct.error))
    for whole, kind in ((data, "tiff"), (png, "png")):
        num_values = 0
        tracemalloc.start()
        try:
            header = examine(whole)
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert (header.kind, header.orientation) == (kind, 1)
        assert num_values < 1 << 17
        assert peak_bytes < 16 << 20


def test_what_is_said_of_other_tags_does_not_matter(tmp_path: Path) -> None:
    """A tag that is not read may lie outside of the file; an ICC profile may have any type."""
    data = written(tmp_path, ".tif")
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    entries = data[at + 2 : at + 2 + 12 * count] + struct.pack("<HHII", 0x8773, 3, 2, 0xFFFFFFFF)
    entries += struct.pack("<HHII", 50_000, 4, 1000, 10**6)
    moved = data + struct.pack("<H", count + 2) + entries + bytes(4)
    header = examine(moved[:4] + struct.pack("<I", len(data)) + moved[8:])
    assert (header.kind, header.width_px, header.height_px, header.is_cut) == ("tiff", 160, 96, False)


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR", "png"),
        (b"GIF89a\1", "gif"),
        (b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0", "webp"),
        (b"BM\0\0", "bmp"),
        (b"II*\0\x08\0\0\0\2\0", "tiff"),
        (b"\0\0\1\0\2\0", "ico"),
    ],
)
def test_a_header_that_runs_past_the_end_keeps_its_kind(start: bytes, kind: str) -> None:
    assert (examine(start).kind, examine(start).is_cut) == (kind, True)


def test_an_icon_of_a_hundred_pictures_is_none() -> None:
    assert examine(b"\0\0\1\0\x64\0").kind == "container"


def test_words_in_other_segments_are_no_orientation(tmp_path: Path) -> None:
    """A comment that holds an EXIF block's bytes is a comment."""
    path = tmp_path / "in.jpg"
    write_image(path, patchwork())
    data = path.read_bytes()
    comment = b"Exif\0\0" + tiff_block(6)
    path.write_bytes(data[:2] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + data[2:])
    assert examine(path.read_bytes()).orientation == 1
    assert probe(path).width_px == 160


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_picture(tmp_path: Path) -> None:
    path = exif_jpeg(tmp_path / "in.jpg", patchwork(), 1, "big")
    data = path.read_bytes()
    thumbnail = b"\xff\xd8\xff\xd9"
    data = data[:2] + b"\xff\xe2" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + data[2:]
    assert not examine(data).is_cut
    assert examine(data[:-300]).is_cut


@pytest.mark.parametrize("suffix", [".jpg", ".gif"])
def test_a_cut_picture_is_noticed_or_refused(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (96, 160, 3), dtype=np.uint8)
    path = tmp_path / f"in{suffix}"
    write_clip(path, picture[None], 10.0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    try:
        clip = read_clip(path, num_frames=1, height_px=96, width_px=160)
    except MediaError:
        return
    assert clip.num_damaged
    assert "ends before its picture" in clip.notices[0]


def bomb(side: int) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(100_000), 9)
    chunks = [png_chunk(b"IHDR", header), png_chunk(b"IDAT", body), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("make", ["png", "gif", "bmp", "webp"])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: str) -> None:
    data = {
        "png": bomb(11_000),
        "gif": b"GIF89a" + struct.pack("<HHBBB", 60_000, 60_000, 0, 0, 0) + b"\x3b",
        "bmp": b"BM" + struct.pack("<IHHIIiiHHI", 54, 0, 0, 54, 40, 30_000, 30_000, 1, 24, 1) + bytes(20),
        "webp": b"RIFF"
        + struct.pack("<I", 22)
        + b"WEBPVP8X"
        + struct.pack("<I", 10)
        + bytes(4)
        + b"\xff\x3f\0" * 2,
    }[make]
    (tmp_path / "in").write_bytes(data)
    monkeypatch.setattr(decoding, "open_input", None)  # decoding would fail otherwise
    with pytest.raises(MediaError, match=f"expected {MAX_SOURCE_AREA_PX} pixels or fewer") as caught:
        probe(tmp_path / "in")
    assert caught.value.code == "media.too_large"


def test_a_video_that_states_huge_frames_is_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "in.mkv", grey_frames(1, 64, 64), codec="ffv1", pixel_format="yuv420p")
    data = path.read_bytes()
    # PixelWidth and PixelHeight, elements B0 and BA of one byte each, become 2 bytes with the same length.
    for element in (b"\xb0\x81\x40", b"\xba\x81\x40"):
        assert element in data
    grown = data.replace(b"\xb0\x81\x40", b"\xb0\x81\xff").replace(b"\xba\x81\x40", b"\xba\x81\xff")
    path.write_bytes(grown)
    try:
        info = probe(path)
    except MediaError:
        return
    assert info.width_px * info.height_px <= MAX_SOURCE_AREA_PX


@pytest.mark.parametrize(
    "text", [b"#EXTM3U\n", b"ffconcat version 1.0\n", b"\xef\xbb\xbf#EXTM3U", b" <?xml version"]
)
def test_lists_are_known(text: bytes) -> None:
    assert is_list(text)
    assert not is_picture_type(text)


STARTS = [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\x10\0\0\0WEBP", b"BM", b"II*\0", b"MM\0*",
          b"\0\0\1\0", b"\0\0\0\x18ftypheic"]  # fmt: skip


@given(st.sampled_from(STARTS), st.binary(max_size=300))
@settings(deadline=None, max_examples=300)
def test_any_bytes_give_a_header(start: bytes, rest: bytes) -> None:
    header = examine(start + rest)
    assert 1 <= header.orientation <= 8
    assert header.width_px >= 0
    assert header.height_px >= 0


@pytest.fixture(scope="module")
def whole_pictures(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("whole")
    return [written(folder, suffix) for suffix in (".png", ".jpg", ".webp", ".gif", ".bmp", ".tif")]


@given(which=st.integers(0, 5), at=st.integers(0, 200), value=st.integers(0, 255), keep=st.floats(0.01, 1))
@settings(deadline=None, max_examples=300)
def test_altered_pictures_give_a_header(
    whole_pictures: list[bytes], which: int, at: int, value: int, keep: float
) -> None:
    data = bytearray(whole_pictures[which])
    data[at % len(data)] = value
    assert 1 <= examine(bytes(data[: int(len(data) * keep)])).orientation <= 8


def icc_profile(colorants: list[float]) -> bytes:
    """A profile of RGB that has primaries and nothing else."""
    values = [struct.pack(">i", round(value * 65536)) for value in colorants]
    tags, body = b"", b""
    for number, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ")):
        tags += name + struct.pack(">II", 132 + 36 + len(body), 20)
        body += b"XYZ \0\0\0\0" + b"".join(values[3 * number : 3 * number + 3])
    return bytes(16) + b"RGB " + bytes(108) + struct.pack(">I", 3) + tags + body


SRGB = [0.43607, 0.22249, 0.01392, 0.38515, 0.71687, 0.09708, 0.14307, 0.06061, 0.71410]
DISPLAY_P3 = [0.51512, 0.24120, -0.00105, 0.29198, 0.69225, 0.04189, 0.15710, 0.06657, 0.78407]
ADOBE_RGB = [0.60974, 0.31111, 0.01947, 0.20528, 0.62567, 0.06087, 0.14919, 0.06322, 0.74457]


def with_profile(folder: Path, suffix: str, icc: bytes) -> Path:
    data = written(folder, suffix)
    if suffix == ".png":
        data = data[:33] + png_chunk(b"iCCP", b"name\0\0" + zlib.compress(icc)) + data[33:]
    elif suffix == ".jpg":
        body = b"ICC_PROFILE\0\1\1" + icc
        data = data[:2] + b"\xff\xe2" + struct.pack(">H", len(body) + 2) + body + data[2:]
    else:
        sides = (159).to_bytes(3, "little") + (95).to_bytes(3, "little")
        body = b"VP8X" + struct.pack("<I", 10) + b"\x20\0\0\0" + sides
        body += b"ICCP" + struct.pack("<I", len(icc)) + icc + bytes(len(icc) % 2)
        start = data.index(b"VP8L")
        body += data[start:]
        data = b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
    path = folder / f"profile{suffix}"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize(("colorants", "profile"), [(SRGB, ""), (DISPLAY_P3, "p3"), (ADOBE_RGB, "other")])
def test_display_p3_is_mapped_and_other_profiles_are_noticed(
    tmp_path: Path, suffix: str, colorants: list[float], profile: str
) -> None:
    path = with_profile(tmp_path, suffix, icc_profile(colorants))
    assert examine(path.read_bytes()).profile == profile
    clip = read_clip(path, num_frames=1, height_px=96, width_px=160)
    assert len(clip.notices) == (profile == "other")
    if profile != "p3":
        assert worst(clip.frames[0], patchwork()) <= 3
        return
    code = patchwork() / 255.0
    light = np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)
    to_srgb = np.array([[1.22494, -0.22494, 0], [-0.04206, 1.04206, 0], [-0.01964, -0.07864, 1.09827]])
    light = np.clip(light @ to_srgb.T, 0, 1)
    expected = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    assert worst(clip.frames[0], expected) <= 4


def test_a_profile_that_unpacks_to_gigabytes_is_cut(tmp_path: Path) -> None:
    path = with_profile(tmp_path, ".png", bytes(50_000_000))
    assert examine(path.read_bytes()).profile == ""
    assert probe(path).kind == "image"
