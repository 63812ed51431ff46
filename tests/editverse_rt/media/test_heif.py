"""HEIC and AVIF stills: which items make the picture, and how they are put together."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from media_samples import HeifWriter, box, coded_item, full_box, patchwork, size_property, worst

from editverse_rt.errors import MediaError
from editverse_rt.media import probe, read_clip
from editverse_rt.media.heif import parse_heif

NCLX = box(b"colr", b"nclx", struct.pack(">HHHB", 1, 13, 5, 0x80))
ALPHA = full_box(b"auxC", b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0")
TOLERANCE = 6  # of a patch's mean colour, 8 bit, after coding


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[bytes, bytes]]:
    """Coded items, each made once."""
    made: dict[object, tuple[bytes, bytes]] = {}
    folder = tmp_path_factory.mktemp("coded")

    def make(
        picture: np.ndarray, codec: str = "libx265", pixel_format: str = "yuv444p"
    ) -> tuple[bytes, bytes]:
        key = (picture.tobytes(), picture.shape, codec, pixel_format)
        if key not in made:
            made[key] = coded_item(folder, picture, codec, pixel_format)
        return made[key]

    return make


def single(coded, *properties: bytes, codec: str = "libx265") -> bytes:
    kind, record, brand = (b"hvc1", b"hvcC", b"heic") if codec == "libx265" else (b"av01", b"av1C", b"avif")
    configuration, data = coded(patchwork(), codec, "yuv444p" if codec == "libx265" else "yuv420p")
    writer = HeifWriter(brand)
    number = writer.add(kind, data, box(record, configuration), size_property(160, 96), NCLX, *properties)
    return writer.file(number)


def read(path: Path, data: bytes) -> np.ndarray:
    path.write_bytes(data)
    info = probe(path)
    assert info.kind == "image"
    clip = read_clip(path, num_frames=1, height_px=info.height_px, width_px=info.width_px)
    assert clip.notices == ()
    return clip.frames[0]


@pytest.mark.parametrize(
    ("properties", "shown"),
    [
        ([], lambda a: a),
        ([box(b"irot", b"\1")], lambda a: np.rot90(a)),
        ([box(b"irot", b"\2")], lambda a: np.rot90(a, 2)),
        ([box(b"irot", b"\3")], lambda a: np.rot90(a, 3)),
        ([box(b"imir", b"\0")], lambda a: a[::-1]),
        ([box(b"imir", b"\1")], lambda a: a[:, ::-1]),
        ([box(b"irot", b"\1"), box(b"imir", b"\0")], lambda a: np.rot90(a)[::-1]),
        ([box(b"imir", b"\0"), box(b"irot", b"\1")], lambda a: np.rot90(a[::-1])),
        # Width, height, horizontal and vertical offset of the middle, as fractions: the right upper quarter.
        ([box(b"clap", struct.pack(">IIIIiIiI", 80, 1, 48, 1, 40, 1, -24, 1))], lambda a: a[:48, 80:]),
    ],
)
def test_turning_mirroring_and_cropping_in_their_order(tmp_path: Path, coded, properties, shown) -> None:
    expected = shown(patchwork())
    picture = read(tmp_path / "in.heic", single(coded, *properties))
    assert picture.shape == expected.shape
    assert np.abs(picture.astype(int) - expected).mean() <= TOLERANCE


def test_the_type_is_found_in_the_content(tmp_path: Path, coded) -> None:
    assert worst(read(tmp_path / "in.mp4", single(coded)), patchwork()) <= TOLERANCE


def test_avif(tmp_path: Path, coded) -> None:
    assert worst(read(tmp_path / "in.avif", single(coded, codec="libsvtav1")), patchwork()) <= TOLERANCE


@pytest.mark.parametrize(("height", "width"), [(192, 320), (170, 300)])
def test_a_grid_of_tiles_is_one_picture(tmp_path: Path, coded, height: int, width: int) -> None:
    whole = patchwork(192, 320)
    writer = HeifWriter()
    tiles = []
    for row in range(2):
        for column in range(2):
            part = whole[row * 96 : row * 96 + 96, column * 160 : column * 160 + 160]
            configuration, data = coded(np.ascontiguousarray(part))
            tiles.append(writer.add(b"hvc1", data, box(b"hvcC", configuration), size_property(160, 96), NCLX))
    grid = writer.add(
        b"grid", bytes([0, 0, 1, 1]) + struct.pack(">HH", width, height), size_property(width, height)
    )
    writer.refer(b"dimg", grid, *tiles)
    picture = read(tmp_path / "in.heic", writer.file(grid))
    assert picture.shape == (height, width, 3)
    assert np.abs(picture.astype(int) - whole[:height, :width]).mean() <= TOLERANCE


@pytest.mark.parametrize("is_premultiplied", [False, True])
def test_transparency_is_laid_over_white(tmp_path: Path, coded, is_premultiplied: bool) -> None:
    colours, alpha = patchwork(), np.full((96, 160), 255, np.uint8)
    alpha[:, 80:] = 0
    if is_premultiplied:
        colours[:, 80:] = 0
    writer = HeifWriter()
    configuration, data = coded(colours)
    main = writer.add(b"hvc1", data, box(b"hvcC", configuration), size_property(160, 96), NCLX)
    configuration, data = coded(alpha, pixel_format="gray")
    mask = writer.add(b"hvc1", data, box(b"hvcC", configuration), size_property(160, 96), ALPHA)
    writer.refer(b"auxl", mask, main)
    if is_premultiplied:
        writer.refer(b"prem", main, mask)
    expected = patchwork()
    expected[:, 80:] = 255
    assert worst(read(tmp_path / "in.heic", writer.file(main)), expected) <= TOLERANCE


def overlay(coded) -> bytes:
    writer = HeifWriter()
    return writer.file(writer.add(b"iovl", bytes(12), size_property(160, 96)))


def grid_of_too_few(coded) -> bytes:
    writer = HeifWriter()
    configuration, data = coded(patchwork())
    tile = writer.add(b"hvc1", data, box(b"hvcC", configuration), size_property(160, 96))
    grid = writer.add(b"grid", bytes([0, 0, 1, 1]) + struct.pack(">HH", 320, 192))
    writer.refer(b"dimg", grid, tile)
    return writer.file(grid)


def huge_grid(coded) -> bytes:
    writer = HeifWriter()
    configuration, data = coded(patchwork())
    tile = writer.add(b"hvc1", data, box(b"hvcC", configuration), size_property(160, 96))
    grid = writer.add(b"grid", bytes([0, 1, 0, 0]) + struct.pack(">II", 60_000, 60_000))
    writer.refer(b"dimg", grid, tile)
    return writer.file(grid)


@pytest.mark.parametrize(
    ("make", "found", "code"),
    [
        (overlay, "type 'iovl', which is not assembled", "media.unsupported"),
        (grid_of_too_few, "grid of 2x2 tiles with 1", "media.damaged"),
        (huge_grid, "frames of 60000x60000", "media.too_large"),
        (lambda coded: single(coded, box(b"wxyz", b"\0")), "property 'wxyz'", "media.unsupported"),
        (lambda coded: single(coded)[:-40], "ends before its picture", "media.damaged"),
        (lambda coded: single(coded)[:300], "boxes are damaged", "media.damaged"),
        (
            lambda coded: single(coded, box(b"clap", struct.pack(">IIIIiIiI", 900, 1, 48, 1, 0, 1, 0, 1))),
            "leaves the picture",
            "media.damaged",
        ),
    ],
)
def test_what_cannot_be_assembled_is_refused_by_name(
    tmp_path: Path, coded, make, found: str, code: str
) -> None:
    (tmp_path / "in.heic").write_bytes(make(coded))
    with pytest.raises(MediaError, match=found) as caught:
        probe(tmp_path / "in.heic")
    assert caught.value.code == code


@given(at=st.integers(0, 600), value=st.integers(0, 255), length=st.integers(1, 4))
@settings(deadline=None, max_examples=150)
def test_altered_boxes_end_in_a_picture_or_a_media_error(coded, at: int, value: int, length: int) -> None:
    data = bytearray(single(coded, box(b"irot", b"\1")))
    data[at : at + length] = bytes([value]) * length
    try:
        picture = parse_heif(bytes(data), "in.heic")
    except MediaError:
        return
    assert sum(len(tile.data) for tile in picture.tiles) <= 4 * len(data)
