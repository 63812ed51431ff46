"""Make again everything that depends on nano, from a run or from the checkpoint that ships.

    python -m reference.nano.release WORK [--run RUN]

Each step is a command of this repository (`--list` prints them). WORK/done.json notes the steps that succeeded, so
that a second call goes on at the one that failed; `--from STEP` repeats that step and all behind it. With `--run`,
RUN is published into the checkpoint first. `--without-timings` leaves out what wants a quiet machine, which
`--from "peers-edit measured"` measures later. Nothing is committed: look at `git diff` afterwards. Plans for GPUs
are not among it; they are built where they run (docs/engines.md).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = "reference/nano/checkpoint"
BUNDLE = "editverse_rt/bundles/nano"
RESULTS = "benchmarks/results"
PICTURES = "docs/images"
FRONTIER = f"{RESULTS}/frontier.json"
VARIETY = f"{RESULTS}/variety.json"
VAE_WORKS = [f"nano-vae-{half}-{frames}" for frames in (17, 81, 257) for half in ("encoder", "decoder")]


@dataclass(frozen=True)
class Step:
    """A command: words behind the Python that runs this file. brings: what it makes. is_timing: by the clock."""

    name: str
    words: tuple[str, ...]
    brings: str
    is_timing: bool = False


def list_steps(work: Path, run: Path | None) -> list[Step]:
    """All steps in order. work: where what does not ship is kept, as seen from the repository's root."""
    integers = str(work / "nano-int8")
    publish = ("-m", "reference.nano.publish", str(run), CHECKPOINT)
    steps = [
        Step("publish", publish, f"{CHECKPOINT}/"),
        Step("export", ("-m", "export.export_onnx", CHECKPOINT, BUNDLE, "--name", "nano"), f"{BUNDLE}/"),
        Step("compare", ("-m", "export.compare", BUNDLE, CHECKPOINT), "nothing; fails where the bundle differs"),
        Step(
            "quality",
            ("-m", "export.quality", BUNDLE, "--write", "--json", str(work / "quality.json"), "--sheet",
             f"{PICTURES}/nano.png"),
            f"the quality report in {BUNDLE}/bundle.json, and {PICTURES}/nano.png",
        ),
        Step("frontier", ("-m", "benchmarks.frontier", BUNDLE, "--workers", "2", "--out", FRONTIER), FRONTIER),
        Step("schedules", ("-m", "export.name_schedules", BUNDLE, FRONTIER), "the bundle's named schedules"),
        Step("held-out edits", ("-m", "export.write_heldout", BUNDLE), f"{BUNDLE}/heldout.npz"),
        Step(
            "demo",
            ("-m", "editverse_rt", "edit", "examples/sample.mp4", "<video1> Make it night", "-o",
             str(work / "night.mp4"), "--preview", f"{PICTURES}/demo.png"),
            f"{PICTURES}/demo.png",
        ),
        Step("whole videos", ("-m", "benchmarks.whole_videos"), f"{RESULTS}/whole-videos.json"),
        Step(
            "a whole video",
            ("-m", "benchmarks.whole_videos", "--sheet", f"{PICTURES}/whole.png"),
            f"{PICTURES}/whole.png",
        ),
        Step("many-valued test", ("-m", "benchmarks.variety", CHECKPOINT, "--out", VARIETY), VARIETY),
        Step("integers", ("-m", "export.integers", BUNDLE, integers), "a bundle in WORK"),
        Step(
            "frontier of integers",
            ("-m", "benchmarks.frontier", integers, "--standard", BUNDLE, "--out",
             f"{RESULTS}/frontier-int8.json", "--schedule", "ab2-4 shift 0.2 guided 0.1-1",
             "ab2-2 shift 0.2 guided 0.1-1", "euler-1 guidance 1"),
            f"{RESULTS}/frontier-int8.json",
        ),
        *(
            Step(f"{kind} vectors", (f"tests/vectors/write_{kind}_vectors.py",), "tests/vectors/, for both hosts")
            for kind in ("request", "bundle", "engine")
        ),
        Step("frames", ("tests/editverse_rt/test_nano_frames.py",), "tests/editverse_rt/nano_frames.npz"),
        *(
            Step(f"{name} measured", ("-m", f"benchmarks.{module}", *words, "--out", f"{RESULTS}/{name}.json"),
                 f"{RESULTS}/{name}.json", is_timing=True)
            for name, module, *words in (
                ("peers-edit", "peers", "--work", "edit", "edit-balanced", "edit-fast", "t5-nano",
                 "--threads", "1", "--max-minutes", "1.5"),
                ("peers-once", "peers", "--work", "edit-once", "edit-once-int8", "--threads", "1"),
                ("peers-vae", "peers", "--work", *VAE_WORKS, "--repeats", "3", "--max-minutes", "0.7"),
                ("throughput", "throughput"),
                ("throughput-fast", "throughput", "--schedule", "fast"),
                ("soak", "soak"),
                ("scaling", "scaling", "--repeats", "1"),
                ("versus-int8", "versus", BUNDLE, integers, "--threads", "1"),
            )
        ),
        Step("tables", ("-m", "benchmarks.tables"), "the tables of benchmarks.md, nano.md and long_videos.md in docs/"),
        Step(
            "tests",
            ("-m", "pytest", "-q", "tests/editverse_rt/test_nano_bundle.py", "tests/editverse_rt/test_nano_frames.py",
             "tests/editverse_rt/test_vectors.py", "tests/benchmarks/test_tables.py", "tests/test_documentation.py"),
            "nothing; fails where what ships does not fit together",
        ),
    ]  # fmt: skip
    return steps if run is not None else steps[1:]


def remake(steps: Sequence[Step], work: Path, start: str | None = None) -> None:
    """Run the steps that WORK/done.json does not name. start: the step from which on all are run again.

    Raises ValueError for a step that there is not, CalledProcessError for one that failed.
    """
    names = [step.name for step in steps]
    path = work / "done.json"
    done: list[str] = json.loads(path.read_text()) if path.exists() else []
    if start is not None:
        if start not in names:
            raise ValueError(f"--from {start!r}; expected one of {', '.join(names)}")
        done = [name for name in done if name in names[: names.index(start)]]
    work.mkdir(parents=True, exist_ok=True)
    for number, step in enumerate(steps, 1):
        if step.name in done:
            continue
        print(f"[{number} of {len(steps)}] {step.name}: {' '.join(step.words)}", flush=True)
        subprocess.run([sys.executable, *step.words], cwd=ROOT, check=True)
        done.append(step.name)
        path.write_text(json.dumps(done) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--run", type=Path, help="a training run, which becomes the checkpoint")
    parser.add_argument("--from", dest="start", metavar="STEP", help="repeat this step and those behind it")
    parser.add_argument(
        "--without-timings", action="store_true", help="leave out the benchmarks that want a quiet machine"
    )
    parser.add_argument("--list", action="store_true", help="print the steps and what they bring")
    args = parser.parse_args()
    work = args.work.absolute()
    # Results note their commands, which are not to name the folders of a machine.
    steps = list_steps(Path(os.path.relpath(work, ROOT)), None if args.run is None else args.run.absolute())
    if args.without_timings:
        steps = [step for step in steps if not step.is_timing]
    if args.list:
        for step in steps:
            print(f"{step.name}: {' '.join(step.words)}\n    {step.brings}")
        return 0
    try:
        remake(steps, work, args.start)
    except (ValueError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("done; look at `git diff`, and write what changed into docs/nano.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
