"""docs/options.md is what its writer makes of the table of options."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from editverse_rt.request.options import OPTIONS

ROOT = Path(__file__).parents[1]


def test_the_page_of_options_is_current() -> None:
    command = [sys.executable, str(ROOT / "docs" / "write_options.py"), "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = (ROOT / "docs" / "options.md").read_text("utf-8")
    assert all(f"| `{option.name}` | `{option.flag} " in text for option in OPTIONS)
