"""Render the sample video that `make demo` edits: `python examples/make_sample.py examples/sample.mp4`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from editverse_rt import media
from reference.nano.world import Background, Canvas, Scene, Thing, render

SCENE = Scene(
    Background("leaves", seed=6),
    (
        Thing("circle", "red", 0.24, (0.34, 0.24), (0.004, 0.020)),
        Thing("square", "blue", 0.19, (0.74, 0.82), (-0.004, -0.004)),
    ),
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Render the sample video that `make demo` edits.")
    parser.add_argument("out", type=Path, metavar="OUT")
    media.write_clip(parser.parse_args().out, render(SCENE, Canvas(17, 48, 80)), fps=8.0)
