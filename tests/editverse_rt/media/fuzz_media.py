"""A mutation fuzzer for the readers of media: `make fuzz-media`, or `python fuzz_media.py --files 10000`.

It makes a small file of each kind, alters it by chance (the same for the same seed), and opens, samples and
takes the sound of what comes out. Right is a clip or a MediaError. A crash, another exception, more memory than
the bound, or more than the time bound is a finding: the file is kept, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from media_samples import HeifWriter, box, coded_item, encode, grey_frames, patchwork, size_property

from editverse_rt.errors import MediaError
from editverse_rt.media import open_media, write_clip, write_image

MEMORY_BYTES = 3 << 30
TIME_S = 10.0


def make_corpus(folder: Path) -> list[Path]:
    """One small file of each kind."""
    pictures = {"a.png": None, "a.jpg": None, "a.webp": None}
    for name in pictures:
        write_image(folder / name, patchwork(48, 80))
    encode(folder / "a.bmp", patchwork(48, 80)[None], codec="bmp", pixel_format="bgr24")
    encode(folder / "a.tif", patchwork(48, 80)[None], codec="tiff", pixel_format="rgb24")
    (folder / "long.tif").write_bytes(with_long_directory((folder / "a.tif").read_bytes()))
    encode(folder / "a.apng", grey_frames(4), codec="apng", pixel_format="rgb24", rate=10)
    for name in ("a.mp4", "a.mkv", "a.webm", "a.mov", "a.gif"):
        write_clip(
            folder / name, grey_frames(9), 10.0, times_s=[0, 0.1, 0.3, 0.4, 0.5, 0.7, 0.8, 0.9, 1, 1.3]
        )
    encode(folder / "sound.mp4", grey_frames(9), sine_s=0.3)
    encode(folder / "sound.mkv", grey_frames(9), sine_s=0.3)
    for name, codec in (
        ("a.avi", "mpeg4"),
        ("a.mpg", "mpeg2video"),
        ("a.ts", "mpeg2video"),
        ("a.flv", "flv1"),
        ("a.wmv", "wmv2"),
        ("a.m2v", "mpeg2video"),
        ("ffv1.mkv", "ffv1"),
        ("mjpeg.mov", "mjpeg"),
    ):
        pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        encode(folder / name, grey_frames(9), codec=codec, pixel_format=pixel_format)
    configuration, data = coded_item(folder, patchwork(), "libx265", "yuv444p")
    writer = HeifWriter()
    tiles = [writer.add(b"hvc1", data, box(b"hvcC", configuration), size_property(160, 96)) for _ in range(2)]
    grid = writer.add(
        b"grid",
        bytes([0, 0, 0, 1]) + struct.pack(">HH", 300, 96),
        size_property(300, 96),
        box(b"irot", b"\1"),
    )
    writer.refer(b"dimg", grid, *tiles)
    (folder / "a.heic").write_bytes(writer.file(grid))
    configuration, data = coded_item(folder, patchwork(), "libsvtav1", "yuv420p")
    writer = HeifWriter(b"avif")
    number = writer.add(b"av01", data, box(b"av1C", configuration), size_property(160, 96))
    (folder / "a.avif").write_bytes(writer.file(number))
    (folder / "a.webpanim").write_bytes(animated_webp((folder / "a.webp").read_bytes()))
    (folder / "a.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\na.ts\n#EXT-X-ENDLIST\n")
    (folder / "a.ico").write_bytes(icon((folder / "a.png").read_bytes()))
    return sorted(path for path in folder.iterdir() if "item" not in path.name)


def with_long_directory(tiff: bytes) -> bytes:
    """The same picture with thousands of further tags of 65,536 values each, which all lie in the same place."""
    (at,) = struct.unpack_from("<I", tiff, 4)
    (count,) = struct.unpack_from("<H", tiff, at)
    codes = range(0xC800, 0xFFFF)
    begin = len(tiff) + 2 + 12 * (count + len(codes)) + 4
    entries = tiff[at + 2 : at + 2 + 12 * count]
    entries += b"".join(struct.pack("<HHII", code, 4, 1 << 16, begin) for code in codes)
    directory = struct.pack("<H", count + len(codes)) + entries + bytes(4)
    return tiff[:4] + struct.pack("<I", len(tiff)) + tiff[8:] + directory + b"\1" * (4 << 16)


def animated_webp(still: bytes) -> bytes:
    data = still[still.index(b"VP8L") :]
    head = (
        bytes(6)
        + (79).to_bytes(3, "little")
        + (47).to_bytes(3, "little")
        + (100).to_bytes(3, "little")
        + b"\0"
    )
    part = b"ANMF" + struct.pack("<I", len(head) + len(data)) + head + data
    part += bytes(len(part) % 2)
    canvas = b"\x12\0\0\0" + (79).to_bytes(3, "little") + (47).to_bytes(3, "little")
    body = b"VP8X" + struct.pack("<I", 10) + canvas + b"ANIM" + struct.pack("<I", 6) + bytes(6) + 3 * part
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def icon(png: bytes) -> bytes:
    return b"\0\0\1\0\1\0" + bytes([80, 48, 0, 0, 1, 0, 32, 0]) + struct.pack("<II", len(png), 22) + png


def mutated(corpus: list[bytes], chance: random.Random) -> bytes:
    """A file of the corpus after one to eight alterations."""
    data = bytearray(chance.choice(corpus))
    for _ in range(chance.choice((1, 1, 2, 3, 5, 8))):
        if not data:
            break
        # A third of the alterations fall into the head, where the structure is.
        at = chance.randrange(min(len(data), 400) if chance.random() < 0.33 else len(data))
        kind = chance.randrange(8)
        if kind == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))
        elif kind == 2:
            size = chance.choice((2, 4, 8))
            value = chance.choice((0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, chance.getrandbits(32)))
            data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, chance.choice(("little", "big")))
        elif kind == 3:
            del data[at : at + chance.randint(1, 64)]
        elif kind == 4:
            data[at:at] = data[at : at + chance.randint(1, 64)]
        elif kind == 5:
            del data[chance.randrange(len(data)) :]
        elif kind == 6:
            data[at:at] = bytes(chance.getrandbits(8) for _ in range(chance.randint(1, 16)))
        else:
            other = chance.choice(corpus)
            begin = chance.randrange(len(other))
            data[at : at + 32] = other[begin : begin + 32]
    return bytes(data)


def read_everything(path: Path, chance: random.Random) -> str:
    """Do with a file what a request does; returns how it ended."""
    try:
        with open_media(path) as file:
            for start_s in (0.0, chance.choice((0.2, 0.75, 5.0))):
                clip = file.read_clip(
                    start_s=start_s, num_frames=9, fps=chance.choice((None, 7.0)), height_px=32, width_px=48
                )
                assert clip.frames.shape[1:] == (32, 48, 3)
                assert clip.frames.dtype == np.uint8
                clip.uneven_times_s(len(clip.frames))
            file.read_sound()
        return "damaged" if clip.num_damaged else "read"
    except MediaError as error:
        return error.code if len(str(error).splitlines()) == 1 else "FOUND an error of several lines"


def work(pipe: Connection, corpus_folder: str, seed: int, begin: int, end: int) -> None:
    """Try the files of a range; says which before each, and how each ended."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    corpus = [path.read_bytes() for path in sorted(Path(corpus_folder).iterdir())]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in"
        for number in range(begin, end):
            chance = random.Random(f"{seed}-{number}")
            path.write_bytes(mutated(corpus, chance))
            pipe.send(("begin", number))
            try:
                ended = read_everything(path, chance)
            except BaseException:
                ended = "FOUND " + traceback.format_exc(limit=-3)
            pipe.send((ended, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


class Report:
    """What became of the altered files: how each ended, and the findings, whose files are kept in `keep`."""

    def __init__(self, seed: int, keep: Path) -> None:
        self.seed, self.keep = seed, keep
        self.endings: dict[str, int] = {}
        self.findings: list[str] = []
        self.peak_kib, self.slowest_s, self.began = 0, 0.0, time.perf_counter()

    def add(self, number: int, said: str, content: Callable[[], bytes]) -> None:
        """said: how the file of this number ended, "FOUND ..." for a finding. content: the file's bytes."""
        if not said.startswith("FOUND"):
            self.endings[said] = self.endings.get(said, 0) + 1
            return
        self.keep.mkdir(parents=True, exist_ok=True)
        (self.keep / f"{self.seed}-{number}").write_bytes(content())
        self.findings.append(f"{self.seed}-{number}: {said}")

    def measure(self, seconds: float, peak_kib: int) -> None:
        """How long a file took, and the most memory of the process that read it."""
        self.slowest_s, self.peak_kib = max(self.slowest_s, seconds), max(self.peak_kib, peak_kib)

    def to_json(self, num_files: int, num_kinds: int) -> dict[str, Any]:
        return {
            "files": num_files,
            "seed": self.seed,
            "kinds": num_kinds,
            "endings": dict(sorted(self.endings.items())),
            "findings": self.findings,
            "peak_mib": self.peak_kib // 1024,
            "slowest_s": round(self.slowest_s, 2),
            "total_s": round(time.perf_counter() - self.began, 1),
        }


def make_parser(description: str) -> argparse.ArgumentParser:
    """The options of both hosts' fuzzers."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000, help="how many files (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the alterations (default: 0)")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz-media"), help="where findings are kept")
    return parser


def print_report(report: dict[str, Any]) -> int:
    """The report as JSON; the exit code, 1 if there is a finding."""
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 1 if report["findings"] else 0


def run(num_files: int, seed: int, keep: Path) -> dict[str, Any]:
    """Try `num_files` files in worker processes, one after another where one dies; returns the figures."""
    report, number = Report(seed, keep), 0
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_corpus(Path(folder))
        for path in Path(folder).iterdir():
            if path not in corpus:
                path.unlink()
        data = [path.read_bytes() for path in sorted(corpus)]
        while number < num_files:
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, folder, seed, number, num_files))
            process.start()
            theirs.close()
            said, since = "", time.perf_counter()
            try:
                while number < num_files:
                    if not ours.poll(60.0 if not said else TIME_S):
                        said = "FOUND more than 10 s"
                        break
                    said, value = ours.recv()
                    if said == "begin":
                        since = time.perf_counter()
                        continue
                    report.measure(time.perf_counter() - since, value)
                    if said.startswith("FOUND"):
                        break
                    report.add(number, said, bytes)
                    number += 1
            except EOFError:
                process.join()
                said = f"FOUND the process died with {process.exitcode}"
            process.kill()
            process.join()
            if said.startswith("FOUND"):
                report.add(number, said, partial(mutated, data, random.Random(f"{seed}-{number}")))
                number += 1
    return report.to_json(num_files, len(data))


def main() -> int:
    args = make_parser(__doc__ or "").parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return print_report(run(args.files, args.seed, args.keep))


if __name__ == "__main__":
    sys.exit(main())
