"""Schedules held to many steps where there are many right answers: rows, table and gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import variety
from benchmarks.results import read_results
from reference.checkpoint import make_random_checkpoint
from reference.weights import read_json, write_json

TINY = {"width": 32, "num_blocks": 1, "num_heads": 1, "head_dim": 64, "mlp_width": 32, "time_width": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_checkpoint(
        "nano", tmp_path_factory.mktemp("tiny") / "checkpoint", transformer_overrides=TINY,
        vae_overrides={"base_dim": 4, "dim_mult": [1, 1, 1]},
    )  # fmt: skip


def test_the_rows_say_what_was_sampled(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = [str(folder), "--images", "3", "--clips", "2", "--out", str(tmp_path / "variety.json")]
    assert variety.main([*words, "--schedule", "euler-2 guidance 1", "ab2-3 shift 0.5 guidance 1"]) == 0
    results = read_results(tmp_path / "variety.json")
    assert [row["evaluations"] for row in results.rows] == [50, 2, 3]
    assert results.facts["samples"] == {"images": 3, "clips": 2}
    first = results.rows[0]
    assert first["kept"]
    assert first["images"]["rmse"] == first["clips"]["rmse"] == 0
    assert results.rows[1]["images"]["rmse"] > 0
    assert set(results.facts["real_frechet"]) == {"images", "clips"}
    assert "| euler-50 guidance 1 | 50 |" in capsys.readouterr().out


def test_real_clips_may_be_files_and_a_distilled_checkpoint_has_a_row(folder: Path, tmp_path: Path):
    rng = np.random.default_rng(0)
    real = tmp_path / "real"
    real.mkdir()
    for index in range(3):
        np.save(real / f"{index}.npy", rng.integers(0, 256, (1, 32, 48, 3), np.uint8))
    distilled = tmp_path / "twostep"
    distilled.mkdir()
    for part in folder.iterdir():
        if part.name != "scheduler":
            (distilled / part.name).symlink_to(part)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    scheduler |= {"num_inference_steps": 2, "guidance_scale": 1.0, "is_fixed": True}
    write_json(distilled / "scheduler" / "scheduler_config.json", scheduler)
    words = [str(folder), "--real", str(real), "--out", str(tmp_path / "variety.json")]
    assert variety.main([*words, "--schedule", "euler-2 guidance 1", "--distilled", str(distilled)]) == 0
    rows = read_results(tmp_path / "variety.json").rows
    assert [row["schedule"] for row in rows] == ["euler-50 guidance 1", "euler-2 guidance 1", "twostep"]
    # The same weights, sampled in the same two steps.
    assert rows[1]["images"] == rows[2]["images"]


def test_a_schedule_that_is_none_ends_the_command(folder: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        variety.main([str(folder), "--images", "2", "--clips", "2", "--schedule", "heun-3 backwards"])
    assert "is no schedule" in capsys.readouterr().err
