"""The vectors that every host is held to; cpp/tests/vectors_test.cpp reads the same files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "vectors"
NAMES = ["prompts", "sizes", "frames", "layouts", "schedules", "sampling", "bundles"]


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_vectors", FOLDER / "write_vectors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def vectors(writer: ModuleType) -> dict[str, Any]:
    made: dict[str, Any] = writer.make_vectors()
    return made


@pytest.mark.parametrize("name", NAMES)
def test_this_host_gives_what_the_vectors_say(name: str, vectors: dict[str, Any]) -> None:
    """After an intended change: python tests/vectors/write_vectors.py, and change every host."""
    written = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    assert json.loads(json.dumps(vectors[f"{name}.json"])) == written


def test_every_vector_file_is_checked() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(NAMES)


@pytest.mark.parametrize("name", ["prompts", "sizes", "frames", "schedules", "bundles"])
def test_vectors_hold_successes_and_errors(name: str) -> None:
    content = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    cases = content if isinstance(content, list) else content["cases"]
    assert any("result" in case for case in cases)
    assert any("error" in case for case in cases)
