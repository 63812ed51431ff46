"""The native interface: jobs with several inputs, progress by phase, events, files and recipes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from editverse_rt.errors import RequestError
from editverse_rt.fields import Fields
from editverse_rt.request.prompt import check_input_name
from editverse_rt.serve.dispatcher import Dispatcher
from editverse_rt.serve.forms import parse_object, read_form, read_json_body
from editverse_rt.serve.gate import owner_of
from editverse_rt.serve.job import FINISHED, Job
from editverse_rt.serve.problems import HttpError
from editverse_rt.serve.result_files import FORMATS
from editverse_rt.serve.settings import ServerSettings
from editverse_rt.serve.submitting import Reference, Submission, Submitter, bad_key, submission_key
from editverse_rt.serve.views import native_job, native_jobs

__all__ = ["JobRoutes", "page_query"]

BEAT_S = 15.0
LEAST_S = 0.25
"""Between two events of a job's progress."""
CONTENT_CSP = "default-src 'none'; sandbox"


class JobRoutes:
    """The routes under /v1/jobs."""

    def __init__(self, settings: ServerSettings, dispatcher: Dispatcher, submitter: Submitter) -> None:
        self._settings, self._dispatcher, self._submitter = settings, dispatcher, submitter
        self._store = dispatcher.store

    def routes(self) -> list[Route]:
        return [
            Route("/v1/jobs", self.create, methods=["POST"]),
            Route("/v1/jobs", self.list, methods=["GET"]),
            Route("/v1/jobs/cancel", self.withdraw, methods=["POST"]),
            Route("/v1/jobs/{id}", self.get, methods=["GET"]),
            Route("/v1/jobs/{id}", self.delete, methods=["DELETE"]),
            Route("/v1/jobs/{id}/events", self.events, methods=["GET"]),
            Route("/v1/jobs/{id}/cancel", self.cancel, methods=["POST"]),
            Route("/v1/jobs/{id}/content", self.content, methods=["GET"]),
            Route("/v1/jobs/{id}/recipe", self.recipe, methods=["GET"]),
        ]

    async def create(self, request: Request) -> Response:
        query = take_query(request, "dry_run")
        dry_run = query.get("dry_run", "0")
        if dry_run not in ("0", "1"):
            raise bad_query("dry_run", dry_run, "0 or 1")

        async def read(folder: Path) -> Submission:
            return await self._read(request, folder)

        if dry_run == "1":
            return JSONResponse(await self._submitter.estimate(request, read))
        job = await self._submitter.submit(request, read)
        return JSONResponse(await native_job(self._dispatcher, job), 201, {"Location": f"/v1/jobs/{job.id}"})

    async def list(self, request: Request) -> Response:
        query = page_query(request)
        jobs, has_more = await self._dispatcher.do(lambda: self._store.page(owner_of(request), **query))
        return JSONResponse(
            {
                "object": "list",
                "data": await native_jobs(self._dispatcher, jobs),
                "has_more": has_more,
                "first_id": jobs[0].id if jobs else None,
                "last_id": jobs[-1].id if jobs else None,
            }
        )

    async def get(self, request: Request) -> Response:
        take_query(request)
        return JSONResponse(await native_job(self._dispatcher, await self.find(request)))

    async def cancel(self, request: Request) -> Response:
        job = await self.find(request)
        found = await self._dispatcher.cancel(job.id)
        if found is None:
            raise no_job(job.id)
        return JSONResponse(await native_job(self._dispatcher, found))

    async def withdraw(self, request: Request) -> Response:
        """Cancel what a submission has made or will make: for a client that got no answer to it."""
        take_query(request)
        owner, key = owner_of(request), submission_key(request)
        if key is None:
            raise bad_key("it is missing")
        job_id = await self._dispatcher.do(lambda: self._store.withdraw(owner, key))
        job = None if job_id is None else await self._dispatcher.cancel(job_id)
        shown = None if job is None else await native_job(self._dispatcher, job)
        return JSONResponse({"object": "submission.cancelled", "job": shown})

    async def delete(self, request: Request) -> Response:
        job = await self.find(request)
        await self._dispatcher.delete(job.id)
        return JSONResponse({"id": job.id, "object": "job.deleted", "deleted": True})

    async def recipe(self, request: Request) -> Response:
        """What makes the same result again: the request, and its inputs by their hashes."""
        job = await self.find(request)
        shown = await native_job(self._dispatcher, job)
        return JSONResponse({"model": job.model, "format": job.format, "request": shown["request"]})

    async def content(self, request: Request) -> Response:
        query = take_query(request, "variant", "download")
        variant = query.get("variant", "result")
        if variant not in ("result", "source"):
            raise bad_query("variant", variant, "result or source")
        return self.file_response(await self.find(request), variant, query.get("download") == "1")

    def file_response(self, job: Job, variant: str, is_download: bool = False) -> Response:
        """A job's file, or the part of it that a Range asks for. Raises HttpError: 410, 409."""
        path = self._store.content_path(job, variant)
        if job.state == "expired":
            raise HttpError(
                410, f"the files of job {job.id} have expired", hint="run it again", code="serve.gone"
            )
        if path is None:
            raise HttpError(
                409,
                f"job {job.id} is {job.state} and has no {variant}",
                expected="a completed job, and an input for source",
                hint="wait for its end",
                code="serve.no_content",
            )
        try:
            stat = path.stat()
        except FileNotFoundError as error:
            raise HttpError(
                410, f"the files of job {job.id} are gone", hint="run it again", code="serve.gone"
            ) from error
        types = {".png": "image/png", ".mp4": "video/mp4"}
        kind = (job.result or {})["type"] if variant == "result" else types[path.suffix]
        return FileResponse(
            path,
            media_type=kind,
            stat_result=stat,
            filename=f"{job.id}-{variant}{path.suffix}",
            content_disposition_type="attachment" if is_download else "inline",
            headers={"Content-Security-Policy": CONTENT_CSP, "Cache-Control": "private, no-cache"},
        )

    async def events(self, request: Request) -> Response:
        job = await self.find(request)
        return StreamingResponse(
            self._events(job.id), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
        )

    async def _events(self, job_id: str) -> AsyncIterator[str]:
        """The job at each change, until it is over, deleted, or the server is being stopped."""
        last, live = "", self._dispatcher.live
        job, known = None, None
        with self._dispatcher.watch(job_id) as changed:
            while True:
                changed.clear()
                run = live.get(job_id)
                state = None if run is None else (run, run.cancelled_s)
                if state is None or state != known:  # else only its progress has changed
                    job, known = await self._dispatcher.do(lambda: self._store.get(job_id)), state
                if job is None:
                    yield "event: deleted\ndata: {}\n\n"
                    return
                shown = json.dumps(await native_job(self._dispatcher, job))
                if shown != last:
                    yield f"event: job\ndata: {shown}\n\n"
                    last = shown
                if job.state in FINISHED or self._dispatcher.is_draining:
                    return
                while not await self._change(job_id, changed, run is not None):
                    yield ": beat\n\n"

    async def _change(self, job_id: str, changed: asyncio.Event, was_live: bool) -> bool:
        """Wait for a change, False where there is none for BEAT_S.

        The begin and the end of a run are told at once, progress LEAST_S after what was told before.
        """
        begin, dispatcher = time.monotonic(), self._dispatcher
        if not await _is_set_within(changed, BEAT_S):
            return False
        while (job_id in dispatcher.live) == was_live and not dispatcher.is_draining:
            left_s = begin + LEAST_S - time.monotonic()
            if left_s <= 0:
                break
            changed.clear()
            await _is_set_within(changed, left_s)
        return True

    async def find(self, request: Request) -> Job:
        """The job of the path, if it is the caller's. Raises HttpError (404)."""
        return await find_job(self._dispatcher, request)

    async def _read(self, request: Request, folder: Path) -> Submission:
        """The submission of a body, JSON or multipart."""
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        uploads = {}
        if kind == "application/json":
            body = await read_json_body(request, self._settings.body)
            digest = json.dumps(body, sort_keys=True)
        else:
            form = await read_form(request, folder, self._settings.body)
            digest = form.digest
            body = dict(form.fields)
            if "request" in body:
                body["request"] = parse_object(body["request"], "the part request")
            if "deadline_s" in body:
                with suppress(ValueError):
                    body["deadline_s"] = float(body["deadline_s"])
            for name, stored in form.files:
                check_input_name(name)
                if name in uploads:
                    raise HttpError(
                        400, "it stands twice", expected="one file", code="serve.field", field=name
                    )
                uploads[name] = stored
        fields = Fields(body, "the body", "", error=RequestError, fix="correct the request")
        asked = Submission(
            request=dict(fields.mapping("request")),
            model=fields.string("model") if "model" in fields else None,
            format=fields.choice("format", FORMATS) if "format" in fields else None,
            deadline_s=fields.positive_number("deadline_s") if "deadline_s" in fields else None,
            uploads=uploads,
            digest=digest,
        )
        fields.finish()
        asked.references = _take_references(asked.request)
        for name in asked.references:
            if name in uploads:
                raise HttpError(
                    400, "it is given twice", expected="a file or a job", code="serve.field", field=name
                )
        return asked


