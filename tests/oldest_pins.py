"""`python tests/oldest_pins.py`: the oldest versions of the dependencies that pyproject.toml allows, for pip."""

from __future__ import annotations

import re
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def oldest_pins(text: str) -> list[str]:
    """ "av>=17,<20" becomes "av==17.*". text: of pyproject.toml, read without tomllib, which Python 3.10 lacks."""
    listed = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    if listed is None:
        raise ValueError("pyproject.toml has no list of dependencies")
    found = re.findall(r'"([a-z-]+)>=([0-9.]+),<[0-9.]+(;[^"]*)?"', listed[1])
    # A marker such as python_version has its own quotes, so it ends a line that pip reads as a whole.
    return [f"{name}=={version}.*" for name, version, marker in found if not marker]


if __name__ == "__main__":
    sys.stdout.write("\n".join(oldest_pins(PROJECT.read_text("utf-8"))) + "\n")
