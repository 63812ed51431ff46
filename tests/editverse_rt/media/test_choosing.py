"""Which stream of a container is the input."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from media_samples import encode, grey_frames, patchwork, worst

from editverse_rt.media import probe, read_clip, write_image


def two_streams(
    path: Path, sizes: list[tuple[int, int]], counts: list[int], defaults: list[bool], codec: str = "libx264"
) -> Path:
    with av.open(str(path), "w") as container:
        streams = []
        for (height, width), is_default in zip(sizes, defaults, strict=True):
            stream = container.add_stream(codec, rate=10)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            stream.disposition = Disposition.default if is_default else Disposition(0)
            streams.append(stream)
        for stream, (height, width), count in zip(streams, sizes, counts, strict=True):
            for number in range(count):
                frame = av.VideoFrame.from_ndarray(patchwork(height, width), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 10)
                container.mux(stream.encode(frame.reformat(format="yuv420p")))
            container.mux(stream.encode(None))
    return path


SMALL, LARGE = (48, 80), (96, 160)


@pytest.mark.parametrize(
    ("sizes", "counts", "defaults", "chosen"),
    [
        ([SMALL, LARGE], [5, 5], [False, True], LARGE),
        ([LARGE, SMALL], [5, 5], [False, True], SMALL),
        ([SMALL, LARGE], [5, 5], [True, True], LARGE),
        ([LARGE, SMALL], [5, 5], [True, True], LARGE),
    ],
)
def test_the_default_flag_and_then_the_larger_picture_decide(
    tmp_path: Path, sizes, counts, defaults, chosen: tuple[int, int]
) -> None:
    info = probe(two_streams(tmp_path / "in.mkv", sizes, counts, defaults))
    assert (info.height_px, info.width_px) == chosen


def test_a_track_of_one_frame_is_a_thumbnail(tmp_path: Path) -> None:
    info = probe(two_streams(tmp_path / "in.mp4", [LARGE, SMALL], [1, 5], [True, True]))
    assert (info.height_px, info.width_px) == SMALL


def test_a_cover_is_no_video(tmp_path: Path) -> None:
    video = encode(tmp_path / "video.mp4", grey_frames(5))
    write_image(tmp_path / "cover.png", patchwork(192, 320))
    with (
        av.open(str(video)) as source,
        av.open(str(tmp_path / "cover.png")) as cover,
        av.open(str(tmp_path / "in.mp4"), "w") as target,
    ):
        copies = [target.add_stream_from_template(c.streams.video[0]) for c in (cover, source)]
        copies[0].disposition = Disposition.attached_pic
        copies[1].disposition = Disposition.default
        for container, copy in zip((cover, source), copies, strict=True):
            for packet in container.demux(video=0):
                if packet.size:
                    packet.stream = copy
                    target.mux(packet)
    info = probe(tmp_path / "in.mp4")
    assert (info.height_px, info.width_px) == (48, 64)


def test_the_largest_picture_of_an_icon(tmp_path: Path) -> None:
    encoded = []
    for height, width in ((24, 40), (96, 160), (48, 80)):
        write_image(tmp_path / "part.png", patchwork(height, width))
        encoded.append((height, width, (tmp_path / "part.png").read_bytes()))
    head, at, body = b"\0\0\1\0" + bytes([len(encoded), 0]), 6 + 16 * len(encoded), b""
    for height, width, data in encoded:
        head += bytes([width, height, 0, 0, 1, 0, 32, 0])
        head += len(data).to_bytes(4, "little") + (at + len(body)).to_bytes(4, "little")
        body += data
    (tmp_path / "in.ico").write_bytes(head + body)
    info = probe(tmp_path / "in.ico")
    assert (info.kind, info.height_px, info.width_px) == ("image", 96, 160)
    clip = read_clip(tmp_path / "in.ico", num_frames=1, height_px=96, width_px=160)
    assert np.array_equal(clip.frames[0], patchwork())
    assert worst(clip.frames[0], patchwork()) == 0
