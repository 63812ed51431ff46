"""Exit codes, standard streams that may be closed, broken or of a narrow encoding, and the bar of progress."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import threading
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
    """tqdm's bar, in place on a terminal; elsewhere tqdm's line for the first of all and for each tenth.

    A stream that is closed or whose reader left is no reason to stop the work: what it refuses is dropped.
    """

    def __init__(self, stream: Any, *, unit: str = "step", initial: int = 0) -> None:
        """unit: what is counted. initial: how many were done before, which are not counted in the rate."""
        from tqdm import tqdm  # here, because `--version` and `info` show no progress

        self._stream = _Lenient(stream)
        self._unit, self._initial = unit, initial
        self._begin = time.perf_counter()
        self._last_tenth = -1
        self._line = tqdm.format_meter
        self._bar: Any = None
        if stream.isatty():
            self._bar = _bar_class()(file=self._stream, unit=unit, initial=initial, dynamic_ncols=True)

    def __call__(self, pipeline: object, step: int, timestep: float, facts: dict[str, Any]) -> None:
        """Show that solver step `step`, counted from 0, is done: a pipeline's `callback_on_step_end`."""
        steps, window = int(facts["num_inference_steps"]), int(facts.get("window", 0))
        self.show(window * steps + step + 1, steps * max(facts.get("num_windows") or 1, window + 1))

    def show(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done."""
        if self._bar is not None:
            self._bar.total = total
            self._bar.update(done - self._bar.n)
            return
        tenth = done * 10 // max(total, 1)
        if tenth == self._last_tenth:
            return
        self._last_tenth = tenth
        elapsed_s = time.perf_counter() - self._begin
        self._stream.write(
            self._line(done, total, elapsed_s, unit=self._unit, initial=self._initial, ascii=True) + "\n"
        )
        self._stream.flush()

    def close(self) -> None:
        """End the bar, so that what follows has its own line; safe to call twice."""
        if self._bar is not None:
            self._bar.close()


def _bar_class() -> Any:
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        """tqdm without its thread, which redraws a bar that stands still."""

        monitor_interval = 0

    Bar.set_lock(threading.RLock())  # tqdm's own also takes a semaphore of the system
    return Bar


class _Lenient:
    """A stream that drops what it cannot write."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
