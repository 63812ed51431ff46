"""The examples of docs/serving.md run as they stand against a server; only the port and the job's id are put in."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "editverse_rt" / "serve"))

from live_server import LiveServer

from editverse_rt import media
from editverse_rt.client import Client

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "serving.md").read_text("utf-8")
FENCES = re.findall(r"^```(sh|python)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PORT = "8000"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("serve") / "data") as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which the paths of the examples lead to the files of the checkout."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def run(command: list[str], folder: Path, code: str | None = None) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, input=code, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def with_port(code: str, server: LiveServer) -> str:
    assert f":{PORT}" in code
    return code.replace(f":{PORT}", f":{server.port}")


def wait_for(server: LiveServer, job: str) -> None:
    with Client(server.url) as client:
        client.wait(job, poll_s=0.05)


def check_result(folder: Path) -> None:
    source, result = (media.probe(folder / name) for name in ("examples/sample.mp4", "out.mp4"))
    assert (result.kind, result.width_px, result.height_px) == ("video", source.width_px, source.height_px)
    assert result.num_frames is not None
    assert result.num_frames > 1


@pytest.mark.parametrize("code", [code for language, code in FENCES if language == "python"])
def test_python_examples_run(code: str, server: LiveServer, folder: Path) -> None:
    run([sys.executable, "-"], folder, with_port(code, server))
    check_result(folder)


@pytest.mark.parametrize("code", [code for language, code in FENCES if language == "sh" and "curl" in code])
def test_curl_examples_run(code: str, server: LiveServer, folder: Path) -> None:
    first, *rest = with_port(code, server).splitlines()
    job = json.loads(run(["bash", "-euo", "pipefail", "-c", first], folder))["id"]
    wait_for(server, job)
    place, *asks, generate = rest
    assert place.startswith("ID=")
    for line in asks:
        assert "/$ID" in line
        shown = run(["bash", "-euo", "pipefail", "-c", f"ID={job}; {line}"], folder)
        if " -o " not in line:
            assert json.loads(shown)["id"] == job
    wait_for(server, json.loads(run(["bash", "-euo", "pipefail", "-c", generate], folder))["id"])
    check_result(folder)


@pytest.mark.parametrize(
    "code", [code for language, code in FENCES if language == "sh" and "curl" not in code]
)
def test_command_line_examples_run(code: str, server: LiveServer, folder: Path) -> None:
    code = with_port(code, server).replace("editverse-rt ", f"'{sys.executable}' -m editverse_rt ")
    assert run(["bash", "-euo", "pipefail", "-c", code], folder).startswith("out.mp4: ")
    check_result(folder)


def test_the_examples_are_found() -> None:
    assert [language for language, _ in FENCES] == ["sh", "sh", "python"]
