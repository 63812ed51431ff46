"""The Starlette application: routes of all interfaces, behind one gate."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from editverse_rt.errors import EditVerseError, RequestError
from editverse_rt.fields import Fields
from editverse_rt.serve.auth import COOKIE, SESSION_S, Keys
from editverse_rt.serve.dispatcher import Dispatcher
from editverse_rt.serve.forms import read_json_body
from editverse_rt.serve.gate import Gate, error_response
from editverse_rt.serve.jobs import JobRoutes
from editverse_rt.serve.openai_images import ImageRoutes
from editverse_rt.serve.openai_videos import VideoRoutes
from editverse_rt.serve.openapi import describe_api
from editverse_rt.serve.page import PageFiles
from editverse_rt.serve.problems import HttpError
from editverse_rt.serve.settings import ServerSettings
from editverse_rt.serve.submitting import Submitter

__all__ = ["make_app"]


def make_app(settings: ServerSettings, dispatcher: Dispatcher, keys: Keys) -> Starlette:
    """The application. Its lifespan starts the dispatcher and, at its end, drains it."""
    submitter = Submitter(settings, dispatcher)
    jobs = JobRoutes(settings, dispatcher, submitter)
    pages = _Pages(settings, dispatcher, keys)
    routes: list[BaseRoute] = [
        *pages.routes(),
        *jobs.routes(),
        *VideoRoutes(settings, dispatcher, submitter, jobs).routes(),
        *ImageRoutes(settings, dispatcher, submitter).routes(),
        Mount("/static", pages.files, name="static"),
    ]
    gate = Middleware(
        Gate,
        keys=keys,
        hosts=settings.hosts,
        cors_origins=settings.cors_origins,
        log=dispatcher.log,
        meters=dispatcher.meters,
        routes={route.path for route in routes if isinstance(route, Route)} | {"/static/{path}"},
    )

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await dispatcher.start()
        try:
            yield
        finally:
            await dispatcher.stop(0.0)

    return Starlette(
        routes=routes,
        middleware=[gate],
        lifespan=lifespan,
        exception_handlers={EditVerseError: _on_error, HTTPException: _on_http_exception},
    )


async def _on_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, EditVerseError):
        raise error
    return error_response(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: no such route, another method, a Range outside of the file."""
    if not isinstance(error, HTTPException):
        raise error
    found = {
        404: f"there is nothing at {request.url.path[:100]}",
        405: f"{request.method} is not for {request.url.path[:100]}",
    }.get(error.status_code, error.detail)
    answer = error_response(
        HttpError(error.status_code, found, hint="/openapi.json lists what there is", code="serve.not_found")
    )
    for name, value in (error.headers or {}).items():
        answer.headers[name] = value
    return answer


class _Pages:
    """The routes that speak of the server itself."""

    def __init__(self, settings: ServerSettings, dispatcher: Dispatcher, keys: Keys) -> None:
        self._settings, self._dispatcher, self._keys = settings, dispatcher, keys
        self.files = PageFiles()

    def routes(self) -> list[Route]:
        return [
            Route("/", self.page, methods=["GET"]),
            Route("/healthz", self.healthz, methods=["GET"]),
            Route("/readyz", self.readyz, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/openapi.json", self.openapi, methods=["GET"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/session", self.session, methods=["GET"]),
            Route("/session", self.begin_session, methods=["POST"]),
            Route("/session", self.end_session, methods=["DELETE"]),
        ]

    async def page(self, request: Request) -> Response:
        return await self.files.get_response("index.html", request.scope)

    async def healthz(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        dispatcher = self._dispatcher
        state = "draining" if dispatcher.is_draining else "ready" if dispatcher.is_up else "starting"
        return JSONResponse({"status": state}, 200 if state == "ready" else 503)

    async def metrics(self, request: Request) -> Response:
        dispatcher = self._dispatcher
        meters, store = dispatcher.meters, dispatcher.store
        counts = await dispatcher.do(store.counts)
        usage = shutil.disk_usage(store.folder)
        meters.disk_bytes.labels("jobs").set(await dispatcher.do(store.num_bytes))
        meters.disk_bytes.labels("free").set(usage.free)
        for worker in dispatcher.workers:
            meters.worker_up.labels(worker.name).set(worker.is_up)
            running = [run.job for run in dispatcher.live.values() if run.worker is worker]
            planned = sum(job.estimate["memory_bytes"] for job in running)
            meters.memory_bytes.labels(worker.name, "planned").set(planned)
            meters.memory_bytes.labels(worker.name, "resident").set(_resident_bytes(worker.pid))
        return PlainTextResponse(meters.render(counts), media_type="text/plain; version=0.0.4")

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(describe_api(self._settings))

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": self._dispatcher.models})

    async def session(self, request: Request) -> Response:
        return self._session(request.state.owner)

    async def begin_session(self, request: Request) -> Response:
        """Trade a key for a cookie that scripts cannot read."""
        fields = Fields(
            await read_json_body(request, self._settings.body),
            "the body",
            "",
            error=RequestError,
            fix="correct it",
        )
        key = fields.string("key")
        fields.finish()
        owner = self._keys.owner_of(key) if self._keys.are_needed else "local"
        if owner is None:
            raise HttpError(401, "the key is not known", hint="check it", code="serve.key")
        answer = self._session(owner)
        answer.set_cookie(
            COOKIE,
            self._keys.begin_session(owner),
            max_age=int(SESSION_S),
            httponly=True,
            samesite="strict",
            secure=request.headers.get("x-forwarded-proto") == "https",
        )
        return answer

    async def end_session(self, request: Request) -> Response:
        self._keys.end_session(request.cookies.get(COOKIE, ""))
        answer = self._session(None if self._keys.are_needed else "local")
        answer.delete_cookie(COOKIE)
        return answer

    def _session(self, owner: str | None) -> JSONResponse:
        facts: dict[str, Any] = {"auth": "key" if self._keys.are_needed else "open", "name": owner}
        return JSONResponse(facts)


def _resident_bytes(pid: int | None) -> int:
    """Resident memory of a process; 0 where it is gone or the system does not say."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * 4096
