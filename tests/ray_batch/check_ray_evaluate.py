"""A benchmark's edits over two nodes of a Ray cluster on this machine, held to a queue's. `make test-ray`."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ray.cluster_utils import Cluster

from editverse_rt import media
from editverse_rt.cluster import ClusterOptions
from editverse_rt.errors import BackendError, RequestError
from editverse_rt.evaluate.benchmarks import BENCHMARKS, Benchmark
from editverse_rt.evaluate.clips import write_pictures
from editverse_rt.evaluate.editing import Edited, EditingOptions, edit_missing
from editverse_rt.pipeline import Pipeline

FOLDER = BENCHMARKS["folder"]
TGVE = replace(BENCHMARKS["tgve"], size=None)
STEPS = EditingOptions(num_inference_steps=2)
PROMPT = "Make it grayscale"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos, folders of pictures, and a file that is neither, in the layouts of two benchmarks."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    clips = [np.broadcast_to(rng.integers(0, 256, (1, 1, 1, 3), np.uint8), (5, 48, 80, 3)) for _ in range(4)]
    media.write_clip(folder / "a.mp4", clips[0], 8.0)
    media.write_clip(folder / "b.mp4", clips[1], 8.0)
    write_pictures(folder / "frames", clips[2])
    (folder / "bad.mp4").write_bytes(b"no video")
    names = ["a.mp4", "b.mp4", "frames", "bad.mp4"]
    lines = [json.dumps({"instruction": PROMPT, "inputs": {"video1": name}}) for name in names]
    (folder / "items.jsonl").write_text("\n".join(lines), "utf-8")
    write_pictures(folder / "DAVIS/480p_frames/stunt", clips[3])
    kinds = ("Style Change", "Object Change", "Background Change", "Multiple Changes")
    header = "Video name,Our GT caption," + ",".join(f"{kind} Caption" for kind in kinds)
    row = f"stunt,a,{PROMPT},{PROMPT},{PROMPT},"
    (folder / "t.csv").write_text(f"{header}\nDAVIS Videos:,,,,,\n{row}\n", "utf-8")
    return folder


def edit(
    benchmark: Benchmark,
    data: Path,
    results: Path,
    cluster: ClusterOptions | None = None,
    options: EditingOptions = STEPS,
) -> Edited:
    with Pipeline.open("nano", "ort-cpu", num_threads=1) as pipeline:
        items = benchmark.load(data).items
        return edit_missing(benchmark, items, results, pipeline, options, cluster=cluster)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("benchmark", [FOLDER, TGVE], ids=["files", "folders"])
def test_results_are_those_of_the_queue_and_either_goes_on(
    cluster: Cluster, data: Path, tmp_path: Path, benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ClusterOptions(cluster.address, open_options={"num_threads": 1})
    alone = edit(benchmark, data, tmp_path / "queue")
    spread = edit(benchmark, data, Path("cluster"), options)
    expected = files_in(tmp_path / "queue")
    assert files_in(tmp_path / "cluster") == expected
    assert spread.num_edited == alone.num_edited == 3
    assert spread.problems == alone.problems
    assert list(alone.problems) == (["0004"] if benchmark is FOLDER else [])
    assert spread.num_at_once == 2
    assert spread.made_with is not None
    assert spread.made_with["backend"] == "ort-cpu"
    # What is missing is made, by whichever.
    for out, others in (("queue", options), ("cluster", None)):
        result = benchmark.result(tmp_path / out, benchmark.load(data).items[0])
        if result.is_dir():
            shutil.rmtree(result)
        else:
            result.unlink()
        assert edit(benchmark, data, tmp_path / out, others).num_edited == 1
        assert files_in(tmp_path / out) == expected
    with pytest.raises(RequestError, match="other options"):
        edit(benchmark, data, tmp_path / "queue", options, replace(STEPS, seed=1))


def test_a_pipeline_that_cannot_be_opened_ends_the_run(cluster: Cluster, data: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot be opened on a node"):
        edit(FOLDER, data, tmp_path / "out", ClusterOptions(cluster.address, backend="no-such-backend"))
