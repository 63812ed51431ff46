"""OpenAI's videos: create, edit, remix, list, get, content, delete. docs/serving.md says what differs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from editverse_rt.request.prompt import INPUT_NAME
from editverse_rt.serve.dispatcher import Dispatcher
from editverse_rt.serve.forms import Form, read_form, read_json_body
from editverse_rt.serve.gate import owner_of
from editverse_rt.serve.job import Job
from editverse_rt.serve.jobs import JobRoutes, bad_query, find_job, page_query, take_query
from editverse_rt.serve.openai_fields import check_known, option_values, unsupported
from editverse_rt.serve.problems import HttpError
from editverse_rt.serve.settings import ServerSettings
from editverse_rt.serve.submitting import Reference, Submission, Submitter
from editverse_rt.serve.views import video_json

__all__ = ["VideoRoutes", "read_fields", "text_of"]

POLL_AFTER_MS = "500"
_KNOWN = {"prompt", "model", "seconds", "size"}
_SUPPORTED = (
    "prompt, model, seconds, size, input_reference, video1, image1 ..., and the options of docs/options.md"
)


class VideoRoutes:
    """The routes under /v1/videos."""

    def __init__(
        self, settings: ServerSettings, dispatcher: Dispatcher, submitter: Submitter, jobs: JobRoutes
    ) -> None:
        self._settings, self._dispatcher, self._submitter, self._jobs = settings, dispatcher, submitter, jobs

    def routes(self) -> list[Route]:
        return [
            Route("/v1/videos", self.create, methods=["POST"]),
            Route("/v1/videos", self.list, methods=["GET"]),
            Route("/v1/videos/edits", self.edit, methods=["POST"]),
            Route("/v1/videos/{id}", self.get, methods=["GET"]),
            Route("/v1/videos/{id}", self.delete, methods=["DELETE"]),
            Route("/v1/videos/{id}/remix", self.remix, methods=["POST"]),
            Route("/v1/videos/{id}/content", self.content, methods=["GET"]),
        ]

    async def create(self, request: Request) -> Response:
        async def read(folder: Path) -> Submission:
            form = await read_fields(request, folder, self._settings)
            check_known(form.fields, _KNOWN, _SUPPORTED)
            asked = self._submission(form)
            for name, stored in form.files:
                if name in ("input_reference", "input_reference[]"):
                    asked.unnamed.append(stored)
                elif INPUT_NAME.fullmatch(name) and name not in asked.uploads:
                    asked.uploads[name] = stored
                else:
                    raise unsupported(name, _SUPPORTED)
            return asked

        return self._answer(await self._submitter.submit(request, read))

    async def edit(self, request: Request) -> Response:
        async def read(folder: Path) -> Submission:
            form = await read_fields(request, folder, self._settings)
            supported = "prompt, model, a file video, and the options of docs/options.md"
            check_known(form.fields, _KNOWN - {"seconds"} | {"video[id]"}, supported)
            asked = self._submission(form)
            source = form.fields.get("video[id]")
            if source is not None:
                asked.references["video1"] = Reference(text_of("video[id]", source))
            for name, stored in form.files:
                if name != "video" or "video1" in asked.uploads or asked.references:
                    raise unsupported(name, supported)
                asked.uploads["video1"] = stored
            if not asked.uploads and not asked.references:
                raise HttpError(
                    400,
                    "it is missing",
                    expected="a file",
                    hint="upload it",
                    code="serve.field",
                    field="video",
                )
            return asked

        return self._answer(await self._submitter.submit(request, read))

    async def remix(self, request: Request) -> Response:
        """Edit a result. The new job gets a link to the file, and outlives the old one."""
        source = await find_job(self._dispatcher, request)

        async def read(folder: Path) -> Submission:
            body = await read_json_body(request, self._settings.body)
            check_known(body, {"prompt"}, "prompt, and the options of docs/options.md")
            asked = self._submission(Form(fields=body, digest=json.dumps(body, sort_keys=True)))
            asked.model = source.model
            asked.unnamed_references.append(Reference(source.id))
            asked.extra["remixed_from"] = source.id
            return asked

        return self._answer(await self._submitter.submit(request, read))

    async def list(self, request: Request) -> Response:
        query = page_query(request)
        store = self._dispatcher.store
        jobs, has_more = await self._dispatcher.do(
            lambda: store.page(owner_of(request), views=("native", "video"), **query)
        )
        return JSONResponse(
            {
                "object": "list",
                "data": [video_json(self._dispatcher, job) for job in jobs],
                "has_more": has_more,
                "first_id": jobs[0].id if jobs else None,
                "last_id": jobs[-1].id if jobs else None,
            }
        )

    async def get(self, request: Request) -> Response:
        take_query(request)
        return self._answer(await find_job(self._dispatcher, request))

    async def delete(self, request: Request) -> Response:
        job = await find_job(self._dispatcher, request)
        await self._dispatcher.delete(job.id)
        return JSONResponse({"id": job.id, "object": "video.deleted", "deleted": True})

    async def content(self, request: Request) -> Response:
        variant = take_query(request, "variant").get("variant", "video")
        if variant not in ("video", "source"):
            raise bad_query("variant", variant, "video or source")
        job = await find_job(self._dispatcher, request)
        return self._jobs.file_response(job, "result" if variant == "video" else variant)

    def _answer(self, job: Job) -> Response:
        return JSONResponse(
            video_json(self._dispatcher, job), headers={"openai-poll-after-ms": POLL_AFTER_MS}
        )

    def _submission(self, form: Form) -> Submission:
        fields = dict(form.fields)
        if "prompt" not in fields:
            raise HttpError(400, "it is missing", expected="a text", code="serve.field", field="prompt")
        request = {"prompt": text_of("prompt", fields["prompt"]), **option_values(fields)}
        model = fields.get("model")
        asked = Submission(
            request=request,
            view="video",
            model=None if model is None else text_of("model", model),
            format="mp4",
            digest=form.digest,
        )
        seconds = fields.get("seconds")
        if seconds is not None:
            if "num_frames" in request:
                raise unsupported("seconds", "seconds or num_frames, not both")
            asked.request["num_frames"] = self._frames_of(str(seconds), asked)
        return asked

    def _frames_of(self, seconds: str, asked: Submission) -> int:
        """The frames of a length in seconds, at the rate that is asked for or is the model's own."""
        models = self._dispatcher.models
        model = next((m for m in models if m["id"] == asked.model), models[0] if models else None)
        fps = asked.request.get("fps", model["geometry"]["default_fps"] if model else 1.0)
        good = re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,3})?", seconds) and float(seconds) > 0
        if not good or not isinstance(fps, (int, float)) or not 0 < fps <= 1000:
            raise HttpError(
                400, f'"{seconds[:40]}"', expected="seconds above 0", is_value=True, code="serve.field",
                field="seconds",
            )  # fmt: skip
        return max(1, round(float(seconds) * fps))


async def read_fields(request: Request, folder: Path, settings: ServerSettings) -> Form:
    """The fields and files of a body, multipart or JSON; fields of JSON keep their types."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        return await read_form(request, folder, settings.body)
    body: dict[str, Any] = await read_json_body(request, settings.body)
    return Form(fields=body, digest=json.dumps(body, sort_keys=True))


def text_of(name: str, value: object) -> str:
    """A field that has to be a text. Raises HttpError (400)."""
    if not isinstance(value, str):
        raise HttpError(400, "it is not a text", expected="a text", code="serve.field", field=name)
    return value
