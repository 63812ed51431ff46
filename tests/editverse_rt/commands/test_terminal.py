"""Standard streams that are closed, broken, full or narrow, and Ctrl-C at any time: exit codes as documented."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from editverse_rt import media
from editverse_rt.commands.main import main

pytestmark = pytest.mark.skipif(os.name == "nt", reason="shells close standard streams on POSIX alone")


def run(folder: Path, command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell line in a folder, in which `edv` is the command line."""
    line = f'edv() {{ "{sys.executable}" -m editverse_rt "$@"; }}; {command}'
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, capture_output=True, env={**os.environ, **environment}, timeout=120
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    media.write_image(tmp_path / "in.png", np.full((64, 64, 3), 90, np.uint8))
    return tmp_path


@pytest.mark.parametrize(
    "closing", ["2>&-", ">&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-", "2> >(exec <&-; sleep 0.1)"]
)
def test_work_is_done_without_standard_streams(folder: Path, closing: str) -> None:
    done = run(folder, f"edv generate night -o out.png --schedule fast {closing}")
    assert (done.returncode, done.stderr.count(b"Traceback")) == (0, 0), done.stderr
    assert media.probe(folder / "out.png").kind == "image"


def test_a_closed_stream_is_not_written_into_the_result(folder: Path) -> None:
    """The number of a closed stream must not become that of a file that is opened later."""
    run(folder, "edv generate night -o closed.png --schedule fast >&- 2>&-")
    run(folder, "edv generate night -o open.png --schedule fast --quiet")
    assert (folder / "closed.png").read_bytes() == (folder / "open.png").read_bytes()


@pytest.mark.parametrize(("encoding", "options"), [("latin-1", ""), ("ascii", "--json")])
def test_a_narrow_encoding_shows_escapes(folder: Path, encoding: str, options: str) -> None:
    done = run(
        folder, f"edv edit in.png night -o 日本.png --schedule fast {options}", PYTHONIOENCODING=encoding
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "日本.png").exists()
    assert b"\\u65e5\\u672c.png" in done.stdout
    if options:
        assert json.loads(done.stdout.decode(encoding))["output"] == "日本.png"


def test_names_that_are_no_unicode_are_read_and_written(folder: Path) -> None:
    raw = os.fsencode(folder) + b"/\xff.png"
    try:
        os.link(folder / "in.png", raw)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    done = run(folder, r"edv edit $'\xff.png' night -o $'out\xfe.png' --schedule fast")
    assert done.returncode == 0, done.stderr
    assert os.path.exists(os.fsencode(folder) + b"/out\xfe.png")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["edit", "in.png", "Make it \udcff night", "-o", "out.png"], "not valid Unicode"),
        (["generate", "night", "-o", "-"], "no file name"),
        (["generate", "night", "-o", ".mp4"], "no file name"),
        (["edit", "in.png", "night", "-o", "out.png", "--preview", "./out.png"], "both out.png"),
        (["generate", "night", "-o", "out.gif", "--fps", "120"], "at most 50 in .gif"),
        (["generate", "night", "-o", "out.mp4", "--fps", "5000"], "5000"),
        (["generate", "night", "-o", "out.png", "--threads", "100000"], "--threads"),
        (["generate", "night", "-o", "out.png", "--guidance-scale", "1e30"], "guidance"),
        (["edit", "in.png", "night", "-o", "ü" * 200 + ".png"], "name of 404 bytes"),
    ],
)
def test_what_cannot_be_done_is_one_line_before_any_work(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    found: str,
) -> None:
    monkeypatch.chdir(folder)
    assert main(words) == 2
    out, err = capfd.readouterr()
    assert (len(err.splitlines()), out) == (1, "")
    assert found in err
    assert sorted(path.name for path in folder.iterdir()) == ["in.png"]


def test_names_with_percent_signs_are_names(folder: Path) -> None:
    done = run(folder, "edv edit in.png night -o '50% done.png' --preview '100%d of it.png' --schedule fast")
    assert done.returncode == 0, done.stderr
    assert (folder / "50% done.png").exists()
    assert (folder / "100%d of it.png").exists()


def test_ctrl_c_while_libraries_load() -> None:
    """The signal comes exactly when the command line is imported."""
    code = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "editverse_rt.commands.main":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from editverse_rt.__main__ import main
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", code, "info"], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr == "editverse-rt: error: stopped by Ctrl-C; nothing was written\n"


def test_public_names_are_there_although_they_load_late() -> None:
    code = """
import sys, editverse_rt
assert "numpy" not in sys.modules
for name in editverse_rt.__all__:
    assert name in dir(editverse_rt)
    getattr(editverse_rt, name)
try:
    editverse_rt.nothing
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "module 'editverse_rt' has no attribute 'nothing'\n"
