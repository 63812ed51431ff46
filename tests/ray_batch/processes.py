"""The processes of this machine, by their command lines (Linux)."""

from __future__ import annotations

from pathlib import Path

__all__ = ["find_processes"]


def find_processes(word: bytes) -> list[int]:
    """Ids of the processes whose command line holds a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # noqa: PERF203 - it has ended meanwhile
            continue
    return found
