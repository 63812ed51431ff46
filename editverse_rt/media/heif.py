"""The picture of a HEIC or AVIF file: which coded items it is made of, and how they are put together.

A file holds items in boxes; one is the primary item. It is coded as it is, or a grid of tiles; it may be
cropped, turned and mirrored, and another item may hold its transparency. libavformat hands out items one by
one, and its oldest version in use knows no grids, so the boxes are read here; libheif for Python is no
alternative, because its wheels carry an encoder under the GPL.
Source: ISO/IEC 23008-12 (HEIF) and 14496-12 (boxes); AV1 Image File Format 1.1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from editverse_rt.errors import MediaError
from editverse_rt.media.headers import Profile, profile_of

__all__ = ["CodedItem", "HeifPicture", "parse_heif"]

_CODECS: dict[bytes, Literal["hevc", "av1", "h264"]] = {b"hvc1": "hevc", b"av01": "av1", b"avc1": "h264"}
_CONFIGURATIONS = {b"hvcC", b"av1C", b"avcC"}
_ALPHA_KINDS = (b"urn:mpeg:hevc:2015:auxid:1", b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha")
_MAX_ITEMS = 4096
_APPLIED = {b"ispe", b"pixi", b"colr", b"pasp", b"irot", b"imir", b"clap", b"auxC", b"rloc", b"lsel"}


@dataclass(frozen=True)
class CodedItem:
    """One coded picture: its codec, the decoder's configuration record, and its bytes.

    colour: (primaries, transfer, matrix, range: 1 limited or 2 full) of its nclx box, or None. profile: of its
    ICC profile.
    """

    codec: Literal["hevc", "av1", "h264"]
    configuration: bytes
    data: bytes
    colour: tuple[int, int, int, int] | None
    profile: Profile = ""


@dataclass(frozen=True)
class HeifPicture:
    """The primary item: `tiles` in reading order, `columns` a row, cropped to width_px x height_px.

    transforms: in order, ("turn", k) for k quarter turns anticlockwise, ("mirror", axis) with 0 for top and
    bottom swapped and 1 for left and right, ("crop", (left, top, width, height)). alpha: the transparency's
    picture, or None. is_premultiplied: whether the colours are multiplied by it already.
    """

    tiles: tuple[CodedItem, ...]
    columns: int
    width_px: int
    height_px: int
    transforms: tuple[tuple[str, object], ...] = ()
    alpha: HeifPicture | None = None
    is_premultiplied: bool = False


@dataclass
class _Item:
    kind: bytes = b""
    extents: list[tuple[int, int, int]] = field(default_factory=list)  # (method, offset, length)
    properties: list[tuple[bytes, int, int]] = field(default_factory=list)
    essential: list[bytes] = field(default_factory=list)


def parse_heif(data: bytes, name: str) -> HeifPicture:
    """Find the primary picture in the bytes of a HEIC or AVIF file; `name` stands in errors.

    Raises MediaError where boxes are missing, contradict each other, or ask for what is not assembled here.
    """
    try:
        return _File(data, name).picture()
    except (struct.error, IndexError, KeyError, StopIteration, ValueError) as error:
        raise MediaError(
            f"{name}: found a HEIC or AVIF file whose boxes are damaged",
            hint="make it again or convert it to PNG",
            code="media.damaged",
        ) from error


class _File:
    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name = data, name
        self.taken = 0  # bytes of items, so that overlapping ones cannot fill the memory
        top = {kind: (begin, end) for kind, begin, end in _boxes(data, 0, len(data))}
        begin, end = top[b"meta"]
        meta = {kind: (begin, end) for kind, begin, end in _boxes(data, begin + 4, end)}
        self.items: dict[int, _Item] = {}
        self.idat = meta.get(b"idat", (0, 0))
        self._read_kinds(*meta[b"iinf"])
        self._read_places(*meta[b"iloc"])
        self._read_properties(*meta[b"iprp"])
        self.references = list(self._references(*meta[b"iref"])) if b"iref" in meta else []
        begin, _ = meta[b"pitm"]
        version = data[begin]
        self.primary: int = struct.unpack_from(">H" if version == 0 else ">I", data, begin + 4)[0]

    def picture(self) -> HeifPicture:
        picture = self._picture(self.primary)
        for kind, source, targets in self.references:
            if kind == b"auxl" and self.primary in targets and self._is_alpha(source):
                premultiplied = any(
                    k == b"prem" and s == self.primary and source in t for k, s, t in self.references
                )
                return HeifPicture(
                    picture.tiles,
                    picture.columns,
                    picture.width_px,
                    picture.height_px,
                    picture.transforms,
                    self._picture(source),
                    premultiplied,
                )
        return picture

    def _picture(self, number: int) -> HeifPicture:
        item = self.items[number]
        transforms = tuple(self._transforms(item))
        if item.kind in _CODECS:
            width, height = self._size(item)
            return HeifPicture((self._coded(item),), 1, width, height, transforms)
        if item.kind != b"grid":
            kind = item.kind.decode("latin-1")
            raise MediaError(
                f"{self.name}: found a HEIC or AVIF picture of type {kind!r}, which is not assembled here",
                hint="convert it to PNG or JPEG",
                code="media.unsupported",
            )
        body = self._bytes(item)
        wide, rows, columns = body[1] & 1, body[2] + 1, body[3] + 1
        width, height = struct.unpack_from(">II" if wide else ">HH", body, 4)
        parts = next(
            targets for kind, source, targets in self.references if (kind, source) == (b"dimg", number)
        )
        if len(parts) != rows * columns or len(parts) > _MAX_ITEMS:
            raise MediaError(
                f"{self.name}: found a grid of {rows}x{columns} tiles with {len(parts)} of them",
                hint="make the file again or convert it to PNG",
                code="media.damaged",
            )
        tiles = []
        for part in parts:
            if self.items[part].kind not in _CODECS:
                raise MediaError(
                    f"{self.name}: found a grid whose tiles are not coded pictures",
                    hint="convert it to PNG or JPEG",
                    code="media.unsupported",
                )
            tiles.append(self._coded(self.items[part]))
        return HeifPicture(tuple(tiles), columns, width, height, transforms)

    def _coded(self, item: _Item) -> CodedItem:
        unknown = [kind for kind in item.essential if kind not in _APPLIED | _CONFIGURATIONS]
        if unknown:
            what = unknown[0].decode("latin-1")
            raise MediaError(
                f"{self.name}: found the property {what!r}, which is not known here and has to be applied",
                hint="convert the file to PNG or JPEG",
                code="media.unsupported",
            )
        configuration, colour = b"", None
        profile: Profile = ""
        for kind, begin, end in item.properties:
            if kind in _CONFIGURATIONS:
                configuration = bytes(self.data[begin:end])
            elif kind == b"colr" and self.data[begin : begin + 4] == b"nclx":
                primaries, transfer, matrix, full = struct.unpack_from(">HHHB", self.data, begin + 4)
                colour = (primaries, transfer, matrix, 2 if full & 0x80 else 1)
            elif kind == b"colr" and self.data[begin : begin + 4] in (b"prof", b"rICC"):
                profile = profile_of(self.data[begin + 4 : end])
        return CodedItem(_CODECS[item.kind], configuration, self._bytes(item), colour, profile)

    def _size(self, item: _Item) -> tuple[int, int]:
        begin = next(begin for kind, begin, _ in item.properties if kind == b"ispe")
        width, height = struct.unpack_from(">II", self.data, begin + 4)
        return width, height

    def _transforms(self, item: _Item) -> Iterator[tuple[str, object]]:
        for kind, begin, _ in item.properties:
            if kind == b"irot":
                yield "turn", self.data[begin] & 3
            elif kind == b"imir":
                yield "mirror", self.data[begin] & 1
            elif kind == b"clap":
                numbers = struct.unpack_from(">IIIIiIiI", self.data, begin)
                yield "crop", tuple(zip(numbers[::2], numbers[1::2], strict=True))

    def _is_alpha(self, number: int) -> bool:
        return any(
            kind == b"auxC" and bytes(self.data[begin + 4 : end]).split(b"\0")[0] in _ALPHA_KINDS
            for kind, begin, end in self.items[number].properties
        )

    def _bytes(self, item: _Item) -> bytes:
        parts = []
        for method, offset, length in item.extents:
            begin, limit = (0, len(self.data)) if method == 0 else self.idat
            self.taken += length
            if method > 1 or begin + offset + length > limit or self.taken > 4 * len(self.data):
                raise MediaError(
                    f"{self.name}: found a HEIC or AVIF file that ends before its picture does",
                    hint="it was cut short, make it again",
                    code="media.damaged",
                )
            parts.append(self.data[begin + offset : begin + offset + length if length else limit])
        return b"".join(parts)

    def _read_kinds(self, begin: int, end: int) -> None:
        skip = 6 if self.data[begin] == 0 else 8
        for kind, at, _ in _boxes(self.data, begin + skip, end):
            if kind == b"infe" and self.data[at] >= 2:
                form = ">HH4s" if self.data[at] == 2 else ">IH4s"
                number, _, item_kind = struct.unpack_from(form, self.data, at + 4)
                self.items[number] = _Item(item_kind)

    def _read_places(self, begin: int, end: int) -> None:
        version = self.data[begin]
        sizes = struct.unpack_from(">BB", self.data, begin + 4)
        offset_size, length_size, base_size = sizes[0] >> 4, sizes[0] & 15, sizes[1] >> 4
        index_size = sizes[1] & 15 if version else 0
        reader = _Reader(self.data, begin + 6, end)
        for _ in range(reader.number(2 if version < 2 else 4)):
            number = reader.number(2 if version < 2 else 4)
            method = reader.number(2) & 15 if version else 0
            reader.number(2)
            base = reader.number(base_size)
            for _ in range(reader.number(2)):
                reader.number(index_size)
                offset, length = reader.number(offset_size), reader.number(length_size)
                if number in self.items and len(self.items[number].extents) < _MAX_ITEMS:
                    self.items[number].extents.append((method, base + offset, length))

    def _read_properties(self, begin: int, end: int) -> None:
        parts = list(_boxes(self.data, begin, end))
        begin, stop = next((begin, end) for kind, begin, end in parts if kind == b"ipco")
        properties = list(_boxes(self.data, begin, stop))
        for kind, begin, stop in parts:
            if kind != b"ipma":
                continue
            version, wide = self.data[begin], self.data[begin + 3] & 1
            reader = _Reader(self.data, begin + 4, stop)
            for _ in range(reader.number(4)):
                item = self.items.get(reader.number(2 if version < 1 else 4))
                for _ in range(reader.number(1)):
                    value = reader.number(2 if wide else 1)
                    index = value & (0x7FFF if wide else 0x7F)
                    if item is None or not 1 <= index <= len(properties):
                        continue
                    item.properties.append(properties[index - 1])
                    if value >> (15 if wide else 7):
                        item.essential.append(properties[index - 1][0])

    def _references(self, begin: int, end: int) -> Iterator[tuple[bytes, int, tuple[int, ...]]]:
        size = 2 if self.data[begin] == 0 else 4
        for kind, at, stop in _boxes(self.data, begin + 4, end):
            reader = _Reader(self.data, at, stop)
            source = reader.number(size)
            yield kind, source, tuple(reader.number(size) for _ in range(reader.number(2)))


class _Reader:
    """Big-endian numbers one after another, none beyond `end`."""

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self._data, self._at, self._end = data, at, end

    def number(self, size: int) -> int:
        if self._at + size > self._end:
            raise IndexError("beyond the end of a box")
        self._at += size
        return int.from_bytes(self._data[self._at - size : self._at], "big")


def _boxes(data: bytes, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, begin, end) of each box's content between two offsets."""
    while begin + 8 <= end:
        length, kind = struct.unpack_from(">I4s", data, begin)
        head = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, begin + 8)
            head = 16
        if length == 0:
            length = end - begin
        if length < head:
            raise IndexError("a box shorter than its head")
        yield kind, begin + head, min(begin + length, end)
        begin += length
