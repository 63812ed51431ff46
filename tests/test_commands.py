"""Every command of the checkout runs as a file as well as with `python -m`, from any working directory."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "cpp", "examples", "export", "reference", "tests/cpus", "tests/vectors")
COMMANDS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*.py")
    if '\nif __name__ == "__main__":\n' in path.read_text("utf-8")
    and path.name != "worker.py"  # takes its orders from the benchmark that started it
)
# Runs each file as `python FILE --help` does, and prints what went wrong with which. One process for all of
# them, because each would import PyTorch; what belongs to the checkout is imported anew for each.
SCRIPT = """
import contextlib, io, json, pathlib, runpy, sys, traceback
root, *files = map(pathlib.Path, sys.argv[1:])
elsewhere = [path for path in sys.path[1:] if not (pathlib.Path(path) / "export").is_dir()]
failed = {}
for file in files:
    ours = ("benchmarks", "cpp", "export", "reference")
    for name in [name for name in sys.modules if name.split(".")[0] in ours]:
        del sys.modules[name]
    sys.path[:] = [str((root / file).parent), *elsewhere]
    sys.argv = [str(root / file), "--help"]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            runpy.run_path(sys.argv[0], run_name="__main__")
        failed[str(file)] = "it returned and did not exit"
    except SystemExit as exit:
        if exit.code or not said.getvalue().startswith("usage: "):
            failed[str(file)] = f"exit code {exit.code}, said {said.getvalue()[:100]!r}"
    except BaseException:
        failed[str(file)] = traceback.format_exc()[-400:]
print(json.dumps(failed))
"""


def run_elsewhere(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_every_command_runs_as_a_file_from_another_folder(tmp_path: Path) -> None:
    assert len(COMMANDS) > 25
    done = run_elsewhere(["-c", SCRIPT, str(ROOT), *COMMANDS], tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {}
    assert list(tmp_path.iterdir()) == []


def test_options_that_a_command_is_described_with_exist() -> None:
    """They are its own, of a file that it imports, or of another command that its text names."""
    unknown = []
    for path in COMMANDS:
        text = (ROOT / path).read_text("utf-8")
        described = ast.get_docstring(ast.parse(text)) or ""
        others = re.findall(r"python -m ([\w.]+\w)", described) + re.findall(
            r"^from ([\w.]+) import", text, re.M
        )
        files = [ROOT / path, *(ROOT / f"{name.replace('.', '/')}.py" for name in others)]
        known = "".join(file.read_text("utf-8") for file in files if file.is_file())
        options = re.findall(r"(?<![\w-])--[a-z][\w-]*", described)
        unknown += [f"{path}: {option}" for option in options if f'"{option}"' not in known]
    assert unknown == []


def test_plans_are_listed_from_a_file_in_another_folder(tmp_path: Path) -> None:
    command = [str(ROOT / "export" / "build_engine.py"), "nano", "--target", "rtx4090", "--dry-run"]
    done = run_elsewhere(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "rtx4090" in done.stdout
