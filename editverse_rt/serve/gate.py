"""What every request passes: its id, Host and Origin, its key, the headers of its answer, log and metrics."""

from __future__ import annotations

import re
import secrets
import time
import traceback
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request, cookie_parser
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from editverse_rt.errors import EditVerseError
from editverse_rt.serve.auth import COOKIE, Keys, check_host, check_origin
from editverse_rt.serve.logs import Log
from editverse_rt.serve.meters import Meters
from editverse_rt.serve.problems import HttpError, disk_full, error_json, is_disk_full, status_of

__all__ = ["Gate", "error_response", "owner_of"]

OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/session", "/openapi.json", "/favicon.ico"})
"""What needs no key, besides the page's files."""
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def error_response(error: EditVerseError) -> JSONResponse:
    """The answer that an error becomes."""
    status = status_of(error)
    headers = {}
    if isinstance(error, HttpError) and error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_json(error.to_json(), status), status, headers)


class Gate:
    """ASGI middleware. routes: the templates that metrics tell apart."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys,
        hosts: tuple[str, ...],
        cors_origins: tuple[str, ...],
        log: Log,
        meters: Meters,
        routes: Collection[str],
    ) -> None:
        self._app, self._keys, self._hosts, self._cors = app, keys, hosts, cors_origins
        self._log, self._meters, self._routes = log, meters, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else f"req_{secrets.token_hex(8)}"
        scope.setdefault("state", {})["request_id"] = request_id
        origin, begin, status = headers.get("origin"), time.monotonic(), 0
        is_cors = False

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["X-Request-Id"] = request_id
                out["X-Content-Type-Options"] = "nosniff"
                out["Referrer-Policy"] = "no-referrer"
                out.setdefault("Content-Security-Policy", CSP)
                out.setdefault("Cache-Control", "no-store")
                if status == 408:  # or the connection waits for the rest of the body
                    out["Connection"] = "close"
                if is_cors and origin is not None:
                    out["Access-Control-Allow-Origin"] = origin
                    out["Access-Control-Expose-Headers"] = "X-Request-Id, Retry-After, Content-Disposition"
                    out.add_vary_header("Origin")
            await send(message)

        try:
            try:
                is_cors = self._check(scope, headers)
                if is_cors and scope["method"] == "OPTIONS":
                    await self._preflight()(scope, receive, send_with_headers)
                else:
                    await self._app(scope, receive, _errors_as_json(scope, receive, send_with_headers))
            except EditVerseError as error:
                if status:
                    raise
                await error_response(error)(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = status or 499
        except Exception as error:
            self._log.write(
                "error",
                level="error",
                request_id=request_id,
                text="".join(traceback.format_exception(error)),
            )
            if not status:
                broken = HttpError(500, "an error inside the server", hint="its log says more", code="error")
                if is_disk_full(error):
                    broken = disk_full()
                await error_response(broken)(scope, receive, send_with_headers)
        finally:
            self._tell(scope, headers, status, request_id, begin)

    def _check(self, scope: Scope, headers: Headers) -> bool:
        """Whether the origin is an allowed other one. Raises HttpError: 403, 401."""
        host = headers.get("host")
        check_host(host, self._hosts)
        is_cors = check_origin(headers.get("origin"), host, self._cors)
        cookies = cookie_parser(headers.get("cookie", ""))
        # Another origin's page has to show a key itself.
        session = None if is_cors else cookies.get(COOKIE)
        owner = self._keys.who(headers.get("authorization"), session)
        scope["state"]["owner"] = owner
        path = scope["path"]
        is_open = (
            path in OPEN_PATHS or path.startswith("/static/") or (is_cors and scope["method"] == "OPTIONS")
        )
        if owner is None and not is_open:
            raise HttpError(
                401,
                "no valid key came with the request",
                expected="Authorization: Bearer KEY, or a session of the page",
                hint="ask whoever runs the server for a key",
                code="serve.key",
            )
        return is_cors

    def _preflight(self) -> Response:
        return Response(
            status_code=204,
            headers={
                "Access-Control-Allow-Methods": "GET, POST, DELETE",
                "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, X-Request-Id",
                "Access-Control-Max-Age": "600",
            },
        )

    def _tell(self, scope: Scope, headers: Headers, status: int, request_id: str, begin: float) -> None:
        path = re.sub(r"/job_[0-9a-f]+", "/{id}", scope["path"])
        path = "/static/{path}" if path.startswith("/static/") else path
        route = path if path in self._routes else "other"
        method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "DELETE") else "other"
        self._meters.http_requests_total.labels(route, method, str(status)).inc()
        if route in ("/healthz", "/readyz", "/metrics"):
            return
        self._log.write(
            "http",
            request_id=request_id,
            method=method,
            route=route,
            code=status,
            ms=round(1000 * (time.monotonic() - begin)),
            traceparent=headers.get("traceparent", "")[:80] or None,
            owner=scope.get("state", {}).get("owner"),
        )


def _errors_as_json(scope: Scope, receive: Receive, send: Send) -> Send:
    """Answers in place of the plain text that Starlette says of a Range which is malformed or not in the file."""
    is_replaced = False

    async def send_json(message: Message) -> None:
        nonlocal is_replaced
        if message["type"] == "http.response.start" and message["status"] in (400, 416):
            headers = Headers(raw=message["headers"])
            is_replaced = headers.get("content-type", "").startswith("text/plain")
            if is_replaced:
                error = HttpError(
                    message["status"],
                    f"the Range is {Headers(scope=scope).get('range', '')[:100]!r}",
                    expected="one within the file, such as bytes=0-99",
                    code="serve.range",
                )
                answer = error_response(error)
                if (size := headers.get("content-range")) is not None:
                    answer.headers["Content-Range"] = size
                await answer(scope, receive, send)
        if not is_replaced:
            await send(message)

    return send_json


def owner_of(request: Request) -> str:
    """The owner that the gate has found."""
    return str(request.state.owner)
