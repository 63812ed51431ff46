"""Verification against ort-cpu: what passes, what does not, and the stamp."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from editverse_rt.backends import RunnerTraits
from editverse_rt.bundle.manifest import Bundle, file_specs, load_bundle, write_bundle_json
from editverse_rt.commands.main import main
from editverse_rt.engines.manifest import EngineSet, PlanSpec
from editverse_rt.engines.stamps import is_verified
from editverse_rt.errors import BackendError, RequestError
from editverse_rt.quality import verify
from editverse_rt.quality.heldout import HELDOUT_FILE
from editverse_rt.quality.verify import make_clip, verify_backend

NUM_EDITS = 10
SOURCE = np.full((1, 32, 32, 3), 60, np.uint8)
TARGET = np.full((1, 32, 32, 3), 160, np.uint8)


def test_ort_cpu_is_what_it_is_held_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--backend", "ort-cpu", "--num-inference-steps", "1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["median_db"], facts["least_db"], facts["stamps"]) == (99.0, 99.0, [])
    assert len(facts["edits"]) >= 3


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--backend", "none"], "there is no backend"),
        (["absent", "--backend", "ort-cpu"], "no such folder"),
        ([], "--backend"),
        (["--backend", "ort-cpu", "--reference", "absent"], "no such folder"),
        (["--backend", "ort-cpu", "--cuda-graphs"], "--cuda-graphs is not taken by ort-cpu; leave it out"),
        (["--backend", "ort-cpu", "--device", "0", "--plugin", "x.so"], "--device is not taken by ort-cpu"),
        (["--backend", "ort-cpu", "--gpu-memory-limit", "1GB"], "--gpu-memory-limit is not taken by ort-cpu"),
        (["--backend", "ort-cpu", "--device", "-1"], "a GPU's number of 0 or more is expected"),
        (["--backend", "ort-cpu", "--weight-budget", "2 apples"], "as in 2GB, 500MB or 0"),
    ],
)
def test_bad_input_is_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", *argv]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_the_clip_moves_and_is_always_the_same() -> None:
    clip = make_clip(5, 48, 64)
    assert (clip.shape, clip.dtype) == ((5, 48, 64, 3), np.uint8)
    assert (clip == make_clip(5, 48, 64)).all()
    assert all((a != b).any() for a, b in itertools.pairwise(clip))


@pytest.fixture
def engines(tmp_path: Path) -> EngineSet:
    plan = PlanSpec("transformer", "bf16", "transformer-bf16.plan", 1, "0" * 64, "0" * 64, "k", ())
    return EngineSet(tmp_path, "tensorrt-rtx", "1.7.1", ("8.9",), "", (plan,))


@pytest.fixture
def play(engines: EngineSet, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, Any], list[Any]]:
    """Let two functions of (number of the edit, its source) play the backend and ort-cpu."""

    def set_up(on_backend: Any, on_cpu: Any) -> list[Any]:
        asked: list[Any] = []

        class FakePipeline:
            def __init__(self, bundle: object, backend: str, **options: Any) -> None:
                self.is_plan = backend == "tensorrt-rtx"
                assert self.is_plan == options.get("allow_unverified", False)
                plans = [plan.precision for plan in engines.plans] if self.is_plan else ["fp32"]
                self.traits = RunnerTraits(
                    precisions=frozenset(plans), gpu="a GPU", engines=engines if self.is_plan else None
                )
                self.count = 0

            open = classmethod(lambda cls, *args, **options: cls(*args, **options))

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *rest: object) -> None:
                pass

            def __call__(self, prompt: str, **options: Any) -> Any:
                asked.append((prompt, options))
                source = options.get("video1")
                source = options["image1"][None] if source is None else source
                self.frames = (on_backend if self.is_plan else on_cpu)(self.count, source)
                self.count += 1
                return self

        monkeypatch.setattr(verify, "Pipeline", FakePipeline)
        return asked

    return set_up


@pytest.fixture
def judged(fake_bundle: Bundle) -> Bundle:
    """A bundle that carries ten edits: dark becomes bright."""
    edit = {"task": "brighten", "prompt": "<image1> Brighten", "inputs": ["image1"], "source": "image1"}
    rule = {"changed_levels": 16, "min_preserved_db": 22.0, "min_region_share": 0.02}
    facts = json.dumps({"rule": rule, "edits": [edit] * NUM_EDITS}).encode()
    clips = {f"{i}/{name}": clip for i in range(NUM_EDITS) for name, clip in
             (("image1", SOURCE), ("target", TARGET))}  # fmt: skip
    content = io.BytesIO()
    np.savez_compressed(content, facts=np.frombuffer(facts, np.uint8), **clips)
    (fake_bundle.root / HELDOUT_FILE).write_bytes(content.getvalue())
    (fake_bundle.root / "bundle.json").unlink()
    write_bundle_json(fake_bundle.root, replace(fake_bundle.spec, files=file_specs(fake_bundle.root)))
    return load_bundle(fake_bundle.root)


@pytest.mark.parametrize(("noise", "passes"), [(2, True), (80, False)])
def test_plans_get_their_stamp_only_when_they_come_close(
    fake_bundle: Bundle, engines: EngineSet, play: Any, noise: int, passes: bool
) -> None:
    asked = play(lambda number, source: source // 2 + noise, lambda number, source: source // 2)
    if not passes:
        with pytest.raises(BackendError, match=r"10\.1 dB from ort-cpu in the median, 35 are expected"):
            verify_backend(fake_bundle.root, "tensorrt-rtx")
        assert not is_verified(engines, "a GPU")
        return
    found = verify_backend(fake_bundle.root, "tensorrt-rtx")
    assert found.stamps == (str(engines.folder / "verified.json"),)
    assert found.least_db > 40
    assert is_verified(engines, "a GPU")
    # No right answers are known: a few steps do, and no rate is claimed.
    assert {options["num_inference_steps"] for _, options in asked} == {4}
    assert found.success() == {}
    assert {edit.task for edit in found.edits} == {"video", "image", "both"}


@pytest.mark.parametrize("facts", [{"attention": "plugin"}, {"dtype": "bfloat16"}])
def test_a_bundle_that_ort_cpu_cannot_run_is_held_to_another_export(
    facts: dict[str, Any],
    fake_bundle: Bundle,
    judged: Bundle,
    engines: EngineSet,
    play: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = play(lambda number, source: TARGET, lambda number, source: TARGET)
    can = replace(judged.spec.capabilities, **facts)
    special = Bundle(fake_bundle.root, replace(judged.spec, capabilities=can, files=()))
    bundles = {"special": special, "standard": judged}
    monkeypatch.setattr(verify, "load_bundle", lambda name: bundles[name])
    with pytest.raises(RequestError, match=r"ort-cpu cannot run .* name that bundle as the reference"):
        verify_backend("special", "tensorrt-rtx")
    assert asked == [], "refused before anything ran"
    found = verify_backend("special", "tensorrt-rtx", reference="standard")
    assert found.report()["reference"] == judged.spec.name
    # The right answers come with the reference where the bundle has none.
    assert found.success()["success_rate_on_cpu"] == 1.0
    assert is_verified(engines, "a GPU")


@pytest.mark.parametrize("part", ["model", "geometry", "schedule"])
def test_a_reference_of_another_model_is_refused(
    part: str, judged: Bundle, play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = play(lambda number, source: TARGET, lambda number, source: TARGET)
    name = judged.spec.default_schedule
    table = judged.spec.schedules["interval"].table
    changes: dict[str, Any] = {
        "model": {**judged.spec.model, "parameters": 1},
        "geometry": replace(judged.spec.geometry, default_fps=7.0),
        "schedules": {name: judged.spec.schedules[name].with_table(table)},
    }
    (field,) = (field for field in changes if field.startswith(part))
    other = Bundle(judged.root, replace(judged.spec, **{field: changes[field]}))
    monkeypatch.setattr(verify, "load_bundle", lambda name: {"own": judged, "other": other}[name])
    said = rf"has another {part} than .*; name an export of the same checkpoint"
    with pytest.raises(RequestError, match=said):
        verify_backend("own", "tensorrt-rtx", reference="other")
    assert asked == []


def test_the_quality_report_of_held_out_edits(
    judged: Bundle, engines: EngineSet, play: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def result(number: int, source: np.ndarray) -> np.ndarray:
        return TARGET if number < 7 else SOURCE

    asked = play(lambda number, source: result(number, source) + 1, result)
    assert main(["verify", str(judged.root), "--backend", "tensorrt-rtx"]) == 0
    out = capsys.readouterr().out
    assert "brighten                10      7           7" in out
    assert "48.1 dB in the median, of at least 35" in out
    assert {options["num_inference_steps"] for _, options in asked} == {None}
    assert len(asked) == 2 * NUM_EDITS
    stamp = json.loads((engines.folder / "verified.json").read_text())
    assert stamp["quality"]["success_rate"] == stamp["quality"]["success_rate_on_cpu"] == 0.7
    assert len(stamp["quality"]["edits"]) == NUM_EDITS


def test_one_edit_that_is_far_away_is_named(judged: Bundle, engines: EngineSet, play: Any) -> None:
    play(lambda number, source: SOURCE if number == 4 else TARGET, lambda number, source: TARGET)
    with pytest.raises(BackendError, match=r"8\.1 dB from ort-cpu in brighten, 20 are expected"):
        verify_backend(judged.root, "tensorrt-rtx")


def test_a_backend_that_is_right_less_often_is_refused(judged: Bundle, engines: EngineSet, play: Any) -> None:
    # 110 is the middle between source and right answer: four levels decide, 36 dB apart.
    def with_losses(count: int) -> Any:
        return lambda number, source: np.full_like(TARGET, 108 if number < count else 112)

    def on_cpu(number: int, source: np.ndarray) -> np.ndarray:
        return np.full_like(TARGET, 112)

    play(with_losses(1), on_cpu)
    assert verify_backend(judged.root, "tensorrt-rtx").num_lost == 1
    play(with_losses(2), on_cpu)
    with pytest.raises(BackendError, match="right in 2 of 10 edits less than ort-cpu"):
        verify_backend(judged.root, "tensorrt-rtx")
