"""What the first bytes of a file say, before anything of it is decoded: its type, size, orientation, end.

Only the structure around the compressed data is read. PyAV offers none of this before it decodes: it lists no
side data of a frame where EXIF is among it, and its JPEG decoder fills what is missing with grey.
Sources: JPEG (ITU-T T.81, annex B), PNG (third edition), WebP (RFC 9649), GIF89a, TIFF 6.0, BMP, EXIF 3.0.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "HEAD_BYTES",
    "Header",
    "Profile",
    "examine",
    "is_list",
    "is_picture_type",
    "profile_of",
    "riff_chunks",
]

HEAD_BYTES = 256
"""How many bytes of a file `is_picture_type` takes."""

Profile = Literal["", "p3", "other"]
"""What an ICC profile says of RGB colours: "" none, sRGB or one that is not read; "p3" those of Display P3."""
Kind = Literal["jpeg", "png", "gif", "webp", "bmp", "tiff", "ico", "heif", "container"]

_JPEG_SIZES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PICTURE_STARTS = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"\0\0\1\0"
)  # fmt: skip
_MAX_PROFILE_BYTES = 1 << 20
# Tags of a TIFF's directory, by what is read of them: one number, a list of numbers, bytes.
_WIDTH, _HEIGHT, _ORIENTATION = 0x0100, 0x0101, 0x0112
_STRIP_OFFSETS, _STRIP_SIZES, _TILE_OFFSETS, _TILE_SIZES = 0x0111, 0x0117, 0x0144, 0x0145
_ICC_PROFILE = 0x8773
_TIFF_NUMBERS = {_WIDTH, _HEIGHT, _ORIENTATION}
_TIFF_TAGS = {*_TIFF_NUMBERS, _STRIP_OFFSETS, _STRIP_SIZES, _TILE_OFFSETS, _TILE_SIZES, _ICC_PROFILE}
_MAX_TAG_VALUES = 1 << 16
# Red, green and blue of sRGB and Display P3 as profiles state them: XYZ, adapted to D50.
_COLORANTS: tuple[tuple[Profile, tuple[float, ...]], ...] = (
    ("", (0.4361, 0.2225, 0.0139, 0.3851, 0.7169, 0.0971, 0.1431, 0.0606, 0.7141)),
    ("p3", (0.5151, 0.2412, -0.0011, 0.2919, 0.6922, 0.0419, 0.1571, 0.0666, 0.7841)),
)
_COLORANT_TOLERANCE = 0.004
_HEIF_BRANDS = {b"mif1", b"mif2", b"heic", b"heix", b"heim", b"heis", b"avif", b"miaf"}
_SEQUENCE_BRANDS = {b"msf1", b"hevc", b"hevx", b"hevm", b"hevs", b"avis"}


@dataclass(frozen=True)
class Header:
    """A file's type, and of a picture: its size in pixels as stored (0 where unknown), EXIF orientation 1 to
    8, whether its end is missing, whether it is an animation, its colour profile. A `container` is everything
    else."""

    kind: Kind
    width_px: int = 0
    height_px: int = 0
    orientation: int = 1
    is_cut: bool = False
    is_animated: bool = False
    profile: Profile = ""

    @property
    def is_picture(self) -> bool:
        """Whether the file is one still picture."""
        return self.kind != "container" and not self.is_animated


def is_picture_type(start: bytes) -> bool:
    """Whether the first HEAD_BYTES of a file are those of a picture, or of an animation in such a format.

    Everything else is a container of video, of which the header alone says too little.
    """
    if start[4:8] == b"ftyp":
        return bool(_brands(start) & (_HEIF_BRANDS | _SEQUENCE_BRANDS))
    riff = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    return riff or start.startswith(_PICTURE_STARTS)


def is_list(start: bytes) -> bool:
    """Whether a file that begins like this names other files: a playlist, a list for FFmpeg, a manifest."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    return text.startswith(
        (b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD", b"v=0", b"[playlist]", b"[Reference]")
    )


def _brands(start: bytes) -> set[bytes]:
    length = int.from_bytes(start[:4], "big")
    return {start[at : at + 4] for at in (8, *range(16, min(length, HEAD_BYTES), 4))}


def examine(data: bytes) -> Header:
    """Examine the bytes of a whole file.

    Damage is no error here: what cannot be found keeps its default, and the decoder has its say later.
    """
    start = bytes(data[:16])
    kinds: tuple[tuple[bool, Kind, Callable[[bytes], Header]], ...] = (
        (start.startswith(b"\xff\xd8\xff"), "jpeg", _jpeg),
        (start.startswith(b"\x89PNG\r\n\x1a\n"), "png", _png),
        (start.startswith((b"GIF87a", b"GIF89a")), "gif", _gif),
        (start[:4] == b"RIFF" and start[8:12] == b"WEBP", "webp", _webp),
        (start.startswith(b"BM"), "bmp", _bmp),
        (start.startswith((b"II*\0", b"MM\0*")), "tiff", _tiff),
        (start.startswith(b"\0\0\1\0"), "ico", _ico),
        (start[4:8] == b"ftyp", "container", _heif),
    )
    for is_kind, kind, read in kinds:
        if is_kind:
            try:
                return read(data)
            except (struct.error, IndexError):
                return Header(kind, is_cut=True)
    return Header("container")


