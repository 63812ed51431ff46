"""What the wheel holds; these tests run against an installed wheel only (`make test-wheel`)."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    os.environ.get("EDITVERSE_TEST_INSTALLED") != "1", reason="the source tree is what is tested here"
)

MB = 10**6


def installed_files() -> list[importlib.metadata.PackagePath]:
    files = importlib.metadata.files("editverse-rt")
    assert files is not None
    return [path for path in files if "__pycache__" not in path.parts]


def test_the_wheel_holds_the_runtime_alone() -> None:
    tops = {path.parts[0] for path in installed_files() if path.parts[0] != ".."}
    metadata = {top for top in tops if re.fullmatch(r"editverse_rt-[\d.]+\.dist-info", top)}
    assert tops - metadata == {"editverse_rt"}
    assert len(metadata) == 1


def test_the_wheel_holds_the_bundle_the_types_and_the_license() -> None:
    names = {path.as_posix() for path in installed_files()}
    assert {"editverse_rt/py.typed", "editverse_rt/bundles/nano/bundle.json"} <= names
    assert "editverse_rt/engines/recipes/h100.toml" in names
    assert any(name.endswith("/LICENSE") for name in names)


def test_the_wheel_is_small() -> None:
    assert sum(path.size or 0 for path in installed_files()) <= 26 * MB


def test_the_wheel_asks_for_no_pytorch() -> None:
    lines = importlib.metadata.requires("editverse-rt") or []
    names = sorted(re.split(r"[<>=~!\[; ]", line)[0] for line in lines if "extra ==" not in line)
    # tomli reads the recipes where Python has no tomllib of its own, before 3.11.
    assert names == ["av", "numpy", "onnxruntime", "sentencepiece", "tomli", "tqdm"]
    (tomli,) = (line for line in lines if line.startswith("tomli"))
    assert "python_version < " in tomli


def test_the_command_is_on_the_path(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("editverse-rt")
    done = subprocess.run([command, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"editverse-rt {importlib.metadata.version('editverse-rt')}\n"
