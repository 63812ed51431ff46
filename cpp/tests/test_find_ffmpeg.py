"""FindFFmpeg.cmake in a folder as the packages of headers leave it: links to libraries that may not be there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

FINDERS = Path(__file__).parents[1] / "cmake"
PARTS = ("avformat", "avcodec", "swscale", "avutil")


def find(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    project, prefix = tmp_path / "project", tmp_path / "usr"
    project.mkdir()
    (project / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.24)\nproject(P LANGUAGES C)\n"
        # Nothing of this machine's own is found.
        "set(CMAKE_FIND_USE_CMAKE_SYSTEM_PATH OFF)\nset(CMAKE_FIND_USE_SYSTEM_ENVIRONMENT_PATH OFF)\n"
        f"list(APPEND CMAKE_MODULE_PATH {FINDERS})\nfind_package(FFmpeg REQUIRED)\n"
        'message(STATUS "links ${FFmpeg_avcodec_LIBRARY}")\n'
    )
    command = ["cmake", "-S", str(project), "-B", str(tmp_path / "build"), f"-DFFmpeg_ROOT={prefix}"]
    return subprocess.run([*command, *options], capture_output=True, text=True, timeout=120)


@pytest.fixture
def libraries(tmp_path: Path) -> Path:
    """The folder of the libraries, with static ones and links that lead nowhere."""
    folder = tmp_path / "usr" / "lib"
    folder.mkdir(parents=True)
    header = tmp_path / "usr" / "include" / "libavformat" / "avformat.h"
    header.parent.mkdir(parents=True)
    header.touch()
    for part in PARTS:
        (folder / f"lib{part}.a").touch()
        (folder / f"lib{part}.so").symlink_to(f"lib{part}.so.9")
    return folder


def test_a_static_library_is_not_taken_for_a_link_that_leads_nowhere(tmp_path: Path, libraries: Path) -> None:
    done = find(tmp_path)
    assert done.returncode != 0
    assert "Install FFmpeg's shared libraries" in " ".join(done.stderr.split())


def test_a_static_library_is_taken_on_request(tmp_path: Path, libraries: Path) -> None:
    assert f"links {libraries}/libavcodec.a" in find(tmp_path, "-DFFmpeg_USE_STATIC_LIBS=ON").stdout


def test_a_shared_library_is_taken(tmp_path: Path, libraries: Path) -> None:
    for part in PARTS:
        (libraries / f"lib{part}.so.9").touch()
    assert f"links {libraries}/libavcodec.so" in find(tmp_path).stdout
