"""What ONNX Runtime's sessions hold beside their weights: once for all of them, and given back at the end."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Two runners decode a large picture one after the other, and both end. Prints MB: what the first run added,
# what the second did, and what is left of it all.
SCRIPT = """
import resource

import numpy as np
from pathlib import Path
from editverse_rt.backends import select_backend
from editverse_rt.bundle.manifest import load_bundle

def held_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6

bundle = load_bundle("nano")
backend = select_backend("ort-cpu", bundle).backend
small = np.zeros((1, 2, 2, bundle.spec.geometry.patch_dim), np.float32)
large = np.zeros((1, 48, 48, bundle.spec.geometry.patch_dim), np.float32)
with backend.open_runner(bundle, 1) as one, backend.open_runner(bundle, 1) as other:
    for runner in (one, other):
        runner.run("vae_decoder_first", {"patches": small})
    held = [held_mb()]
    for runner in (one, other):
        runner.run("vae_decoder_first", {"patches": large})
        held.append(held_mb())
held.append(held_mb())
print(held[1] - held[0], held[2] - held[1], held[3] - held[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_sessions_share_what_they_need_while_they_run_and_give_it_back() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    first, second, left = map(float, done.stdout.split())
    assert first > 100  # 768x768 pixels
    assert second < first / 4
    assert left < first / 4
