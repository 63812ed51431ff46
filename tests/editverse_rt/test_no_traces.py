"""An edit writes its outputs and nothing else, and talks to nobody."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from editverse_rt import media

# Kills the process (SIGSYS) when it, or a library in it, makes or connects a socket, as looking up a host's
# name does. A filter of system calls is the one way to see what libraries do without a tool to be installed.
NO_SOCKETS = """
import ctypes, platform, struct

ARCHITECTURES = {"x86_64": (0xC000003E, 41, 42), "aarch64": (0xC00000B7, 198, 203)}
LOAD, EQUALS, RETURN, KILL, ALLOW = 0x20, 0x15, 0x06, 0x80000000, 0x7FFF0000
architecture, *calls = ARCHITECTURES[platform.machine()]
program = [(LOAD, 0, 0, 4), (EQUALS, 1, 0, architecture), (RETURN, 0, 0, ALLOW), (LOAD, 0, 0, 0)]
for call in calls:
    program += [(EQUALS, 0, 1, call), (RETURN, 0, 0, KILL)]
program.append((RETURN, 0, 0, ALLOW))
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
prctl = ctypes.CDLL(None, use_errno=True).prctl
NO_NEW_PRIVILEGES, SECCOMP, FILTER = 38, 22, 2
assert prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0
assert prctl(SECCOMP, FILTER, header, 0, 0) == 0, "this kernel has no seccomp filters"
"""
EDIT = """
import os, sys
from editverse_rt.commands.main import main
options = ["--num-inference-steps", "2", "--quiet"]
code = main(["edit", sys.argv[1], "Make it night", "-o", sys.argv[2], *options])
assert "ORT_DISABLE_TELEMETRY" not in os.environ, "what was not set before is not set after"
sys.exit(code)
"""
on_linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="filters of system calls are Linux's; the numbers are those of x86-64 and aarch64",
)


def run_script(
    script: str, folder: Path, *words: str, home: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script with every folder that a library may write to below `folder`, all empty."""
    places = {"HOME": "home", "XDG_CACHE_HOME": "cache", "XDG_CONFIG_HOME": "config", "TMPDIR": "tmp"}
    for name in (*places.values(), "cwd"):
        (folder / name).mkdir(exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    environment |= {key: str(folder / name) for key, name in places.items()}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    if home is not None:
        del environment["XDG_CACHE_HOME"]
        environment["HOME"] = str(home)
    return subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=folder / "cwd",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    import numpy as np

    path = tmp_path_factory.mktemp("source") / "in.png"
    media.write_image(path, np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3), np.uint8)[0])
    return str(path)


@on_linux
def test_an_edit_writes_its_output_only_and_makes_no_socket(picture: str, tmp_path: Path) -> None:
    done = run_script(NO_SOCKETS + EDIT, tmp_path, picture, str(tmp_path / "out.png"))
    assert (done.returncode, done.stderr) == (0, "")
    assert files_below(tmp_path) == ["out.png"]
    assert sorted(path.name for path in (tmp_path / "cwd").iterdir()) == []


@on_linux
def test_the_filter_sees_a_socket(tmp_path: Path) -> None:
    ask = "\nimport socket\nsocket.getaddrinfo('host.invalid', 80)"
    assert run_script(NO_SOCKETS + ask, tmp_path).returncode == -31  # SIGSYS


def test_an_edit_needs_no_home(picture: str, tmp_path: Path) -> None:
    done = run_script(EDIT, tmp_path, picture, str(tmp_path / "out.png"), home=Path("/nonexistent"))
    assert (done.returncode, done.stderr) == (0, "")
    assert files_below(tmp_path) == ["out.png"]


def test_what_the_environment_said_of_telemetry_is_put_back(tmp_path: Path) -> None:
    script = """
import os
os.environ["ORT_DISABLE_TELEMETRY"] = "0"
from editverse_rt.backends.ort import import_onnxruntime
import_onnxruntime()
assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"
"""
    done = run_script(script, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert files_below(tmp_path) == []
