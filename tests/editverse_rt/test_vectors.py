"""The vectors that every host is held to; vectors_test.cpp and engines_test.cpp of cpp/ read them as well."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "vectors"
NAMES = ["prompts", "sizes", "frames", "layouts", "schedules", "sampling", "bundles", "engines", "wan"]


def load_writer(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def vectors() -> dict[str, Any]:
    writers = [load_writer(f"write_{kind}_vectors") for kind in ("request", "bundle", "engine", "wan")]
    return {file: content for writer in writers for file, content in writer.make_vectors().items()}


@pytest.mark.parametrize("name", NAMES)
def test_this_host_gives_what_the_vectors_say(name: str, vectors: dict[str, Any]) -> None:
    """After an intended change: run the writers in tests/vectors/, and change every host."""
    written = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    assert json.loads(json.dumps(vectors[f"{name}.json"])) == written


def test_every_vector_file_is_checked() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(NAMES)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("prompts", None),
        ("schedules", None),
        ("sizes", "cases"),
        ("frames", "cases"),
        ("bundles", "cases"),
        ("engines", "manifests"),
        ("engines", "profiles"),
        ("engines", "shapes"),
        ("engines", "choices"),
        ("wan", "layouts"),
        ("wan", "strengths"),
    ],
)
def test_vectors_hold_successes_and_errors(name: str, part: str | None) -> None:
    content = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    cases = content if part is None else content[part]
    assert any("result" in case for case in cases)
    assert any("error" in case for case in cases)
