"""Render the sample video that `make demo` edits: `python examples/make_sample.py examples/sample.mp4`."""

from __future__ import annotations

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
    frames = render(SCENE, Canvas(17, 48, 80))
    media.write_clip(sys.argv[1], frames, fps=8.0)
