"""Verification against ort-cpu: what passes, what does not, and the stamp."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from editverse_rt import verify
from editverse_rt.bundle import Bundle
from editverse_rt.cli import main
from editverse_rt.engine import EngineSet, PlanSpec, is_verified
from editverse_rt.errors import BackendError
from editverse_rt.verify import compare_frames, make_clip, verify_backend


def test_ort_cpu_is_what_it_is_held_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--backend", "ort-cpu", "--num-inference-steps", "1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["psnr_db"], facts["share_beyond_one_level"], facts["stamps"]) == (99.0, 0.0, [])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--backend", "none"], "there is no backend"),
        (["absent", "--backend", "ort-cpu"], "no such folder"),
        ([], "--backend"),
    ],
)
def test_bad_input_is_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", *argv]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_distances_by_hand() -> None:
    expected = np.full((1, 2, 2, 3), 100, np.uint8)
    found = expected.copy()
    assert compare_frames(found, expected) == (99.0, 0.0)
    found[0, 0, 0] = 110
    psnr_db, share = compare_frames(found, expected)
    assert psnr_db == pytest.approx(10 * math.log10(255**2 / 25.0))
    assert share == 0.25
    # Differences must not wrap around at 255.
    assert compare_frames(np.zeros_like(expected), np.full_like(expected, 255))[0] == 0.0


def test_the_clip_moves_and_is_always_the_same() -> None:
    clip = make_clip(5, 48, 64)
    assert (clip.shape, clip.dtype) == ((5, 48, 64, 3), np.uint8)
    assert (clip == make_clip(5, 48, 64)).all()
    assert all((a != b).any() for a, b in itertools.pairwise(clip))


@pytest.mark.parametrize(("noise", "passes"), [(2, True), (80, False)])
def test_plans_get_their_stamp_only_when_they_come_close(
    fake_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: int, passes: bool
) -> None:
    plan = PlanSpec("transformer", "bf16", "transformer-bf16.plan", 1, "0" * 64, "0" * 64, "k", ())
    engines = EngineSet(tmp_path, "tensorrt-rtx", "1.7.1", ("8.9",), "", (plan,))

    class FakePipeline:
        def __init__(self, bundle: object, backend: str, **options: Any) -> None:
            self.is_plan = backend == "tensorrt-rtx"
            assert self.is_plan == options.get("allow_unverified", False)
            self.engines, self.gpu = (engines if self.is_plan else None), "a GPU"

        open = classmethod(lambda cls, *args, **options: cls(*args, **options))

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *rest: object) -> None:
            pass

        def __call__(self, prompt: str, **options: Any) -> Any:
            self.frames = options["video1"] // 2 + (noise if self.is_plan else 0)
            return self

    monkeypatch.setattr(verify, "Pipeline", FakePipeline)
    if not passes:
        with pytest.raises(BackendError, match=r"dB from ort-cpu, at least 20.0 is expected of bf16"):
            verify_backend(fake_bundle.root, "tensorrt-rtx")
        assert not is_verified(engines, "a GPU")
        return
    found = verify_backend(fake_bundle.root, "tensorrt-rtx")
    assert found.stamps == (str(tmp_path / "verified.json"),)
    assert found.psnr_db > 40
    assert is_verified(engines, "a GPU")
