"""A batch over two nodes of a Ray cluster on this machine, held to the same batch without Ray. `make test-ray`.

The driver is killed with -9 in the middle, and the same command is given again, at once and later.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from processes import find_processes
from ray.cluster_utils import Cluster

from editverse_rt.batch.folder import BatchFolder
from editverse_rt.batch.ray_batch import RowRunner, run_ray_batch
from editverse_rt.batch.rows import read_manifest
from editverse_rt.batch.running import BatchReport, run_batch
from editverse_rt.cluster import ClusterOptions, open_actors
from editverse_rt.commands.main import main
from editverse_rt.errors import BackendError, MediaError
from editverse_rt.pipeline import Pipeline

PATIENCE_S = 240.0
OPTIONS = ClusterOptions(open_options={"num_threads": 1})


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
        return run_ray_batch(rows, folder, OPTIONS, failures=failures)


def results_in(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.png")}


def test_an_actor_stands_on_each_node(cluster: Cluster) -> None:
    class Where(RowRunner):
        def __init__(self, *_: Any) -> None: ...

        def node(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

    actors = open_actors(ray, Where, (), OPTIONS)
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
        def run(self, row: Any) -> Exception | None:
            if row.id == "row3" and not mark.exists():
                mark.touch()
                os._exit(1)
            return super().run(row)

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
        pytest.raises(
            BackendError, match=r"cannot be opened on a node .*no backend .no-such-backend"
        ) as caught,
    ):
        run_ray_batch(rows, folder, ClusterOptions(backend="no-such-backend"))
    assert "\n" not in str(caught.value)


def test_a_row_whose_process_ends_each_time_has_failed(
    cluster: Cluster, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ending(RowRunner):
        def run(self, row: Any) -> Exception | None:
            if row.id == "row3":
                os._exit(1)
            return super().run(row)

    monkeypatch.setattr("editverse_rt.batch.ray_batch.RowRunner", Ending)
    report = run_on(manifest, tmp_path / "out")
    codes = {failure.id: failure.to_json()["code"] for failure in report.failures}
    assert (report.num_done, codes["row3"], set(codes)) == (5, "backend.process", {"row3", "bad"})


def test_a_result_that_an_actor_cannot_write_ends_the_batch(
    cluster: Cluster, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unwritable(RowRunner):
        def run(self, row: Any) -> Exception | None:
            return MediaError("the disk is full", code="media.unwritable")

    monkeypatch.setattr("editverse_rt.batch.ray_batch.RowRunner", Unwritable)
    with pytest.raises(MediaError, match="the disk is full"):
        run_on(manifest, tmp_path / "out")
    assert not results_in(tmp_path / "out")


def wait_until(condition: Any, text: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, text
        time.sleep(0.02)


def start_driver(rows: Path, out: Path, address: list[str]) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "editverse_rt", "batch", str(rows), "-o", str(out), "--threads", "1"]
    return subprocess.Popen([*words, "--quiet", "--ray", *address], stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def slow_rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A manifest of rows of some seconds each, and their results without Ray."""
    folder = tmp_path_factory.mktemp("slow")
    rows = [
        {
            "id": f"row{seed}",
            "prompt": "A red circle",
            "num_frames": 1,
            "seed": seed,
            "num_inference_steps": 300,
        }
        for seed in range(8)
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert main(["batch", str(path), "-o", str(folder / "alone"), "--threads", "1", "--quiet"]) == 0
    return path, results_in(folder / "alone")


@pytest.mark.parametrize("how", ["later", "at once", "on this machine"])
def test_after_a_kill_of_the_driver_every_row_is_made_once(
    request: pytest.FixtureRequest, slow_rows: tuple[Path, dict[str, bytes]], tmp_path: Path, how: str
) -> None:
    rows, expected = slow_rows
    out = tmp_path / "out"
    address = [] if how == "on this machine" else [request.getfixturevalue("cluster").address]
    raylets = set(find_processes(b"raylet"))
    driver = start_driver(rows, out, address)
    wait_until(lambda: driver.poll() is not None or len(results_in(out)) >= 2, "no result has come")
    assert driver.poll() is None
    assert find_processes(b"ray::RowRunner")
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    if how != "at once":
        # Ray ends the actors of a driver that is gone, and none of them writes after that.
        wait_until(lambda: not find_processes(b"ray::RowRunner"), "an actor has outlived its driver")
        wait_until(
            lambda: set(find_processes(b"raylet")) <= raylets, "Ray has outlived the driver that started it"
        )
        before = {path: path.stat().st_mtime_ns for path in sorted(out.rglob("*"))}
        time.sleep(3)
        assert {path: path.stat().st_mtime_ns for path in sorted(out.rglob("*"))} == before
    found = results_in(out)
    assert found.items() <= expected.items()
    assert 2 <= len(found) < len(expected)
    times = {name: (out / name).stat().st_mtime_ns for name in found}

    again = start_driver(rows, out, address)
    _, said = again.communicate(timeout=PATIENCE_S)
    assert (again.returncode, said) == (0, "")
    assert results_in(out) == expected
    if how != "at once":
        assert {name: (out / name).stat().st_mtime_ns for name in found} == times
    listed = [json.loads(line) for line in (out / "results.jsonl").read_text("utf-8").splitlines()]
    assert [row["id"] for row in listed] == [f"row{seed}" for seed in range(8)]
    wait_until(lambda: not find_processes(b"ray::RowRunner"), "an actor has outlived its driver")
    assert sorted(path.name for path in out.iterdir()) == sorted([*expected, ".lock", "results.jsonl"])
