"""Calls into native code, and the end of the program: the interpreter does not end during such a call.

Python up to 3.13 kills a daemon thread that returns from native code after the interpreter has ended. If C++
made the call, the C++ runtime then aborts the process. https://github.com/python/cpython/issues/87135
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

from editverse_rt.errors import RequestCancelled

__all__ = ["NativeCalls", "at_exit"]


class NativeCalls:
    """Counts the native calls of one owner; a context manager around each call, by several threads at once.

    When the program ends, it waits for the calls that are under way and lets no other begin.
    """

    def __init__(self, owner: object) -> None:
        """owner: the object that makes the calls; when it is freed, so is this."""
        self._changed = threading.Condition()
        self._count = 0
        self._ended_by: threading.Thread | None = None
        weakref.finalize(owner, at_exit(self.end)).atexit = False

    @property
    def are_running(self) -> bool:
        return self._count > 0

    def __enter__(self) -> None:
        """Raises RequestCancelled where the program has ended but for this thread."""
        with self._changed:
            if self._ended_by is None:
                self._count += 1
                return
        if self._ended_by is not threading.current_thread():
            # A daemon thread at the end of the program. It must do nothing more, and it has nobody to tell.
            threading.Event().wait()
        raise RequestCancelled("the program is ending", hint="nothing was written")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def end(self) -> None:
        """Let no call begin any more, and return when those under way are over."""
        with self._changed:
            self._ended_by = threading.current_thread()
            self._changed.wait_for(lambda: self._count == 0)


def at_exit(step: Callable[[], Any]) -> Callable[[], None]:
    """Have `step` called when the program ends, before the interpreter does; return what takes that back.

    The last one registered is called first. Ctrl-C meanwhile begins the step anew, so that it is done in any
    case. A process that was forked off does not call it: the threads that it waits for are not there.
    """
    process = os.getpid()

    def call() -> None:
        while os.getpid() == process:
            try:
                step()
                return
            except KeyboardInterrupt:  # noqa: PERF203 - once, or once a key
                continue

    atexit.register(call)
    return lambda: atexit.unregister(call)
