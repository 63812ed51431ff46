"""Work that errors of the disk must not end: what is done for ever, and what must be written."""

from __future__ import annotations

import asyncio
import sqlite3
import traceback
from collections.abc import Awaitable, Callable
from typing import TypeVar

from editverse_rt.serve.logs import Log

__all__ = ["repeat", "tell_error", "write_until_done"]

Answer = TypeVar("Answer")
AGAIN_S = 1.0
"""After which what was refused is tried again."""


async def repeat(work: Callable[[], Awaitable[None]], log: Log, on_error: Callable[[], object]) -> None:
    """Do a piece of work for ever; an error is logged, `on_error` is called, and the work goes on."""
    while True:
        try:
            await work()
        except Exception as error:  # noqa: PERF203
            tell_error(log, error)
            await asyncio.sleep(AGAIN_S)
            on_error()


async def write_until_done(act: Callable[[], Answer], log: Log) -> Answer:
    """Do in a thread what writes to the table, again and again while the table cannot be written."""
    while True:
        try:
            return await asyncio.to_thread(act)
        except sqlite3.Error as error:  # noqa: PERF203
            tell_error(log, error)
            await asyncio.sleep(AGAIN_S)


def tell_error(log: Log, error: Exception) -> None:
    """Log an error with its traceback."""
    log.write("error", level="error", text="".join(traceback.format_exception(error)))
