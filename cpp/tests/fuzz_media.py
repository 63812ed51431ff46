"""The Python host's altered files through the C library's reader: `make fuzz-media-native`.

Right is a clip, or an EV_ERROR_MEDIA with a code of its own, within 10 s a file. A crash, another error, or more
memory than the bound is a finding: the file is kept, and the exit code is 1. With --program of a build with
EDITVERSE_SANITIZE=address its findings are findings as well.
"""

from __future__ import annotations

import importlib.util
import os
import random
import resource
import selectors
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
TIME_S = 10.0
MEMORY_BYTES = 3 << 30


def load_fuzzer() -> ModuleType:
    """The Python host's fuzzer, which makes the files."""
    path = ROOT / "tests" / "editverse_rt" / "media" / "fuzz_media.py"
    spec = importlib.util.spec_from_file_location("fuzz_media_files", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Reader:
    """The program that reads, which is started again where it died."""

    def __init__(self, program: Path, limits_memory: bool) -> None:
        self._program, self._limits_memory = program, limits_memory
        self._process: subprocess.Popen[str] | None = None

    def read(self, path: Path, start_s: float, fps: float) -> tuple[str, int]:
        """How the reading of a file ended, and the peak of the program's memory in KiB."""
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{path} {start_s} {fps}\n")
        process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(TIME_S):
                self.stop()
                return f"FOUND more than {TIME_S:g} s", 0
        line = process.stdout.readline()
        if not line:
            code = process.wait()
            self._process = None
            return f"FOUND the program died with {code}", 0
        ended, _, peak_kib = line.rstrip().rpartition("\t")
        return ended, int(peak_kib)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(self._program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if self._limits_memory:
            resource.prlimit(process.pid, resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        return process


def run(program: Path, num_files: int, seed: int, keep: Path, limits_memory: bool) -> dict[str, Any]:
    """Read `num_files` altered files; returns the figures."""
    fuzzer, reader = load_fuzzer(), Reader(program, limits_memory)
    report = fuzzer.Report(seed, keep)
    with tempfile.TemporaryDirectory() as folder:
        corpus = [path.read_bytes() for path in fuzzer.make_corpus(Path(folder))]
        path = Path(folder) / "in"
        for number in range(num_files):
            chance = random.Random(f"{seed}-{number}")
            path.write_bytes(fuzzer.mutated(corpus, chance))
            since = time.perf_counter()
            ended, kib = reader.read(path, chance.choice((0.2, 0.75, 5.0)), chance.choice((0.0, 7.0)))
            report.measure(time.perf_counter() - since, kib)
            report.add(number, ended, path.read_bytes)
        reader.stop()
    figures: dict[str, Any] = report.to_json(num_files, len(corpus))
    return figures


def main() -> int:
    fuzzer = load_fuzzer()
    parser = fuzzer.make_parser(__doc__ or "")
    parser.add_argument("--program", type=Path, default=ROOT / "build" / "native" / "tests" / "fuzz_media")
    parser.add_argument(
        "--sanitized", action="store_true", help="the program reserves more addresses than it uses"
    )
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    code: int = fuzzer.print_report(run(args.program, args.files, args.seed, args.keep, not args.sanitized))
    return code


if __name__ == "__main__":
    sys.exit(main())
