"""uvicorn's HTTP/1.1, with a time limit for the headers of a request.

uvicorn limits the pause between two requests (`timeout_keep_alive`) and nothing before the first: a client that
connects and sends nothing, or half a header, would hold its connection for ever.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from editverse_rt.serve.problems import HttpError, error_json

__all__ = ["protocol_with_limit"]


def protocol_with_limit(limit_s: float) -> type[asyncio.Protocol]:
    """The class for `uvicorn.Config(http=...)`: a connection is closed where the headers of a request take longer.

    The time of the first request begins with the connection, that of a later one with its first byte. One that has
    sent a part of its first request is told why: 408, `serve.slow`.
    """
    return type("LimitedProtocol", (_LimitedProtocol,), {"limit_s": limit_s})


class _LimitedProtocol(H11Protocol):
    limit_s: float
    _timer: asyncio.TimerHandle | None = None
    _has_begun = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._begin()

    def data_received(self, data: bytes) -> None:
        self._has_begun = True
        super().data_received(data)
        cycle: Any = self.cycle  # None before the first request
        if cycle is not None and not cycle.response_complete:
            self._end()  # all headers are there, and the request is being answered
        elif not self.transport.is_closing():
            self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        super().connection_lost(exc)

    def _begin(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.limit_s, self._close)

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        cycle: Any = self.cycle
        if self._has_begun and cycle is None:
            self.transport.write(_refusal(self.limit_s))
        self.transport.close()


def _refusal(limit_s: float) -> bytes:
    error = HttpError(
        408,
        f"the headers of the request were not there within {limit_s:g} s",
        hint="send them at once",
        code="serve.slow",
    )
    body = json.dumps(error_json(error.to_json(), 408)).encode()
    return (
        b"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
