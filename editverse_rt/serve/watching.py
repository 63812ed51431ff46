"""Who waits for news of which job."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Watchers"]


class Watchers:
    """Events by job. All calls come from one event loop."""

    def __init__(self) -> None:
        self._events: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def watch(self, job: str) -> Iterator[asyncio.Event]:
        """A context whose event is set whenever something about the job changes."""
        event = asyncio.Event()
        self._events.setdefault(job, set()).add(event)
        try:
            yield event
        finally:
            events = self._events[job]
            events.discard(event)
            if not events:
                del self._events[job]

    def tell(self, job: str) -> None:
        """Something about the job has changed."""
        for event in self._events.get(job, ()):
            event.set()

    def tell_all(self) -> None:
        """Wake all, such as when the server ends."""
        for job in list(self._events):
            self.tell(job)
