"""deploy/: the dashboard asks for metrics that the server exports; containers start it by options that it has."""

from __future__ import annotations

import argparse
import configparser
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from editverse_rt.serve.auth import check_host
from editverse_rt.serve.meters import Meters
from editverse_rt.serve.settings import ServerSettings

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


def serve_options(words: list[str]) -> argparse.Namespace:
    from editverse_rt.commands.arguments import parse_arguments
    from editverse_rt.commands.main import COMMANDS

    _, args = parse_arguments(words, COMMANDS)
    assert args.command == "serve"
    assert args.api_keys is not None, "other machines reach it"
    return args


INSTRUCTIONS = {"FROM", "COPY", "RUN", "USER", "VOLUME", "EXPOSE", "CMD", "ENV", "ARG"}


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.gpu"])
def test_the_container_files_are_well_formed_and_start_the_server_by_options_that_it_has(name: str) -> None:
    text = re.sub(r"^#.*\n", "", (ROOT / "deploy" / name).read_text("utf-8"), flags=re.MULTILINE)
    lines = [line.split(maxsplit=1) for line in text.replace("\\\n", "").splitlines() if line.strip()]
    assert {instruction for instruction, _ in lines} <= INSTRUCTIONS
    assert lines[0][0] == "FROM"
    assert re.fullmatch(r"[\w./-]+:[\w.-]+", lines[0][1]), "an image without a tag is another one tomorrow"
    for instruction, words in lines:
        if instruction == "RUN":
            subprocess.run(["bash", "-n", "-c", words], check=True)
        if instruction == "COPY":
            assert (ROOT / words.split()[0]).exists()
    # What runs is no root, and what it keeps is in the volume.
    order = [instruction for instruction, _ in lines]
    assert order.index("USER") < order.index("CMD")
    program, *words = json.loads(lines[-1][1])
    assert program == "editverse-rt"
    assert str(serve_options(words).data) in [where for what, where in lines if what == "VOLUME"]


def test_the_builder_is_sent_no_environment_and_no_history() -> None:
    ignored = (ROOT / ".dockerignore").read_text("utf-8").split()
    assert {".git", ".venv*", "build", "dist"} <= set(ignored)
    for needed in ("editverse_rt", "pyproject.toml", "README.md", "LICENSE"):
        assert needed not in ignored
        assert (ROOT / needed).exists()


def test_the_ray_manifest_starts_the_server_by_options_that_it_has() -> None:
    parts = list(yaml.safe_load_all((ROOT / "deploy" / "kuberay.yaml").read_text("utf-8")))
    assert [part["kind"] for part in parts] == ["PersistentVolumeClaim", "RayCluster", "Service"]
    spec = parts[1]["spec"]
    head, (group,) = spec["headGroupSpec"]["template"]["spec"], spec["workerGroupSpecs"]
    server = next(one for one in head["containers"] if one["name"] == "server")
    args = serve_options([str(word) for word in server["args"]])
    assert args.ray_workers == group["maxReplicas"]
    assert spec["enableInTreeAutoscaling"]
    # Inputs, results and the bundle are under the same paths everywhere.
    for pod in (head, group["template"]["spec"]):
        volumes = {volume["name"] for volume in pod["volumes"]}
        for one in [*pod["containers"], *pod.get("initContainers", [])]:
            assert one["image"] == server["image"]
            mounts = {mount["name"]: mount["mountPath"] for mount in one["volumeMounts"]}
            assert set(mounts) <= volumes
            if one["name"] != "own-keys":
                # A folder of its own: a volume's root belongs to root, and nobody else may change its mode.
                assert (mounts["data"], mounts["bundle"]) == (str(args.data.parent), args.bundle[0])
    claims = [
        volume["persistentVolumeClaim"]["claimName"]
        for volume in head["volumes"]
        if "persistentVolumeClaim" in volume
    ]
    assert parts[0]["metadata"]["name"] in claims
    assert parts[0]["spec"]["accessModes"] == ["ReadWriteMany"]
    assert server["ports"][0]["name"] == parts[2]["spec"]["ports"][0]["targetPort"]
    # The Service's names are let in, and a pod that is stopped has time to give its jobs back.
    service = parts[2]["metadata"]["name"]
    for host in (service, f"{service}.default.svc.cluster.local"):
        check_host(f"{host}:8000", tuple(args.allow_host))
    assert head["terminationGracePeriodSeconds"] > (args.drain_s or ServerSettings.drain_s)


def test_the_unit_for_systemd_starts_the_server_by_options_that_it_has() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((ROOT / "deploy" / "editverse-rt.service").read_text("utf-8"))
    service = unit["Service"]
    program, *words = service["ExecStart"].split()
    assert program.endswith("/editverse-rt")
    args = serve_options(words)
    # The folders are those that systemd makes, and the keys come from the credential.
    assert args.data == Path("/var/lib") / service["StateDirectory"]
    install = service["ExecStartPre"].split()
    assert install[1:3] == ["-m", "0600"]
    assert install[3] == "${CREDENTIALS_DIRECTORY}/" + service["LoadCredential"].split(":")[0]
    assert Path(install[4]) == args.api_keys
    assert args.api_keys.parent == Path("/run") / service["RuntimeDirectory"]
    assert float(service["TimeoutStopSec"]) > (args.drain_s or ServerSettings.drain_s)
