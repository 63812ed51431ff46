"""`python -m benchmarks.scaling`: time and memory against tokens, frames and concurrency, with the exponents.

Every point runs in a process of its own. An exponent is the slope of a line through the logarithms: 1 grows
as the size does, 2 as its square, 0 not at all.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python benchmarks/scaling.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks import throughput
from benchmarks.clock import take_turns
from benchmarks.contenders import OURS
from benchmarks.report import write_report
from benchmarks.results import FOLDER, write_results
from benchmarks.work import Work
from benchmarks.worker import Worker
from editverse_rt.bundle.manifest import load_bundle

__all__ = ["fit_exponent", "measure_concurrency", "measure_frames", "measure_tokens"]

TOKENS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
FRAMES = (17, 65, 257, 1001)
CONCURRENCY = (1, 2, 4)


def fit_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of log value against log size, least squares. Raises ValueError below two sizes."""
    if len(set(sizes)) < 2:
        raise ValueError(f"an exponent is fitted through {len(set(sizes))} sizes; expected at least 2")
    slope, _ = np.polyfit(np.log(sizes), np.log(values), 1)
    return float(slope)


def measure_tokens(bundle: str, sizes: Sequence[int], threads: int, repeats: int) -> list[dict[str, Any]]:
    """One transformer evaluation at each number of tokens."""
    return [
        _measure(Work(f"tokens-{size}", bundle, "transformer", tokens=size), "tokens", size, threads, repeats)
        for size in sizes
    ]


def measure_frames(
    bundle: str, half: str, sizes: Sequence[int], side_px: int, threads: int, repeats: int
) -> list[dict[str, Any]]:
    """The VAE's "encoder" or "decoder" on clips of each length."""
    rows = []
    for size in sizes:
        kind: Any = f"vae_{half}"
        work = Work(f"{half}-{size}", bundle, kind, frames=size, height_px=side_px, width_px=side_px)
        rows.append(_measure(work, f"frames, {half}", size, threads, repeats))
    return rows


def _measure(work: Work, axis: str, size: int, threads: int, repeats: int) -> dict[str, Any]:
    forms = {"bundle": str(load_bundle(work.model).root)}
    with Worker(OURS, work, forms, threads) as worker:
        timing = take_turns({work.name: worker.run}, repeats=repeats)[work.name]
        return {"axis": axis, "size": size, **timing.to_json(), "peak_bytes": worker.peak_bytes()}


def measure_concurrency(
    bundle: str, sizes: Sequence[int], steps: int, frames: int, size: str, repeats: int
) -> list[dict[str, Any]]:
    """Requests at once in one process, each with one thread; the time is that of one request's share."""
    rows = []
    for lanes in sizes:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "throughput.json"
            command = [
                sys.executable, throughput.__file__, "--bundle", bundle, "--threads", "1",
                "--concurrency", str(lanes), "--steps", str(steps), "--frames", str(frames), "--size", size,
                "--repeats", str(repeats), "--out", str(out),
            ]  # fmt: skip
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            facts = json.loads(out.read_text())["facts"]
        rows.append(
            {
                "axis": "concurrency",
                "size": lanes,
                "wall_s": 1 / facts["requests_per_s"],
                "cpu_s": facts["cpu_s_per_request"],
                "requests_per_s": facts["requests_per_s"],
                "peak_bytes": facts["peak_bytes"],
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    add = parser.add_argument
    add("--bundle", default="nano", help="name or folder (default: nano)")
    add("--tokens", type=int, nargs="*", default=TOKENS, metavar="N")
    add("--frames", type=int, nargs="*", default=FRAMES, metavar="N")
    add("--concurrency", type=int, nargs="*", default=CONCURRENCY, metavar="N")
    add("--side", type=int, default=64, help="of the VAE's clips, pixels (default: 64)")
    add("--steps", type=int, default=10, help="of the concurrent requests (default: 10)")
    add("--request", default="9:64x64", metavar="FRAMES:WxH", help="their size (default: 9:64x64)")
    add("--threads", type=int, default=os.cpu_count() or 1, help="(default: one a core)")
    add("--repeats", type=int, default=3)
    add("--out", type=Path, default=FOLDER / "scaling.json")
    args = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    exponents: dict[str, dict[str, float]] = {}

    def note(found: list[dict[str, Any]]) -> None:
        rows.extend(found)
        if len(found) > 1:
            sizes = [row["size"] for row in found]
            exponents[found[0]["axis"]] = {
                key: fit_exponent(sizes, [row[key] for row in found])
                for key in ("wall_s", "cpu_s", "peak_bytes")
            }
        # What there is by now is kept, should the rest not come to its end.
        write_results(args.out, "scaling", rows, {"exponents": exponents}, arguments)

    note(measure_tokens(args.bundle, args.tokens, args.threads, args.repeats))
    for half in ("encoder", "decoder"):
        note(measure_frames(args.bundle, half, args.frames, args.side, args.threads, args.repeats))
    frames, _, size = args.request.partition(":")
    note(measure_concurrency(args.bundle, args.concurrency, args.steps, int(frames), size, args.repeats))
    facts = {"bundle": args.bundle, "threads": args.threads, "exponents": exponents}
    print(write_report(write_results(args.out, "scaling", rows, facts, arguments), args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
