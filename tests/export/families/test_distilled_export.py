"""A distilled EditVerse checkpoint: one schedule whose steps are fixed, in the export and in a request."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from editverse_rt.bundle.manifest import load_bundle, write_bundle_json
from editverse_rt.errors import RequestError
from editverse_rt.pipeline import Pipeline
from export.families import family_export
from export.families.editverse import DISTILLED_SCHEDULE
from reference.checkpoint import load_checkpoint, make_random_checkpoint
from reference.weights import read_json, write_json

TINY = {"width": 32, "num_blocks": 1, "num_heads": 1, "head_dim": 64, "mlp_width": 32, "time_width": 16}


@pytest.mark.parametrize("steps", [1, 2])
def test_a_distilled_checkpoint_has_its_steps_alone(tmp_path: Path, steps: int):
    folder = make_random_checkpoint(
        "nano", tmp_path / "checkpoint", transformer_overrides=TINY,
        vae_overrides={"base_dim": 4, "dim_mult": [1, 1, 1]},
    )  # fmt: skip
    path = folder / "scheduler" / "scheduler_config.json"
    write_json(
        path, read_json(path) | {"num_inference_steps": steps, "guidance_scale": 1.0, "is_fixed": True}
    )
    family = family_export(load_checkpoint(folder))
    schedules, default = family.schedules()
    assert list(schedules) == [default] == [DISTILLED_SCHEDULE]
    schedule = schedules[default]
    assert schedule.is_fixed
    assert schedule.table.times == tuple(index / steps for index in range(steps))
    assert schedule.table.num_evaluations == steps
    assert not any(graph.startswith("schedule_") for graph in family.graphs())
    # A bundle that carries it runs its steps, and no others.
    nano = load_bundle("nano")
    shutil.copytree(nano.root, tmp_path / "bundle")
    spec = dataclasses.replace(nano.spec, schedules=schedules, default_schedule=default)
    write_bundle_json(tmp_path / "bundle", spec)
    with Pipeline.open(str(tmp_path / "bundle"), num_threads=1) as pipeline:
        result = pipeline("A red circle", num_frames=1, size=(48, 64))
        assert result.frames.shape == (1, 48, 64, 3)
        with pytest.raises(RequestError, match=f"its {steps} steps, whose noise levels are fixed"):
            pipeline("A red circle", num_frames=1, size=(48, 64), num_inference_steps=4)