def _jpeg(data: bytes) -> Header:
    width = height = 0
    orientation, at, scan = 1, 2, 0
    icc = b""
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            break
        marker = data[at + 1]
        if marker == 0xFF or 0xD0 <= marker <= 0xD8 or marker == 0x01:
            at += 1 if marker == 0xFF else 2
            continue
        if marker == 0xD9:
            break
        (length,) = struct.unpack_from(">H", data, at + 2)
        body = at + 4
        if marker == 0xDA:
            scan = body
            break
        if marker in _JPEG_SIZES:
            height, width = struct.unpack_from(">HH", data, body + 1)
        elif marker == 0xE1 and data[body : body + 6] == b"Exif\0\0":
            orientation = _orientation(bytes(data[body + 6 : at + 2 + length]))
        elif marker == 0xE2 and data[body : body + 12] == b"ICC_PROFILE\0" and len(icc) < _MAX_PROFILE_BYTES:
            icc += data[body + 14 : at + 2 + length]
        at += 2 + length
    is_cut = scan == 0 or data.find(b"\xff\xd9", scan) < 0
    return Header("jpeg", width, height, orientation, is_cut, profile=profile_of(icc))


def _png(data: bytes) -> Header:
    width, height = struct.unpack_from(">II", data, 16)
    orientation, is_animated, is_cut, at = 1, False, True, 8
    icc = b""
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"eXIf":
            orientation = _orientation(bytes(data[at + 8 : at + 8 + length]))
        elif kind == b"iCCP":
            icc = data[at + 8 : at + 8 + length]
        elif kind == b"acTL":
            is_animated = struct.unpack_from(">I", data, at + 8)[0] > 1
        elif kind == b"IEND":
            is_cut = False
            break
        at += 12 + length
    _, _, packed = icc.partition(b"\0")
    return Header("png", width, height, orientation, is_cut, is_animated, profile_of(_inflated(packed[1:])))


def _gif(data: bytes) -> Header:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    pictures, is_cut = 0, True

    def after_blocks(at: int) -> int:
        while data[at]:
            at += 1 + data[at]
        return at + 1

    try:
        while True:
            if data[at] == 0x3B:
                is_cut = False
                break
            if data[at] == 0x21:
                at = after_blocks(at + 2)
            elif data[at] == 0x2C:
                flags = data[at + 9]
                table = 3 << (flags & 7) + 1 if flags & 0x80 else 0
                at = after_blocks(at + 11 + table)
                pictures += 1
            else:
                break
    except IndexError:
        pictures += 1
    return Header("gif", width, height, is_cut=is_cut, is_animated=pictures > 1)


