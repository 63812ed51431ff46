"""The server's log: one JSON object a line, also for what the libraries say through `logging`."""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import Any, TextIO

__all__ = ["Log", "take_library_warnings"]


class Log:
    """Writes lines to a stream, None for nowhere; a reader that left is no reason to stop."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream, self._turn = stream, threading.Lock()

    def write(self, event: str, *, level: str = "info", **facts: Any) -> None:
        """Write one line. Facts that are None are left out."""
        if self._stream is None:
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        known = {name: value for name, value in facts.items() if value is not None}
        line = json.dumps({"ts": stamp, "level": level, "event": event, **known}, default=str)
        try:
            with self._turn:
                self._stream.write(line + "\n")
                self._stream.flush()
        except (BrokenPipeError, ValueError):
            self._stream = None
        except OSError:  # a full disk, say: this line is lost, and a later one may be written
            pass


def take_library_warnings(log: Log) -> None:
    """From now on this process's warnings of `logging`, such as uvicorn's, are lines of the log."""
    handler = _Handler(logging.WARNING)
    handler.log = log
    logging.getLogger().addHandler(handler)


class _Handler(logging.Handler):
    log: Log

    def emit(self, record: logging.LogRecord) -> None:
        level = "error" if record.levelno >= logging.ERROR else "warning"
        self.log.write("library", level=level, name=record.name, text=self.format(record))
