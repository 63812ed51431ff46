"""Fetch the headers that the plugin is compiled against: `python cpp/plugin/fetch_headers.py FOLDER`.

Downloads the packages of headers.txt with pip, and keeps nothing of them but their headers and licenses: the
folder then holds `include/`, about 5 MB. Does nothing where it already holds those of this headers.txt.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

REQUIREMENTS = Path(__file__).with_name("headers.txt")
STAMP = "headers.txt"
SUFFIXES = {".h", ".hpp"}


def headers_in(wheel: zipfile.ZipFile) -> Iterator[tuple[str, PurePosixPath]]:
    """Members of a wheel that lie in a folder `include`, and where below it they belong."""
    for name in wheel.namelist():
        parts = PurePosixPath(name).parts
        if "include" in parts and PurePosixPath(name).suffix in SUFFIXES:
            below = PurePosixPath(*parts[parts.index("include") + 1 :])
            # TensorRT's own packages have its headers in no folder of that name.
            yield name, below.relative_to("tensorrt") if below.parts[0] == "tensorrt" else below


def fetch_headers(folder: Path) -> None:
    """Fill FOLDER/include with what headers.txt names. Raises CalledProcessError where pip fails."""
    wanted = REQUIREMENTS.read_text("utf-8")
    stamp = folder / STAMP
    if stamp.exists() and stamp.read_text("utf-8") == wanted:
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        wheels, filled = Path(temporary, "wheels"), Path(temporary, "filled")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*pip, "--requirement", str(REQUIREMENTS), "--dest", str(wheels)], check=True)
        for path in sorted(wheels.iterdir()):
            with zipfile.ZipFile(path) as wheel:
                for name, below in headers_in(wheel):
                    target = filled / "include" / below
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(wheel.read(name))
                for name in wheel.namelist():
                    if "license" in name.lower() and not name.endswith("/"):
                        target = filled / "licenses" / path.name.split("-")[0] / PurePosixPath(name).name
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.write_bytes(wheel.read(name))
        (filled / STAMP).write_text(wanted, "utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        filled.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch the headers that the plugin is compiled against.")
    parser.add_argument("folder", type=Path)
    fetch_headers(parser.parse_args().folder)


if __name__ == "__main__":
    main()
