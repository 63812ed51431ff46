"""The C example leaves nothing behind and asks for no host: what an edit writes and looks up, by its system calls."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLE = Path(os.environ.get("EDITVERSE_NATIVE_BUILD", ROOT / "build" / "native")) / "examples" / "edit"
_CREATES = re.compile(
    r"^\d+ +(?:open(?:at)?\(.*O_CREAT|creat\(|mkdir(?:at)?\(|rename(?:at2?)?\(|link|symlink)"
)
# A name is looked up, and a host reached, by a socket of the internet, or of the name service.
_REACHES = re.compile(r"^\d+ +(?:socket\(AF_INET|connect\(|sendto\()|/etc/(?:resolv\.conf|hosts)")


def test_an_edit_writes_its_output_alone_and_looks_up_no_host(tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "TMPDIR": str(home)}
    log = tmp_path / "calls"
    command = [
        str(EXAMPLE),
        str(ROOT / "editverse_rt" / "bundles" / "nano"),
        str(ROOT / "examples" / "sample.mp4"),
    ]
    command += ["out.mp4", "<video1> Make it night"]
    # Without strace, what is left in the folders is still seen.
    if strace := shutil.which("strace"):
        command = [strace, "-f", "-s", "256", "-e", "trace=%file,%network", "-o", str(log), *command]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in work.iterdir()] == ["out.mp4"]
    assert list(home.rglob("*")) == []
    if strace:
        calls = log.read_text("utf-8", "replace").splitlines()
        written = [line for line in calls if _CREATES.search(line)]
        assert written, "the output itself is seen"
        assert [line for line in written if not re.search(r'"(\./)?(\.out\.|out\.mp4)', line)] == []
        assert [line for line in calls if _REACHES.search(line)] == []
