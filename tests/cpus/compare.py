"""`python tests/cpus/compare.py QEMU`: the same work on this processor and on emulated ones, compared.

ONNX Runtime chooses its kernels by the instructions that the processor has. The emulator stands for processors
without AVX-512 and VNNI (Haswell, AMD EPYC up to Zen 3), and without AVX (Westmere). QEMU 7.2 has no AVX-512.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python tests/cpus/compare.py`
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from export.integers import quantize_bundle

COMPUTE = Path(__file__).with_name("compute.py")
CPUS = {"Haswell-v4": True, "Westmere-v2": False, "SandyBridge-v2": False, "EPYC-Milan-v1": True}
"""QEMU's names, and whether the fast 8-bit products saturate there: AVX2 without VNNI."""
BY_DEFAULT = ("Haswell-v4", "Westmere-v2")
SAME = ("noise", "bytes of a .png", "bytes of a .gif")
# Largest relative error in the norm. Measured: 5.8e-7, and 4.8e-6 for the transformer.
NEAR = {"text encoder": 5e-6, "transformer": 5e-5, "VAE encoder": 5e-6}
# Largest difference in grey levels, and share of values that differ at all. Measured: 1 and 9e-5.
PICTURES = {"VAE decoder": (1, 1e-3), "edit": (1, 5e-3), "edit of a file": (1, 5e-3)}
# Integers round differently where floats differ in the last bit, so they are held to the float model on this
# processor. Measured on all: 0.0133 and 1.22; with products that saturate more than ten times as much.
INTEGERS = ("transformer in integers", "transformer", 0.02)
EDIT_IN_INTEGERS = ("edit in integers", "edit", 2.5)

Results = dict[str, np.ndarray[Any, Any]]


def run_on(cpu: str | None, qemu: str, int8: Path, folder: Path) -> Results:
    """What compute.py gives on an emulated CPU, or on this one for None. Raises RuntimeError where it fails."""
    out = folder / f"{cpu}.npz"
    emulated = [] if cpu is None else [qemu, "-cpu", cpu]
    done = subprocess.run(
        [*emulated, sys.executable, str(COMPUTE), str(out), str(int8)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"compute.py failed on {cpu or 'this processor'}: {done.stderr.strip()[-800:]}")
    with np.load(out) as stored:
        return {name: stored[name] for name in stored.files}


def compare(cpu: str, found: Results, here: Results) -> list[tuple[str, str, bool]]:
    """Rows: what, how it differs from this processor, whether that is allowed."""
    rows = [("8-bit products saturate", str(bool(found["saturates"])), found["saturates"] == CPUS[cpu])]
    rows += [(name, *_same(found[name], here[name])) for name in SAME]
    rows.append(("edit, 1 and 3 threads", *_same(found["edit"], found["edit, 3 threads"])))
    for name, tolerance in NEAR.items():
        error = relative_error(found[name], here[name])
        rows.append((name, "same bytes" if error == 0 else f"{error:.1e}", error <= tolerance))
    for name, (most, share) in PICTURES.items():
        levels = np.abs(found[name].astype(int) - here[name])
        said = f"{levels.max()} grey level, {100 * (levels > 0).mean():.3f} % of the values"
        said = said if levels.any() else "same bytes"
        rows.append((name, said, bool(levels.max() <= most and (levels > 0).mean() <= share)))
    name, exact, tolerance = INTEGERS
    error = relative_error(found[name], here[exact])
    rows.append((f"{name}, to float32 here", f"{error:.4f}", error <= tolerance))
    name, exact, tolerance = EDIT_IN_INTEGERS
    mean = float(np.abs(found[name].astype(int) - here[exact]).mean())
    rows.append((f"{name}, to float32 here", f"{mean:.2f} grey levels in the mean", mean <= tolerance))
    return [(what, said, bool(passed)) for what, said, passed in rows]


def relative_error(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    exact = expected.astype(np.float64)
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def _same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> tuple[str, bool]:
    same = a.shape == b.shape and a.tobytes() == b.tobytes()
    return ("same bytes" if same else "other bytes", same)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("qemu", metavar="QEMU", help="QEMU's user mode emulator for x86-64")
    parser.add_argument("--cpu", action="append", choices=CPUS, help=f"(default: {' and '.join(BY_DEFAULT)})")
    args = parser.parse_args()
    cpus = args.cpu or BY_DEFAULT
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as pool:
        folder = Path(name)
        int8 = quantize_bundle("nano", folder / "nano-int8")
        run = partial(run_on, qemu=args.qemu, int8=int8, folder=folder)
        here, *found = pool.map(run, [None, *cpus])
    failed = False
    for cpu, results in zip(cpus, found, strict=True):
        print(f"{cpu}:")
        for what, said, passed in compare(cpu, results, here):
            failed |= not passed
            print(f"  {what:40} {said}{'' if passed else '   FAILED'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
