"""House rules that no linter knows: where the environment is read, what documents say about files."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import editverse_rt

tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).parents[1]
RUNTIME = sorted((ROOT / "editverse_rt").rglob("*.py"))
REST = ("benchmarks", "export", "reference")
MODULES = [*RUNTIME, *(path for folder in REST for path in sorted((ROOT / folder).rglob("*.py")))]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
MB = 10**6


def relative(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def imported_names(tree: ast.Module) -> Iterator[str]:
    """Top-level packages that a file imports anywhere in it, by statement or by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            name = node.args[0] if node.args else None
            yield name.value.split(".")[0] if isinstance(name, ast.Constant) else "?"


@pytest.mark.parametrize("path", RUNTIME, ids=relative(RUNTIME))
def test_each_library_is_imported_in_one_place(path: Path) -> None:
    """import-linter sees statements; this sees imports by name as well."""
    homes: dict[str, str | tuple[str, ...]] = {
        "av": "media/",
        "sentencepiece": "request/tokenizer.py",
        "tomli": "planning/targets.py",
        "ray": "cluster.py",
        "tqdm": "commands/terminal.py",
        "onnxruntime": "backends/ort.py",
        "tensorrt": "backends/trt.py",
        "tensorrt_rtx": "backends/trt.py",
        "cuda": "backends/cuda.py",
        "tokenizers": "evaluate/tokenizer.py",
        "ftfy": "evaluate/tokenizer.py",
        "pyarrow": "parquet.py",
        "skimage": "evaluate/fidelity.py",
        "starlette": "serve/",
        "uvicorn": "serve/",
        "python_multipart": "serve/",
        "prometheus_client": "serve/",
    }
    here = path.relative_to(ROOT / "editverse_rt").as_posix()
    allowed = {
        "editverse_rt",
        "numpy",
        *sys.stdlib_module_names,
        *(lib for lib, home in homes.items() if here.startswith(home)),
    }
    found = set(imported_names(parse(path)))
    if here == "__init__.py":
        # The public names are imported on first use, each from a module of this package.
        found.remove("?")
        assert all(home.startswith("editverse_rt.") for home in editverse_rt._HOMES.values())
    if here == "commands/arguments.py":
        # A command's file is imported when it is asked for, by the table's name.
        found.remove("?")
    assert found <= allowed


@pytest.mark.parametrize("path", RUNTIME, ids=relative(RUNTIME))
def test_the_environment_is_read_by_the_command_line_only(path: Path) -> None:
    if path.parent.name == "commands":
        return
    tree = parse(path)
    if path.relative_to(ROOT).as_posix() == "editverse_rt/backends/ort.py":
        # The one exception: telemetry is switched off while ONNX Runtime is imported.
        tree.body = [node for node in tree.body if getattr(node, "name", None) != "_without_telemetry"]
    reads = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not reads & {"os.environ", "os.environb", "os.getenv", "os.putenv"}


def test_every_command_imports_onnxruntime_with_its_telemetry_off() -> None:
    """That is, through `import_onnxruntime`."""
    importers = {
        path.relative_to(ROOT).as_posix()
        for path in [*MODULES, *(ROOT / "cpp").rglob("*.py")]
        if "tests" not in path.parts and "onnxruntime" in imported_names(parse(path))
    }
    assert importers == {"editverse_rt/backends/ort.py"}


def test_importing_the_runtime_loads_no_pytorch() -> None:
    heavy = ["torch", "onnx", "onnxscript", "transformers", "diffusers", "export", "reference"]
    code = (
        "import sys; from editverse_rt.commands.main import COMMANDS; [entry.load() for entry in COMMANDS]; "
        f"print([n for n in {heavy} if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", MODULES, ids=relative(MODULES))
def test_files_are_small_and_named_for_what_they_do(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 600
    assert not {"utils", "util", "helpers", "manager", "common", "misc"} & set(path.stem.split("_"))


def test_every_file_has_its_line_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    rows = re.findall(r"^\| ((?:`[^`]+` )+)\|", text, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    expected = {name.removeprefix("editverse_rt/") for name in relative(MODULES)}
    assert expected - named == set(), "files without a line"
    gone = {
        name
        for name in named - expected
        if not (ROOT / name).exists() and not (ROOT / "editverse_rt" / name).exists()
    }
    assert gone == set(), "lines without a file"


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative(DOCUMENTS))
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text("utf-8")):
        if not link.startswith(("https://", "http://", "mailto:")):
            assert (document.parent / link).exists(), link


def test_the_newest_entry_of_the_changelog_is_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    entries = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert entries[0] == version


def test_the_runtime_depends_on_five_libraries() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    # tomli is Python's own tomllib from 3.11 on.
    needed = [line for line in project["dependencies"] if "python_version <" not in line]
    names = [re.split(r"[<>=~!\[; ]", line)[0] for line in needed]
    assert sorted(names) == ["av", "numpy", "onnxruntime", "sentencepiece", "tqdm"]
    assert all("<" in line and ">=" in line for line in project["dependencies"]), "a range has two ends"


def test_the_bundle_that_ships_fits_the_wheel() -> None:
    bundle = ROOT / "editverse_rt" / "bundles" / "nano"
    listed = json.loads((bundle / "bundle.json").read_text("utf-8"))["files"]
    there = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    # Plans that were built here are no part of it: the wheel leaves out what git ignores.
    shipped = {name for name in there if not name.startswith("engines/")}
    assert {file["path"] for file in listed} == shipped - {"bundle.json"}
    assert sum(file["num_bytes"] for file in listed) <= 24 * MB


def test_training_checkpoints_stay_small() -> None:
    checkpoints = (path for path in (ROOT / "reference").rglob("*") if path.is_file())
    assert sum(path.stat().st_size for path in checkpoints) <= 40 * MB


def test_models_lie_where_they_ship_and_nothing_else_is_large() -> None:
    """What a tool writes into the working folder is easily committed with the rest, and stays in the history."""
    folders = (
        "benchmarks",
        "cpp",
        "deploy",
        "docs",
        "editverse_rt",
        "examples",
        "export",
        "reference",
        "tests",
    )
    homes = (ROOT / "reference" / "nano" / "checkpoint", ROOT / "editverse_rt" / "bundles" / "nano")
    there = [*ROOT.iterdir(), *(path for folder in folders for path in (ROOT / folder).rglob("*"))]
    others = [path for path in there if path.is_file() and not any(map(path.is_relative_to, homes))]
    assert len(others) > 500
    stray = [path for path in others if path.suffix in (".onnx", ".data", ".weights", ".safetensors", ".pt")]
    large = [path for path in others if path.stat().st_size > MB]
    assert (stray, large) == ([], [])
