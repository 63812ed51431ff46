"""Exit codes, standard streams that may be closed, broken or of a narrow encoding, and the bar of progress."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from typing import Any

__all__ = ["Progress", "discard_output", "prepare_streams", "print_error", "print_json"]

EXIT_OK = 0
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141  # what a shell says of a command whose reader left, as in `info | head -1`


def prepare_streams() -> None:
    """Make sure that standard output and error can be written to, whatever the caller closed or chose.

    A closed one is replaced by the null device, also for the system, so that no file opened later gets its
    number and is written into. Characters that an encoding lacks are written as escapes.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a system gives the lowest number that is free: that of a closed stream, and it stays open
    os.close(number)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_error(message: str) -> None:
    """Print one line on standard error, if anybody reads it."""
    with contextlib.suppress(OSError, ValueError):
        print(f"editverse-rt: error: {' '.join(message.split())}", file=sys.stderr, flush=True)


def print_json(facts: dict[str, Any]) -> None:
    """Print one JSON object on standard output."""
    print(json.dumps(facts, indent=2, ensure_ascii=False))


def discard_output() -> None:
    """Drop what standard output did not take, or Python fails once more when it leaves."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


class Progress:
    """A bar, redrawn in place on a terminal; elsewhere a line for the first step and for each tenth."""

    WIDTH = 30

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._in_place = bool(stream.isatty())
        self._begin = time.perf_counter()
        self._last_tenth = 0
        self._open = False

    def __call__(self, pipeline: object, step: int, timestep: float, facts: dict[str, Any]) -> None:
        """Show that solver step `step`, counted from 0, is done."""
        done, total = step + 1, int(facts["num_inference_steps"])
        tenth = done * 10 // total
        if not self._in_place and step > 0 and tenth == self._last_tenth:
            return
        self._last_tenth = tenth
        elapsed_s = time.perf_counter() - self._begin
        left_s = elapsed_s / done * (total - done)
        filled = self.WIDTH * done // total
        line = f"[{'#' * filled}{'.' * (self.WIDTH - filled)}] step {done}/{total}, {left_s:.0f} s left"
        self._write(f"\r\033[K{line}" if self._in_place else f"{line}\n")
        self._open = self._in_place

    def close(self) -> None:
        """End the line that was redrawn, so that what follows has its own."""
        if self._open:
            self._write("\n")
            self._open = False

    def _write(self, text: str) -> None:
        # A reader that left is no reason to stop the work.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()
