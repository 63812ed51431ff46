"""`python -m benchmarks.native`: the C example beside the Python command line, whole processes in turns.

Both edit the same video to the same kind of file, A B A B. The peak of memory is the system's; time to the
first step is when the C example says that it is done, from the start of the process on. Needs `make native`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

if not __package__:  # run as a file: `python benchmarks/native.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.memory import peak_bytes
from benchmarks.report import write_report
from benchmarks.results import FOLDER, write_results

__all__ = ["MEASURES", "ProcessSample", "compare_pairs", "run_process"]

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "build" / "native" / "examples" / "edit"
DEPENDENCIES = ROOT / "build" / "native-deps" / "usr" / "lib"
BUNDLE = ROOT / "editverse_rt" / "bundles" / "nano"
SAMPLE = ROOT / "examples" / "sample.mp4"
INSTRUCTION = "<video1> Make it night"
MEASURES = ("wall_s", "cpu_s", "peak_bytes")


@dataclass(frozen=True)
class ProcessSample:
    """One process from start to end; first_step_*: until it said a first step, None where it says none."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    first_step_wall_s: float | None = None
    first_step_cpu_s: float | None = None


def run_process(command: Sequence[str], environment: Mapping[str, str] | None = None) -> ProcessSample:
    """Run a command to its end and measure it; its first output on stderr counts as its first step.

    Raises RuntimeError where it fails, and where the system's peak is not above this process's own, which a
    child inherits until it has grown beyond it.
    """
    begin = time.perf_counter()
    reader, writer = os.pipe()
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=writer,
        env=None if environment is None else {**os.environ, **environment},
    )
    os.close(writer)
    said = bytearray()
    first: list[tuple[float, float]] = []

    def listen() -> None:
        while chunk := os.read(reader, 65536):
            if not first:
                first.append((time.perf_counter() - begin, _cpu_s_of(process.pid)))
            said.extend(chunk)

    listener = threading.Thread(target=listen)
    listener.start()
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - begin
    listener.join()
    os.close(reader)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"`{' '.join(command)}` failed: {said.decode(errors='replace').strip()[-500:]}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if peak <= peak_bytes():
        raise RuntimeError(
            f"the peak of `{command[0]}` cannot be told: {peak} bytes, this process has {peak_bytes()}"
        )
    cpu_s = usage.ru_utime + usage.ru_stime
    return ProcessSample(wall_s, cpu_s, peak, *(first[0] if first else (None, None)))


def _cpu_s_of(pid: int) -> float:
    """CPU seconds of a running process, all threads, in the system's ticks; nan where it does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def compare_pairs(ours: Sequence[ProcessSample], theirs: Sequence[ProcessSample]) -> dict[str, Any]:
    """Of each measure the median of the ratios of pairs, ours to theirs, with the least and the largest."""
    facts: dict[str, Any] = {}
    for measure in MEASURES:
        ratios = [
            getattr(one, measure) / getattr(other, measure) for one, other in zip(ours, theirs, strict=True)
        ]
        facts[f"{measure}_ratio"] = median(ratios)
        facts[f"{measure}_ratio_range"] = [min(ratios), max(ratios)]
    return facts


def _row(name: str, samples: Sequence[ProcessSample]) -> dict[str, Any]:
    row: dict[str, Any] = {"program": name, "repeats": len(samples)}
    for measure in (*MEASURES, "first_step_wall_s", "first_step_cpu_s"):
        values = [value for sample in samples if (value := getattr(sample, measure)) is not None]
        if values:
            row[measure] = median(values)
            row[f"{measure}_range"] = [min(values), max(values)]
    return row


def measure(pairs: int, warm_up: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of the two programs, and what their pairs come to."""
    paths = [str(DEPENDENCIES), *(str(path) for path in DEPENDENCIES.glob("*-linux-gnu"))]
    environment = {"LD_LIBRARY_PATH": ":".join([*paths, os.environ.get("LD_LIBRARY_PATH", "")])}
    ours: list[ProcessSample] = []
    theirs: list[ProcessSample] = []
    with tempfile.TemporaryDirectory() as folder:
        native = [str(EXAMPLE), str(BUNDLE), str(SAMPLE), f"{folder}/native.mp4", INSTRUCTION]
        python = [sys.executable, "-m", "editverse_rt", "edit", str(SAMPLE), INSTRUCTION]
        python += ["-o", f"{folder}/python.mp4", "--quiet"]
        checkout = {"PYTHONPATH": str(ROOT)}
        for turn in range(warm_up + pairs):
            one, other = run_process(native, environment), run_process(python, checkout)
            if turn >= warm_up:
                ours.append(one)
                theirs.append(other)
    return [_row("C example", ours), _row("Python command line", theirs)], compare_pairs(ours, theirs)


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m benchmarks.native", description=__doc__)
    parser.add_argument("--pairs", type=int, default=9, help="timed turns (default: 9)")
    parser.add_argument("--warm-up", type=int, default=1, help="turns before them (default: 1)")
    parser.add_argument("--out", type=Path, default=FOLDER / "native.json")
    args = parser.parse_args(arguments)
    if not EXAMPLE.exists():
        parser.error(f"{EXAMPLE} is not there; build it with `make native`")
    if args.pairs < 1 or args.warm_up < 0:
        parser.error(f"--pairs is {args.pairs}, --warm-up {args.warm_up}; give at least 1 and 0")
    rows, facts = measure(args.pairs, args.warm_up)
    print(write_report(write_results(args.out, "native", rows, facts, arguments), args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