def _take_references(request: dict[str, Any]) -> dict[str, Reference]:
    """Take `inputs` out of a request: {"video1": {"job": id}}. A path is refused, whatever it is."""
    if "inputs" not in request:
        return {}
    outer = Fields(
        request, "the request", "", error=RequestError, fix="upload the file as a part of that name"
    )
    inputs = outer.child("inputs")
    references = {}
    for name in inputs:
        check_input_name(name)
        one = inputs.child(name)
        references[name] = Reference(
            one.string("job"),
            one.choice("variant", ("result", "source")) if "variant" in one else "result",
        )
        one.finish()
    del request["inputs"]
    return references


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except asyncio.TimeoutError:
        return False
    return True


async def find_job(dispatcher: Dispatcher, request: Request) -> Job:
    """The job of the path, if it is the caller's. Raises HttpError (404)."""
    job_id, owner = request.path_params["id"], owner_of(request)
    job = await dispatcher.do(lambda: dispatcher.store.get(job_id, owner))
    if job is None:
        raise no_job(job_id)
    return job


def no_job(job_id: str) -> HttpError:
    return HttpError(
        404, f'there is no job "{job_id[:60]}"', hint="list the jobs there are", code="serve.not_found"
    )


def take_query(request: Request, *names: str) -> dict[str, str]:
    """The query's values. Raises HttpError (400) for one of another name, or one that stands twice."""
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in names or name in found:
            raise bad_query(name, value, f"one of {', '.join(names)}, once" if names else "none")
        found[name] = value
    return found


def bad_query(name: str, value: str, expected: str) -> HttpError:
    return HttpError(
        400, f'"{value[:60]}"', expected=expected, is_value=True, code="serve.query", field=name[:60]
    )


def page_query(request: Request) -> dict[str, Any]:
    """after, limit and order of a list. Raises HttpError (400)."""
    query = take_query(request, "after", "limit", "order")
    limit, order = query.get("limit", "20"), query.get("order", "desc")
    if not (limit.isascii() and limit.isdigit() and len(limit) < 4 and 1 <= int(limit) <= 100):
        raise bad_query("limit", limit, "a whole number from 1 to 100")
    if order not in ("asc", "desc"):
        raise bad_query("order", order, "asc or desc")
    return {"after": query.get("after"), "limit": int(limit), "newest_first": order == "desc"}
