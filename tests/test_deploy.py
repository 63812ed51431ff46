"""deploy/: the Grafana dashboard asks for metrics that the server exports, by labels that they have."""

from __future__ import annotations

import json
import re
from pathlib import Path

from editverse_rt.serve.meters import Meters

ROOT = Path(__file__).parents[1]
NAME = re.compile(r"\beditverse_\w+")
HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")


def exported() -> dict[str, set[str]]:
    """Metric's name as Prometheus stores it -> its labels."""
    labels: dict[str, set[str]] = {}
    for meter in vars(Meters()).values():
        for family in meter.describe() if hasattr(meter, "describe") else ():
            ends = {"counter": ("_total",), "histogram": HISTOGRAM_PARTS}.get(family.type, ("",))
            for end in ends:
                own = set(meter._labelnames) | ({"le"} if end == "_bucket" else set())
                labels[family.name + end] = own
    return labels


def queries() -> list[tuple[str, str]]:
    """(expression, legend) of each query of the dashboard."""
    dashboard = json.loads((ROOT / "deploy" / "grafana.json").read_text("utf-8"))
    targets = [target for panel in dashboard["panels"] for target in panel["targets"]]
    return [(target["expr"], target["legendFormat"]) for target in targets]


def test_every_metric_of_the_dashboard_exists_with_its_labels() -> None:
    known = exported()
    for expression, legend in queries():
        names = NAME.findall(expression)
        assert names, expression
        asked = {label.strip() for by in re.findall(r"by \(([^)]*)\)", expression) for label in by.split(",")}
        for name in names:
            assert name in known, expression
            assert asked <= known[name], expression
            assert set(re.findall(r"{{(\w+)}}", legend)) <= known[name], expression


def test_every_metric_has_its_panel() -> None:
    shown = {name for expression, _ in queries() for name in NAME.findall(expression)}
    for name in {re.sub("(_bucket|_sum|_count)$", "", name) for name in exported()}:
        assert any(found.startswith(name) for found in shown), name


def test_the_names_are_those_of_the_rendered_text() -> None:
    """What `exported` says of a family's name is what a scrape has."""
    meters = Meters()
    meters.worker_ended("cpu", "silent")
    meters.queue_wait_s.observe(1)
    text = meters.render({"queued": 1}).decode()
    samples = set(re.findall(r"^(editverse_\w+?)(?:{| )", text, re.MULTILINE))
    samples = {name for name in samples if not name.endswith("_created")}
    assert {
        "editverse_jobs",
        "editverse_worker_restarts_total",
        "editverse_queue_wait_seconds_sum",
    } <= samples
    assert samples <= set(exported())


def test_the_container_files_start_the_server_by_options_that_it_has() -> None:
    from editverse_rt.commands.arguments import parse_arguments
    from editverse_rt.commands.main import COMMANDS

    for name in ("Dockerfile", "Dockerfile.gpu"):
        text = (ROOT / "deploy" / name).read_text("utf-8").replace("\\\n", "")
        found = re.search(r"^CMD (\[.*\])$", text, re.MULTILINE)
        assert found is not None, name
        program, *words = json.loads(found[1])
        assert program == "editverse-rt"
        _, args = parse_arguments(words, COMMANDS)
        assert args.command == "serve"
        assert args.api_keys is not None, "other machines reach it"
