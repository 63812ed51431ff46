"""The Python host's altered files through the C library's reader: `make fuzz-media-native`.

Right is a clip, or an EV_ERROR_MEDIA with a code of its own, within 10 s a file. A crash, another error, or more
memory than the bound is a finding: the file is kept, and the exit code is 1. With --program of a build with
EDITVERSE_SANITIZE=address its findings are findings as well.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
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
    endings: dict[str, int] = {}
    findings: list[str] = []
    peak_kib, slowest_s, began = 0, 0.0, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        corpus = [path.read_bytes() for path in fuzzer.make_corpus(Path(folder))]
        path = Path(folder) / "in"
        for number in range(num_files):
            chance = random.Random(f"{seed}-{number}")
            path.write_bytes(fuzzer.mutated(corpus, chance))
            since = time.perf_counter()
            ended, kib = reader.read(path, chance.choice((0.2, 0.75, 5.0)), chance.choice((0.0, 7.0)))
            slowest_s, peak_kib = max(slowest_s, time.perf_counter() - since), max(peak_kib, kib)
            if ended.startswith("FOUND"):
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{seed}-{number}").write_bytes(path.read_bytes())
                findings.append(f"{seed}-{number}: {ended}")
            else:
                endings[ended] = endings.get(ended, 0) + 1
        reader.stop()
    return {
        "files": num_files,
        "seed": seed,
        "kinds": len(corpus),
        "endings": dict(sorted(endings.items())),
        "findings": findings,
        "peak_mib": peak_kib // 1024,
        "slowest_s": round(slowest_s, 2),
        "total_s": round(time.perf_counter() - began, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--program", type=Path, default=ROOT / "build" / "native" / "tests" / "fuzz_media")
    parser.add_argument("--files", type=int, default=10_000, help="how many files (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the alterations (default: 0)")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz-media"), help="where findings are kept")
    parser.add_argument(
        "--sanitized", action="store_true", help="the program reserves more addresses than it uses"
    )
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    report = run(args.program, args.files, args.seed, args.keep, not args.sanitized)
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 1 if report["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
