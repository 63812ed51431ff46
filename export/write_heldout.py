"""`python -m export.write_heldout BUNDLE`: put held-out edits into a bundle, for `editverse-rt verify`.

They are the first of each task and kind of those that `export.quality` scores, with their right answers and
the rule of judging. The runtime imports neither: `editverse_rt/quality/heldout.py` reads both from there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python export/write_heldout.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from editverse_rt.bundle.manifest import Bundle, load_bundle, write_bundle_json
from editverse_rt.bundle.spec import FileSpec
from editverse_rt.errors import EditVerseError
from editverse_rt.quality.heldout import HELDOUT_FILE
from reference.nano.heldout import CHANGED_LEVELS, MIN_PRESERVED_DB, MIN_REGION_SHARE, heldout_samples
from reference.nano.tasks import Sample

__all__ = ["main", "write_heldout"]


def write_heldout(bundle: Bundle, samples: Iterable[Sample]) -> Path:
    """Write the edits into a bundle's folder and list the file in its bundle.json; returns the file."""
    clips: dict[str, Any] = {}
    edits = []
    for index, sample in enumerate(samples):
        clips[f"{index}/target"] = sample.target
        clips |= {f"{index}/{name}": clip for name, clip in sample.inputs.items()}
        edits.append(
            {
                "task": sample.task,
                "prompt": sample.prompt,
                "inputs": list(sample.inputs),
                "source": sample.source,
            }
        )
    rule = {
        "changed_levels": CHANGED_LEVELS,
        "min_preserved_db": MIN_PRESERVED_DB,
        "min_region_share": MIN_REGION_SHARE,
    }
    facts = np.frombuffer(json.dumps({"rule": rule, "edits": edits}).encode(), np.uint8)
    path = bundle.root / HELDOUT_FILE
    partial = path.with_name(f"{HELDOUT_FILE}.partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, facts=facts, **clips)
    os.replace(partial, path)
    others = tuple(file for file in bundle.spec.files if file.path != HELDOUT_FILE)
    content = path.read_bytes()
    written = FileSpec(HELDOUT_FILE, len(content), hashlib.sha256(content).hexdigest())
    files = tuple(sorted((*others, written), key=lambda file: file.path))
    write_bundle_json(bundle.root, replace(bundle.spec, files=files))
    return path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export.write_heldout",
        description="Put held-out edits with their right answers into a bundle, for `editverse-rt verify`.",
        epilog="example: python -m export.write_heldout bundles/nano",
        allow_abbrev=False,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="its folder, or the name of one that ships")
    parser.add_argument(
        "--per-kind", type=int, default=1, metavar="N", help="edits of each task and kind (default: 1)"
    )
    args = parser.parse_args(argv)
    if args.per_kind < 1:
        parser.error("--per-kind takes 1 or more")
    try:
        path = write_heldout(load_bundle(args.bundle), heldout_samples(args.per_kind))
    except EditVerseError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
