"""Properties that shape pixels, held to what was drawn."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_samples import corners, encode, exif_jpeg, patchwork, quarter_colours, worst

from editverse_rt.media import probe, read_clip, streams


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


def encode_raw(
    path: Path, frames: list[av.VideoFrame], codec: str, pixel_format: str, rate: int = 10, **context
) -> Path:
    """Encode frames as they are; context: attributes of the encoder, among them options."""
    options = context.pop("options", {})
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = frames[0].height, frames[0].width, pixel_format
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        for number, frame in enumerate(frames):
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_transparency_of_webm_is_laid_over_white(tmp_path: Path, codec: str) -> None:
    rgba = np.dstack([patchwork(), np.full((96, 160), 255, np.uint8)])
    rgba[:, 80:, 3] = 0
    frames = [av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format="yuva420p") for _ in range(3)]
    path = encode_raw(
        tmp_path / "in.webm",
        frames,
        codec,
        "yuva420p",
        options={"auto-alt-ref": "0", "b": "4M", "cpu-used": "8"},
    )
    with av.open(str(path)) as container:
        assert container.streams.video[0].metadata["alpha_mode"] == "1"
    expected = patchwork()
    expected[:, 80:] = 255
    clip = read_clip(path, num_frames=3, height_px=96, width_px=160)
    assert len(clip.frames) == 3
    assert worst(clip.frames[0], expected) <= 8
    later = read_clip(path, start_s=0.2, num_frames=1, height_px=96, width_px=160)
    assert worst(later.frames[0], expected) <= 8


@pytest.mark.parametrize("height", [480, 720])
@pytest.mark.parametrize(
    ("name", "codec", "opaque", "transparent", "options"),
    [
        ("in.webm", "libvpx-vp9", "yuv420p", "yuva420p", {"auto-alt-ref": "0", "b": "4M", "cpu-used": "8"}),
        ("in.mov", "prores_ks", "yuv444p10le", "yuva444p10le", {"profile": "4444"}),
        ("in.mkv", "ffv1", "yuv420p", "yuva420p", {}),
    ],
)
def test_the_unnamed_matrix_is_one_with_and_without_transparency(
    tmp_path: Path, height: int, name: str, codec: str, opaque: str, transparent: str, options: dict[str, str]
) -> None:
    """The same numbers in YUV, with a plane of full opacity beside them and without, are the same colours."""
    colours = np.zeros((height, 16 * height // 9, 4), np.uint8)
    colours[:] = (200, 60, 40, 255)
    found = []
    for pixels in (opaque, transparent):
        frame = av.VideoFrame.from_ndarray(colours, format="rgba").reformat(format=pixels)
        frame.colorspace = 2
        path = encode_raw(tmp_path / name, [frame], codec, pixels, options=dict(options))
        found.append(read_clip(path, num_frames=1, height_px=16, width_px=16).frames[0])
    assert worst(found[0], found[1]) <= 2
    # The numbers were made as BT.601; from 720 lines on they are read as BT.709, where this red has more green.
    assert (found[1][8, 8, 1] > 66) == (height == 720)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "ffv1", "mpeg2video"])
@pytest.mark.parametrize("is_full", [False, True])
def test_the_range_is_respected(tmp_path: Path, codec: str, is_full: bool) -> None:
    if codec == "mpeg2video" and is_full:
        is_full = False  # MPEG-2 has limited range alone
    grey = codec in ("libx264", "libx265")
    form = "gray" if grey else "yuv420p"
    low, high = (0, 255) if is_full else (16, 235)
    luma = np.full((96, 160), low, np.uint8)
    luma[:, 80:] = high
    if grey:
        frame = av.VideoFrame.from_ndarray(luma, format="gray")
    else:
        planes = np.full((144, 160), 128, np.uint8)
        planes[:96] = luma
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
    frame.color_range = 2 if is_full else 1
    options = {"libx264": {"crf": "2"}, "libx265": {"x265-params": "log-level=none:crf=2:bframes=0"}}.get(
        codec, {}
    )
    path = encode_raw(
        tmp_path / "in.mkv", [frame], codec, form, rate=25, options=options, color_range=2 if is_full else 1
    )
    picture = read_clip(path, num_frames=1, height_px=96, width_px=160).frames[0]
    assert picture[48, 20].max() <= 4
    assert picture[48, 140].min() >= 251


def moving_bar(fields: int) -> np.ndarray:
    frames = np.full((fields, 192, 320, 3), 60, np.uint8)
    for number in range(fields):
        frames[number, :, number * 16 % 280 : number * 16 % 280 + 40] = 230
    return frames


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_lines_of_two_moments_do_not_alternate(tmp_path: Path, codec: str) -> None:
    fields = moving_bar(18)
    woven = fields[::2].copy()
    woven[:, 1::2] = fields[1::2, 1::2]
    frames = [av.VideoFrame.from_ndarray(w, format="rgb24").reformat(format="yuv420p") for w in woven]
    options = {"x264-params": "tff=1", "crf": "4"} if codec == "libx264" else {"qmin": "2", "qmax": "2"}
    # AV_CODEC_FLAG_INTERLACED_DCT and AV_CODEC_FLAG_INTERLACED_ME.
    path = encode_raw(
        tmp_path / "in.mp4", frames, codec, "yuv420p", rate=25, options=options, flags=1 << 18 | 1 << 29
    )
    clip = read_clip(path, num_frames=9, height_px=48, width_px=80)
    assert "interlaced" in clip.notices[0]
    picture = clip.frames[4].astype(int)
    assert np.abs(2 * picture[1:-1] - picture[:-2] - picture[2:]).max() < 30
    # The upper field shows the earlier of the two moments.
    expected = fields[8].reshape(48, 4, 80, 4, 3).mean(axis=(1, 3))
    assert np.abs(picture - expected).mean() < 4


def linear(code: np.ndarray) -> np.ndarray:
    return np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)


BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
P3 = np.array([[0.8225, 0.1774, 0.0000], [0.0332, 0.9669, 0.0000], [0.0171, 0.0724, 0.9108]])


def pq_code(light: np.ndarray) -> np.ndarray:
    power = (light * 203 / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg_code(light: np.ndarray) -> np.ndarray:
    scene = light * 0.265
    bright = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), bright)


LUMA = {1: (0.2126, 0.7152, 0.0722), 9: (0.2627, 0.6780, 0.0593)}


def wide_frame(primaries: np.ndarray, code, matrix: int) -> av.VideoFrame:
    """The patchwork in those colours, as YUV of limited range in 10 bits, computed here."""
    red, green, blue = np.moveaxis(code(np.clip(linear(patchwork() / 255.0) @ primaries.T, 0, 1)), -1, 0)
    weights = LUMA[matrix]
    luma = weights[0] * red + weights[1] * green + weights[2] * blue
    planes = [16 + 219 * luma]
    planes += [
        128 + 112 * (colour - luma) / (1 - weight)
        for colour, weight in ((blue, weights[2]), (red, weights[0]))
    ]
    deep = (np.stack(planes, axis=-1) * 256).round().astype(np.uint16)
    frame = av.VideoFrame.from_ndarray(deep, format="yuv444p16le")
    frame.colorspace, frame.color_range = matrix, 1
    return frame.reformat(format="yuv444p10le")


def gamma_code(light: np.ndarray) -> np.ndarray:
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize(
    ("name", "primaries", "code", "numbers_", "tolerance"),
    [
        ("HLG", BT2020, hlg_code, (9, 18, 9), 15),
        ("PQ", BT2020, pq_code, (9, 16, 9), 15),
        ("", BT2020, gamma_code, (9, 13, 9), 5),
        ("", P3, gamma_code, (12, 13, 1), 5),
    ],
)
def test_wide_colours_and_high_range_become_srgb(
    tmp_path: Path, name: str, primaries: np.ndarray, code, numbers_: tuple[int, int, int], tolerance: int
) -> None:
    """The oracle computes in floating point from the standards' formulas; white of standard range stays white
    but for the knee that makes room for what is brighter (9 levels), and 10 bits of PQ are coarse (4 levels)."""
    colour, transfer, matrix = numbers_
    frame = wide_frame(primaries, code, matrix)
    frame.color_primaries, frame.color_trc, frame.colorspace, frame.color_range = colour, transfer, matrix, 1
    path = encode_raw(
        tmp_path / "in.mkv",
        [frame],
        "libx265",
        "yuv444p10le",
        options={"x265-params": "log-level=none:crf=2:bframes=0"},
        color_primaries=colour,
        color_trc=transfer,
        colorspace=matrix,
        color_range=1,
    )
    clip = read_clip(path, num_frames=1, height_px=96, width_px=160)
    assert worst(clip.frames[0], patchwork()) <= tolerance
    assert [line for line in clip.notices if "dynamic range" in line] == (
        [f"the footage has high dynamic range ({name}): it was mapped to standard range"] if name else []
    )


def test_brighter_than_white_stays_below_white_and_in_order() -> None:
    from editverse_rt.media.pixels import _codes_of_light

    curve = _codes_of_light(True).astype(int)
    assert (np.diff(curve) >= 0).all()
    assert curve[0] == 0
    assert curve[-1] == 255
    assert curve[8192] < curve[4 * 8192] < 255


def test_animated_webp(tmp_path: Path) -> None:
    """Three frames, assembled here chunk by chunk: whole, a blended part, and a part that replaces."""
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]

    def still(height: int, width: int, colour: tuple[int, int, int], alpha: int) -> bytes:
        rgba = np.zeros((height, width, 4), np.uint8)
        rgba[:] = (*colour, alpha)
        context = av.CodecContext.create("libwebp", "w")
        context.width, context.height, context.pix_fmt, context.time_base = width, height, "bgra", Fraction(1)
        context.options = {"lossless": "1"}
        frame = av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format="bgra")
        data = b"".join(bytes(p) for p in [*context.encode(frame), *context.encode(None)])
        return data[data.index(b"VP8L") :]

    def chunk(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)

    def number(value: int) -> bytes:
        return value.to_bytes(3, "little")

    def part(left: int, top: int, width: int, height: int, ms: int, flags: int, data: bytes) -> bytes:
        head = number(left // 2) + number(top // 2) + number(width - 1) + number(height - 1) + number(ms)
        return chunk(b"ANMF", head + bytes([flags]) + data)

    body = chunk(b"VP8X", b"\x12\0\0\0" + number(159) + number(95)) + chunk(b"ANIM", bytes(6))
    body += part(0, 0, 160, 96, 100, 0, still(96, 160, colours[0], 255))
    body += part(80, 0, 80, 96, 300, 0, still(96, 80, colours[1], 128))
    body += part(0, 48, 160, 48, 5, 2, still(48, 160, colours[2], 0))
    (tmp_path / "in.webp").write_bytes(b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body)
    hours = body.replace(number(100), number(2**24 - 1)).replace(number(300), number(2**24 - 1))
    (tmp_path / "hours.webp").write_bytes(b"RIFF" + struct.pack("<I", len(hours) + 4) + b"WEBP" + hours)
    slow = read_clip(tmp_path / "hours.webp", num_frames=9, height_px=96, width_px=160)
    assert slow.source_times_s[1] == pytest.approx(16777.215)
    info = probe(tmp_path / "in.webp")
    assert (info.kind, info.width_px, info.height_px, info.num_frames) == ("video", 160, 96, 3)
    clip = read_clip(tmp_path / "in.webp", num_frames=9, height_px=96, width_px=160)
    assert clip.source_times_s == pytest.approx([0, 0.1, 0.4])
    assert clip.end_s == pytest.approx(0.5)
    assert (clip.frames[0] == colours[0]).all()
    assert (clip.frames[1][:, :80] == colours[0]).all()
    assert np.abs(clip.frames[1][:, 80:].astype(int) - (127, 128, 0)).max() <= 1
    assert (clip.frames[2][48:] == 255).all()
    assert (clip.frames[2][:48] == clip.frames[1][:48]).all()
