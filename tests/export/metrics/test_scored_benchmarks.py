"""Benchmarks scored with metric models: random ones, which are labelled so in every report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from editverse_rt.evaluate.benchmarks import BENCHMARKS
from editverse_rt.evaluate.clips import read_clip_stored, write_pictures
from editverse_rt.evaluate.features import MetricModels
from editverse_rt.evaluate.metrics import ClipToScore, score_clip
from editverse_rt.evaluate.report import table_from_report
from editverse_rt.evaluate.runner import RunOptions, choose_items, run_benchmark
from export.metrics.__main__ import export_metrics
from export.metrics.random_models import write_random_clip


def test_tgve_is_scored_at_its_size_with_the_models_there_are(tmp_path: Path) -> None:
    clip = write_random_clip(tmp_path / "clip", seed=0)
    folder = export_metrics(tmp_path / "metrics", clip=clip, is_random=True)
    data, results = tmp_path / "data", tmp_path / "results"
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (3, 60, 60, 3), np.uint8)
    write_pictures(data / "DAVIS_480p/480p_frames/stunt", small)
    write_pictures(results / "DAVIS_480p/stunt/style", small)
    (data / "captions.csv").write_text(
        "Video name,Our GT caption,Style Change Caption\nDAVIS Videos:,,\nstunt,a man,a man in anime\n",
        encoding="utf-8",
    )
    benchmark = BENCHMARKS["tgve"]
    chosen = choose_items(benchmark, data)
    assert len(chosen.catalogue.problems) == 3
    with MetricModels.open(folder, "ort-cpu", num_threads=1) as models:
        report = run_benchmark(benchmark, chosen, RunOptions(results, tmp_path / "out"), models=models)
        frames = models.resize(read_clip_stored(results / "DAVIS_480p/stunt/style"), 480, 480)
        names = ["tgve_clip_frame", "tgve_clip_score"]
        expected = score_clip(models, ClipToScore(frames, "a man in anime"), names)
    (item,) = report["items"]
    assert item["notes"]["size"] == "resized from 60x60 to 480x480"
    assert report["left_out"] == ["tgve_pick"]
    assert set(report["metrics"]) == set(names)
    for name in names:
        assert item["values"][name] == pytest.approx(expected[name].value, abs=1e-9)
        assert report["metrics"][name]["random"]
    assert "CLIPFrame (random)" in table_from_report(report)
    assert report["models"]["random"]
