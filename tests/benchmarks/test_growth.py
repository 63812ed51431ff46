"""The growth of a server: the simulated queue is held to formulas of queueing theory, the command to its columns."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks import growth
from benchmarks.results import read_results


def mean_wait_of_one_server(service_s: float, utilization: float, spread: float) -> float:
    """Pollaczek and Khinchine's mean wait of M/G/1; spread: the standard deviation of the logarithm of the service."""
    squared_variation = math.exp(spread**2) - 1
    return service_s * utilization / (1 - utilization) * (1 + squared_variation) / 2


def mean_wait_of_many(service_s: float, utilization: float, servers: int) -> float:
    """Erlang's mean wait of M/M/c."""
    load = utilization * servers
    term, total = 1.0, 1.0
    for number in range(1, servers):
        term *= load / number
        total += term
    last = term * load / servers / (1 - utilization)
    return last / (total + last) * service_s / (servers * (1 - utilization))


@pytest.mark.parametrize("utilization", [0.3, 0.7])
def test_one_device_waits_as_the_formula_says(utilization: float):
    waits = growth.simulate(1, 10.0, utilization, 200_000)
    expected = mean_wait_of_one_server(10.0, utilization, growth.SPREAD)
    assert waits.mean() == pytest.approx(expected, rel=0.05)


def test_many_devices_wait_as_the_formula_says():
    # Allen and Cunneen: M/G/c waits as M/M/c by the variation of the service.
    factor = (1 + math.exp(growth.SPREAD**2) - 1) / 2
    waits = growth.simulate(10, 10.0, 0.8, 200_000)
    assert waits.mean() == pytest.approx(mean_wait_of_many(10.0, 0.8, 10) * factor, rel=0.1)


def test_many_devices_can_be_used_more_than_one():
    alone, many = (growth.find_utilization(gpus, 10.0, 20_000) for gpus in (1, 100))
    assert alone < 0.5
    assert many > 0.85


def test_a_small_run_has_its_rows_and_its_report(tmp_path: Path):
    out = tmp_path / "growth.json"
    assert (
        growth.main(["--gpus", "1", "100", "--jobs", "3", "--simulated-jobs", "2000", "--out", str(out)]) == 0
    )
    results = read_results(out)
    assert [row["gpus"] for row in results.rows] == [1, 100, 1, 100]
    for name in ("store_s_per_job", "server_cpu_s_per_job", "server_cpu_s_per_poll"):
        assert results.facts[name] > 0, name
    assert results.facts["gap_s"] >= 0
    for one, many in (results.rows[:2], results.rows[2:]):
        assert many["jobs_per_s"] == pytest.approx(100 * one["jobs_per_s"])
        assert many["wait_p99_s"] < one["wait_p99_s"]
        assert many["server_cpu_cores"] > one["server_cpu_cores"]
    assert "| 100 |" in out.with_suffix(".md").read_text()
