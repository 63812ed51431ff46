"""A server under load: every request is done, probes are noted, and the report has its columns."""

from __future__ import annotations

from pathlib import Path

from benchmarks import serving
from benchmarks.results import read_results
from benchmarks.soak import Request


def test_a_tiny_run_has_its_rows_and_its_report(tmp_path: Path):
    out = tmp_path / "serving.json"
    size = [
        "--clients",
        "1",
        "2",
        "--jobs",
        "4",
        "--steps",
        "1",
        "--slots",
        "2",
        "--rounds",
        "2",
        "--memory-jobs",
        "20",
    ]
    assert serving.main([*size, "--out", str(out)]) == 0
    rows = read_results(out).rows
    assert [row["clients"] for row in rows] == [1, 2]
    for row in rows:
        assert row["done"] == 4
        assert row["failures"] == []
        assert row["requests_per_s"] > 0
        assert row["in_process_requests_per_s"] > 0
        assert row["probes"] > 0
        assert 0 < row["healthz_p50_s"] <= row["healthz_p99_s"]
        assert all(len(row[name]) == 2 for name in ("server_bytes", "worker_bytes"))
    memory = read_results(out).facts["memory"]
    assert (memory["jobs"], len(memory["server_bytes"]), memory["failures"]) == (20, 10, [])
    text = out.with_suffix(".md").read_text()
    assert "| 1 |" in text
    assert "| 2 |" in text
    assert "/healthz" in text
    assert "`python -m benchmarks.serving --clients 1 2" in text
    assert out.with_suffix(".svg").read_text().startswith("<svg")


def test_what_the_server_refuses_is_a_failure(tmp_path: Path):
    too_large = Request(1, 4096, 4096, 1, 0)
    small = Request(1, 64, 64, 1, 0)
    inputs = serving.write_inputs([small], tmp_path)
    with serving.start_server("nano", 1, tmp_path / "data") as server:
        load = serving.load_server(server, [too_large, small], inputs * 2, 1, 60, tmp_path)
    assert load.done == 1
    assert len(load.failures) == 1
    assert "RequestError" in load.failures[0]
