"""A batch over two nodes of a Ray cluster on this machine, held to the same batch without Ray. `make test-ray`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from editverse_rt.batch.folder import BatchFolder
from editverse_rt.batch.ray_batch import RowRunner, open_actors, run_ray_batch
from editverse_rt.batch.rows import read_manifest
from editverse_rt.batch.running import BatchReport, run_batch
from editverse_rt.commands.main import main
from editverse_rt.errors import BackendError
from editverse_rt.pipeline import Pipeline


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rows: list[Any] = [
        {"id": f"row{seed}", "prompt": "A red circle", "num_frames": 1, "seed": seed, "schedule": "fast"}
        for seed in range(6)
    ]
    rows += [{"id": "bad", "prompt": "A red circle", "schedule": "none"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def run_on(manifest: Path, out: Path) -> BatchReport:
    rows, failures = read_manifest(manifest)
    with BatchFolder(out) as folder:
        return run_ray_batch(rows, folder, failures=failures, open_options={"num_threads": 1})


def results_in(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.png")}


def test_an_actor_stands_on_each_node(cluster: Cluster) -> None:
    class Where(RowRunner):
        def __init__(self, *_: Any) -> None: ...

        def node(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("editverse_rt.batch.ray_batch.RowRunner", Where)
        actors = open_actors(ray, "nano", "auto", {})
    found = ray.get([actor.node.remote() for actor in actors])
    for actor in actors:
        ray.kill(actor)
    assert sorted(found) == sorted(node["NodeID"] for node in ray.nodes())
    assert len(set(found)) == 2


def test_results_are_those_without_ray_and_each_is_made_once(
    cluster: Cluster, manifest: Path, tmp_path: Path
) -> None:
    rows, failures = read_manifest(manifest)
    with Pipeline.open("nano", num_threads=1) as pipeline, BatchFolder(tmp_path / "alone") as folder:
        run_batch(pipeline, rows[:2], folder, failures=failures)
    before = results_in(tmp_path / "alone")
    assert len(before) == 2
    # Goes on where the run without Ray was.
    report = run_on(manifest, tmp_path / "alone")
    assert (report.num_done, report.num_found, [f.id for f in report.failures]) == (6, 2, ["bad"])
    assert report.failures[0].to_json()["code"].startswith("request")
    whole = run_on(manifest, tmp_path / "ray")
    assert (whole.num_done, whole.num_found) == (6, 0)
    assert results_in(tmp_path / "ray") == results_in(tmp_path / "alone")
    assert before.items() <= results_in(tmp_path / "ray").items()
    assert run_on(manifest, tmp_path / "ray").num_found == 6


def test_a_process_that_ends_is_started_again_and_its_row_is_made(
    cluster: Cluster, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "ended"

    class Ending(RowRunner):
        def run(self, row: Any, folder: str) -> Exception | None:
            if row.id == "row3" and not mark.exists():
                mark.touch()
                os._exit(1)
            return super().run(row, folder)

    monkeypatch.setattr("editverse_rt.batch.ray_batch.RowRunner", Ending)
    report = run_on(manifest, tmp_path / "out")
    assert mark.exists()
    assert (report.num_done, [f.id for f in report.failures]) == (6, ["bad"])


def test_the_command_takes_an_address(
    cluster: Cluster, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["batch", str(manifest), "-o", str(tmp_path / "out"), "--ray", cluster.address, "--threads", "1"]
    assert main([*words, "--workers", "2"]) == 2
    assert "--workers is given with --ray" in capsys.readouterr().err
    assert main([*words, "--quiet"]) == 2
    assert "1 of 7 failed, bad first" in capsys.readouterr().err
    assert len(results_in(tmp_path / "out")) == 6


def test_a_pipeline_that_cannot_be_opened_ends_the_batch(
    cluster: Cluster, manifest: Path, tmp_path: Path
) -> None:
    rows, _ = read_manifest(manifest)
    with (
        BatchFolder(tmp_path / "out") as folder,
        pytest.raises(BackendError, match="cannot be opened on a node"),
    ):
        run_ray_batch(rows, folder, backend="no-such-backend")