def riff_chunks(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, begin, end) of the chunks of a RIFF file between two offsets."""
    while at + 8 <= end:
        name, length = struct.unpack_from("<4sI", data, at)
        yield name, at + 8, min(at + 8 + length, end)
        at += 8 + length + length % 2


def _webp(data: bytes) -> Header:
    (length,) = struct.unpack_from("<I", data, 4)
    width = height = 0
    orientation, is_animated, icc = 1, False, b""
    for name, begin, end in riff_chunks(data, 12, min(len(data), length + 8)):
        if name == b"VP8X":
            is_animated = bool(data[begin] & 2)
            width = 1 + int.from_bytes(data[begin + 4 : begin + 7], "little")
            height = 1 + int.from_bytes(data[begin + 7 : begin + 10], "little")
        elif name == b"VP8 " and not width:
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, begin + 6))
        elif name == b"VP8L" and not width:
            (bits,) = struct.unpack_from("<I", data, begin + 1)
            width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        elif name == b"ICCP":
            icc = data[begin:end]
        elif name == b"EXIF":
            body = bytes(data[begin:end])
            orientation = _orientation(body.removeprefix(b"Exif\0\0"))
    is_cut = length + 8 > len(data) + length % 2
    return Header("webp", width, height, orientation, is_cut, is_animated, profile_of(icc))


def _bmp(data: bytes) -> Header:
    offset, header = struct.unpack_from("<II", data, 10)
    if header not in (12, 40, 52, 56, 64, 108, 124):
        return Header("container")
    width, height = struct.unpack_from("<HH" if header == 12 else "<ii", data, 18)
    bits = struct.unpack_from("<H", data, 24 if header == 12 else 28)[0]
    compression = 0 if header == 12 else struct.unpack_from("<I", data, 30)[0]
    stored = (width * bits + 31) // 32 * 4 * abs(height) if compression in (0, 3) else 0
    return Header("bmp", width, abs(height), is_cut=offset + stored > len(data))


def _tiff(data: bytes) -> Header:
    tags = _tiff_tags(data, "<" if data[:2] == b"II" else ">", _TIFF_TAGS)
    offsets = tags.get(_STRIP_OFFSETS) or tags.get(_TILE_OFFSETS, ())
    sizes = tags.get(_STRIP_SIZES) or tags.get(_TILE_SIZES, ())
    is_cut = not offsets or any(a + b > len(data) for a, b in zip(offsets, sizes, strict=False))
    width, height, turn = (tags.get(tag, (0,))[0] for tag in (_WIDTH, _HEIGHT, _ORIENTATION))
    orientation = turn if 1 <= turn <= 8 else 1
    return Header(
        "tiff", width, height, orientation, is_cut, profile=profile_of(bytes(tags.get(_ICC_PROFILE, ())))
    )


def _ico(data: bytes) -> Header:
    (count,) = struct.unpack_from("<H", data, 4)
    if not 0 < count < 100:
        return Header("container")
    width = height = 0
    is_cut = False
    for at in range(6, 6 + 16 * count, 16):
        size, offset = struct.unpack_from("<II", data, at + 8)
        width, height = max(width, data[at] or 256), max(height, data[at + 1] or 256)
        is_cut |= offset + size > len(data)
    return Header("ico", width, height, is_cut=is_cut)


def _heif(data: bytes) -> Header:
    brands = _brands(data[:HEAD_BYTES])
    # A sequence has tracks; the still picture beside them is its poster.
    if brands & _SEQUENCE_BRANDS and _has_box(data, b"moov"):
        return Header("container")
    return Header("heif" if brands & _HEIF_BRANDS and not _has_box(data, b"moov") else "container")


def _has_box(data: bytes, wanted: bytes) -> bool:
    at = 0
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        if name == wanted:
            return True
        if length == 1 and at + 16 <= len(data):
            (length,) = struct.unpack_from(">Q", data, at + 8)
        if length < 8:
            return False
        at += length
    return False


def _inflated(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, _MAX_PROFILE_BYTES)
    except zlib.error:
        return b""


def profile_of(icc: bytes) -> Profile:
    """What the bytes of an ICC profile say of RGB: its primaries are compared with those of known spaces."""
    if len(icc) < 132 or icc[16:20] != b"RGB ":
        return ""
    places: dict[bytes, int] = {}
    for at in range(132, min(132 + 12 * int.from_bytes(icc[128:132], "big"), len(icc) - 11), 12):
        places[icc[at : at + 4]] = int.from_bytes(icc[at + 4 : at + 8], "big")
    found = []
    for name in (b"rXYZ", b"gXYZ", b"bXYZ"):
        if name not in places or places[name] + 20 > len(icc):
            return ""
        found += [value / 65536 for value in struct.unpack_from(">3i", icc, places[name] + 8)]
    for profile, colorants in _COLORANTS:
        if all(abs(a - b) <= _COLORANT_TOLERANCE for a, b in zip(found, colorants, strict=True)):
            return profile
    return "other"


def _orientation(exif: bytes) -> int:
    """Tag 0x0112 of the first directory of an EXIF block, 1 where it has none that is valid."""
    if not exif.startswith((b"II*\0", b"MM\0*")):
        return 1
    try:
        order = "<" if exif[:2] == b"II" else ">"
        value = _tiff_tags(exif, order, {_ORIENTATION}).get(_ORIENTATION, (1,))[0]
    except (struct.error, IndexError):
        return 1
    return value if 1 <= value <= 8 else 1


def _tiff_tags(data: bytes, order: str, wanted: Set[int]) -> dict[int, tuple[int, ...]]:
    """The short and long values of the wanted tags of a TIFF's first directory, the bytes of its ICC profile.

    Of a list all, and none where it is longer than _MAX_TAG_VALUES; of _TIFF_NUMBERS the first. What a file says of
    other tags takes no memory, and of a tag that comes again the last entry counts, so that what is read is
    bounded whatever the directory says.
    """
    (at,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, at)
    entries: dict[int, tuple[str, int, int]] = {}
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", data, entry)
        letter, size = ("B", 1) if tag == _ICC_PROFILE else {3: ("H", 2), 4: ("I", 4)}.get(kind, ("", 0))
        if tag not in wanted or not size or not 1 <= number <= _MAX_TAG_VALUES:
            continue
        where = entry + 8 if number * size <= 4 else struct.unpack_from(order + "I", data, entry + 8)[0]
        entries[tag] = letter, 1 if tag in _TIFF_NUMBERS else number, where
    return {
        tag: struct.unpack_from(f"{order}{number}{letter}", data, where)
        for tag, (letter, number, where) in entries.items()
    }
