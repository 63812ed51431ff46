"""OpenAI's images: made and edited while the client waits; one that leaves cancels its job."""

from __future__ import annotations

import asyncio
import base64
import time
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from editverse_rt.serve.dispatcher import Dispatcher
from editverse_rt.serve.forms import Form
from editverse_rt.serve.job import Job
from editverse_rt.serve.openai_fields import check_known, option_values, unsupported
from editverse_rt.serve.openai_videos import read_fields, text_of
from editverse_rt.serve.problems import HttpError, RefusedError
from editverse_rt.serve.settings import ServerSettings
from editverse_rt.serve.submitting import Submission, Submitter

__all__ = ["ImageRoutes"]

_KNOWN = {"prompt", "model", "n", "size", "response_format", "output_format"}
_SUPPORTED = "prompt, model, n, size, response_format, output_format, and the options of docs/options.md"
_FORMATS = {"png": "png", "jpeg": "jpg", "webp": "webp"}


class ImageRoutes:
    """The routes under /v1/images."""

    def __init__(self, settings: ServerSettings, dispatcher: Dispatcher, submitter: Submitter) -> None:
        self._settings, self._dispatcher, self._submitter = settings, dispatcher, submitter

    def routes(self) -> list[Route]:
        return [
            Route("/v1/images/generations", self.generate, methods=["POST"]),
            Route("/v1/images/edits", self.edit, methods=["POST"]),
        ]

    async def generate(self, request: Request) -> Response:
        async def read(folder: Path) -> Submission:
            form = await read_fields(request, folder, self._settings)
            if form.files:
                raise unsupported(form.files[0][0], _SUPPORTED)
            return self._submission(form)

        return await self._answer(request, await self._submitter.submit(request, read))

    async def edit(self, request: Request) -> Response:
        async def read(folder: Path) -> Submission:
            form = await read_fields(request, folder, self._settings)
            asked = self._submission(form)
            for name, stored in form.files:
                if name not in ("image", "image[]"):
                    raise unsupported(name, "image or image[]")
                asked.uploads[f"image{len(asked.uploads) + 1}"] = stored
            if not asked.uploads:
                raise HttpError(
                    400,
                    "it is missing",
                    expected="a file",
                    hint="upload it",
                    code="serve.field",
                    field="image",
                )
            return asked

        return await self._answer(request, await self._submitter.submit(request, read))

    def _submission(self, form: Form) -> Submission:
        fields = dict(form.fields)
        check_known(fields, _KNOWN, _SUPPORTED)
        if "prompt" not in fields:
            raise HttpError(400, "it is missing", expected="a text", code="serve.field", field="prompt")
        if fields.get("n", 1) not in (1, "1", None):
            raise unsupported("n", "1")
        if fields.get("response_format", "b64_json") != "b64_json":
            raise unsupported("response_format", "b64_json")
        chosen = text_of("output_format", fields.get("output_format", "png"))
        if chosen not in _FORMATS:
            raise unsupported("output_format", ", ".join(_FORMATS))
        model = fields.get("model")
        options = option_values({name: value for name, value in fields.items() if value is not None})
        return Submission(
            request={"prompt": text_of("prompt", fields["prompt"]), **options},
            view="image",
            model=None if model is None else text_of("model", model),
            format=_FORMATS[chosen],
            digest=form.digest,
        )

    async def _answer(self, request: Request, job: Job) -> Response:
        """Wait for the result. A client that leaves has its job cancelled."""

        async def leave() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        end = asyncio.ensure_future(self._dispatcher.wait_for_end(job.id))
        left = asyncio.ensure_future(leave())
        try:
            await asyncio.wait({end, left}, return_when=asyncio.FIRST_COMPLETED)
            if not end.done():
                await self._dispatcher.cancel(job.id)
                return Response(status_code=499)
            done = end.result()
        finally:
            end.cancel()
            left.cancel()
        if done is None or done.state == "cancelled":
            raise HttpError(409, "the job was cancelled", hint="send it again", code="cancelled")
        if done.error is not None:
            raise RefusedError(done.error)
        path = self._dispatcher.store.content_path(done, "result")
        try:
            if path is None or done.state == "expired":
                raise FileNotFoundError
            data = await self._dispatcher.do(path.read_bytes)
        except FileNotFoundError as error:
            raise HttpError(
                410,
                f"the files of job {done.id} are gone",
                hint="send it again with a new key",
                code="serve.gone",
            ) from error
        result = done.result or {}
        return JSONResponse(
            {
                "created": int(time.time()),
                "data": [{"b64_json": base64.b64encode(data).decode()}],
                "output_format": "jpeg" if done.format == "jpg" else done.format,
                "size": f"{result['width']}x{result['height']}",
            }
        )
